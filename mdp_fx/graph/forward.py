"""One inference of a network as its user gave it: whether it takes its inputs, and what it makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, first_line
from mdp_fx.graph.modes import eval_mode


def copied_tensors(value: Any) -> Any:
    """A nested value with copies of its tensors."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)


def run_once(
    network: nn.Module, inputs: tuple[Any, ...], name: str = "the network", setting: str | None = "--input CxHxW"
) -> Any:
    """The outputs of a network in eval mode, from copies of the inputs.

    Args:
        network: stays in the mode it is in.
        inputs: of its forward, with the batch.
        name: of the network, for the message.
        setting: what sets the shape of the inputs, if anything does.

    Raises:
        InputError: it rejects the inputs.
    """
    try:
        with eval_mode(network), torch.no_grad():
            return network(*copied_tensors(inputs))
    except Exception as error:  # the network's own code: whatever it raises, it rejects the inputs
        tensors = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
        advice = f"; set the shape with {setting}" if setting is not None else ""
        msg = f"{name} rejects an input of shape {shapes}: {first_line(error)}{advice}"
        raise InputError(msg) from error
