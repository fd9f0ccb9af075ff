"""Scoring a network: a loop over batches in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import DataError, InputError, first_line
from mdp_fx.graph.modes import eval_mode
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.importance.accumulator import ImportanceAccumulator
from mdp_fx.passes.importance.activations import observe, taken
from mdp_fx.passes.importance.batches import guarded
from mdp_fx.passes.importance.layers import LayerImportance
from mdp_fx.passes.slice_channels import dense_network

Loss: TypeAlias = Callable[[Any, Any], torch.Tensor]


def score(
    graph: PruneGraph,
    groups: Sequence[ChannelGroup],
    kind: str,
    *,
    model: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    batches: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[LayerImportance, ...]:
    """Scores the units of every group; the sum over its layers is what a unit is worth.

    Of one batch, with w a weight and g its gradient of the batch's mean loss; the mean over batches counts:

        taylor          |sum of g w| over scale and shift of the norms that a unit of a coupled group passes: HALP
                        (arXiv 2110.10811, eq. 4) and MDP (arXiv 2504.02168); over its filters where there are none
        taylor-filter   |sum of g w| over the filters of a unit
        taylor-input    |sum of g w| over the weights that read a unit: SMCP (arXiv 2211.02206) prunes by it; the one of
                        these that a softly masked channel has
        taylor-squared  (sum of g w)^2 over what taylor looks at, for each layer alone: Molchanov et al. 2019 (arXiv
                        1906.10771, eq. 8)
        fisher          sum of (g w)^2 over the filter: the second-order term of optimal brain damage with the diagonal
                        of the empirical Fisher matrix for the Hessian
        activation      mean absolute output of the layer, its norm and the functions that follow

    A unit's absolute sum is over all its layers, and shared out among them by what each says alone. Of the norms that a
    unit passes those count that read it from a sum or a concatenation, if there are any: a norm hides the scale of what
    it is given, so that nothing before it would count while it is trained.

    "l2" and "l1" are norms of filters and "bn" absolute scales (a filter's l2 norm where no norm follows), divided by
    their sum over the layer, as is "random": every layer is worth the same, and a channel of a narrow layer is worth
    more than one of a wide layer.

    Args:
        graph: the typed network.
        groups: its channel groups.
        kind: what to score by.
        model: the network that shares the graph's parameters, for kinds that need data.
        data: batches of (inputs, targets).
        loss: of (outputs, targets); cross-entropy by default.
        seed: for "random".
        batches: at most this many batches are read.
        progress: called with (done, total, text).

    Raises:
        InputError: an unknown kind, or one that needs data without any.
        DataError: batches that the network or the loss rejects.
    """
    gathered = ImportanceAccumulator(graph, groups, kind, seed=seed)
    if gathered.needs != "nothing":
        if model is None or data is None:
            msg = f"{kind} importance needs data: pass --data package.module:make_loader or --data imagefolder:PATH"
            raise InputError(msg)
        gather(gathered, graph, model, data, loss or cross_entropy, batches, progress)
    return gathered.scores()


def gather(
    gathered: ImportanceAccumulator,
    graph: PruneGraph,
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    batches: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Adds what batches say to an accumulator; the arguments are those of `score`.

    Raises:
        DataError: batches that the network or the loss rejects, or none.
    """
    stored = {name: tensor for name, tensor, _ in graph.stored()}
    wanted = {name: stored[name] for name in gathered.tensors}
    by_activation = gathered.needs == "activations"
    network = dense_network(graph) if by_activation else _holder(list(wanted.values()), model, graph)
    observers = observe(graph, network) if by_activation and isinstance(network, fx.GraphModule) else {}
    done = 0
    with eval_mode(network), _requiring(wanted, not by_activation):
        for batch in guarded(data):
            gradients = batch_gradients(network, batch, loss, wanted)
            if by_activation:
                gathered.accumulate_activations(taken(observers))
            else:
                gathered.accumulate(wanted, gradients)
            done += 1
            if progress is not None:
                progress(done, batches, "batches of gradients")
            if done == batches:
                break
    if not done:
        msg = "the data has no batches: the loader must yield (inputs, targets)"
        raise DataError(msg)


@contextmanager
def _requiring(tensors: dict[str, torch.Tensor], gradients: bool) -> Iterator[None]:
    """Tensors that require gradients or not, and afterwards what they did before."""
    before = {name: tensor.requires_grad for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.requires_grad_(gradients)
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.requires_grad_(before[name])


def _holder(wanted: Sequence[torch.Tensor], model: nn.Module, graph: PruneGraph) -> nn.Module:
    """The model where it holds the layers' parameters; else the graph with its batch open: it has parts of them."""
    held = {id(parameter) for parameter in model.parameters()}
    return model if all(id(tensor) in held for tensor in wanted) else dense_network(graph)


def batch_gradients(
    model: nn.Module, batch: Any, loss: Loss, wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients of a batch's loss, by name; none of tensors that do not require any.

    Args:
        model: the network.
        batch: (inputs, targets).
        loss: of (outputs, targets).
        wanted: parameters of the network by name.

    Raises:
        DataError: the network or the loss rejects the batch, or the loss is not finite.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        msg = f"a batch of data must be (inputs, targets), got {type(batch).__name__}"
        raise DataError(msg)
    inputs, targets = batch
    device = next((tensor.device for tensor in wanted.values()), torch.device("cpu"))
    inputs, targets = pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (inputs, targets))
    learned = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
    try:
        with torch.set_grad_enabled(bool(learned)):
            outputs = model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)
            value = loss(outputs, targets)
            found = torch.autograd.grad(value, list(learned.values()), allow_unused=True) if learned else ()
    except DataError:
        raise
    except Exception as error:
        msg = f"a batch of data does not fit the network or the loss: {type(error).__name__}: {first_line(error)}"
        raise DataError(msg) from error
    if not torch.isfinite(value):
        msg = f"the loss on a batch of data is {float(value.detach())}: check the data's scaling and the weights"
        raise DataError(msg)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(learned.items(), found, strict=True)
    }


def cross_entropy(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the first tensor of a network's output; labels must lie inside of its classes."""
    if not isinstance(targets, torch.Tensor):
        msg = f"the targets of a batch must be a tensor of labels for cross-entropy, not a {type(targets).__name__}"
        raise DataError(msg)
    logits = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
    if (
        targets.dtype == torch.int64
        and targets.numel()
        and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]
    ):
        msg = (
            f"labels {int(targets.min())}..{int(targets.max())} lie outside of the network's {logits.shape[1]} classes"
        )
        raise DataError(msg)
    return F.cross_entropy(logits, targets)
