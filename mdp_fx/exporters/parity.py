"""Comparing what two forms of a network compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mdp_fx.errors import ParityError


def max_relative_error(dtype: torch.dtype) -> float:
    """How far two computations in one number type may be apart, over the largest value."""
    # One rounding step of a half-precision number is 1e-3 (bfloat16: 8e-3).
    return 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-3


@dataclass(frozen=True)
class ParityReport:
    """How far a candidate's outputs are from the reference's.

    Attributes:
        max_abs_error: largest absolute difference of two entries.
        max_rel_error: largest absolute difference, divided by the largest magnitude in the same output.
        dynamic_batch: whether the candidate takes any batch size (checked with a second one).
    """

    max_abs_error: float
    max_rel_error: float
    dynamic_batch: bool = True


def compare(
    reference: Any, candidate: Any, what: str = "the exported model", limit: float | None = None
) -> ParityReport:
    """Compares outputs.

    Args:
        reference: a tensor, or a nested tuple, list or dict of tensors.
        candidate: the same number of tensors in the same order, nested or not.
        what: the candidate, for the error message.
        limit: largest error allowed relative to the output's magnitude; 1e-3 by default, 1e-2 for half precision.

    Raises:
        ParityError: number or shape of outputs differ, or an error exceeds the limit.
    """
    expected, found = _tensors(reference), _tensors(candidate)
    if len(expected) != len(found):
        raise ParityError(f"{what} has {len(found)} outputs instead of {len(expected)}")
    worst_abs = worst_rel = 0.0
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            raise ParityError(f"output {index} of {what} has shape {tuple(b.shape)} instead of {tuple(a.shape)}")
        error, magnitude = _error(a, b)
        allowed = max_relative_error(a.dtype) if limit is None else limit
        if not error / magnitude <= allowed:
            text = f"output {index} of {what} is off by {error:.3g} where the largest value is {magnitude:.3g}"
            raise ParityError(f"{text} (allowed: {allowed:g} of that)")
        worst_abs, worst_rel = max(worst_abs, error), max(worst_rel, error / magnitude)
    return ParityReport(worst_abs, worst_rel)


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _error(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """Largest difference (infinite where one side is not finite and the other differs) and largest magnitude."""
    if reference.numel() == 0:
        return 0.0, 1.0
    wide = torch.complex128 if reference.is_complex() else torch.float64
    a, b = reference.detach().cpu().to(wide), candidate.detach().cpu().to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf)
    magnitude = float(torch.where(a.isfinite(), a.abs(), 0.0).max())
    return float(difference.max()), magnitude or 1.0
