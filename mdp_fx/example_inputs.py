"""Random example inputs, where the user names shapes only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdp_fx.errors import InputError
from mdp_fx.recipe import Recipe

DEFAULT_SHAPE = (3, 224, 224)
"""Of an image, where nothing says another one."""


def random_inputs(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    """Inputs of these shapes (with the batch) and types, the same in every call; integers are zero.

    Raises:
        InputError: there is not enough memory for them.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        return tuple(
            torch.randn(tuple(shape), generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.zeros(tuple(shape), dtype=dtype)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        )
    except RuntimeError as error:
        text = ", ".join("x".join(map(str, shape)) for shape in shapes)
        msg = f"no memory for inputs of shape {text}: set smaller ones with --input and --batch"
        raise InputError(msg) from error


def recipe_types(recipe: Recipe) -> list[torch.dtype]:
    """The number types of the inputs that a recipe was made with."""
    return [getattr(torch, name) for name in recipe.input_dtypes]


def parameter_type(module: nn.Module) -> torch.dtype:
    """The number type that a network computes in: that of its first floating-point parameter."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
