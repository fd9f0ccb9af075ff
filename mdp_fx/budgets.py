"""Budgets as users write them: a share of the dense network, or an amount."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass

from mdp_fx.errors import BudgetError

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_SIZES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_KINDS = {
    "us": (_TIMES, "50% or 12.5ms"),
    "params": (_COUNTS, "60% or 4M"),
    "macs": (_COUNTS, "60% or 4M"),
    "bytes": (_SIZES, "60% or 20MiB"),
}
_UNIT_OF = {"latency": "us", "params": "params", "macs": "macs", "memory": "bytes"}
_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A limit: exactly one of `share` (of the dense network, in (0, 1]) and `amount` (seconds, bytes, or a count)."""

    share: float | None = None
    amount: float | None = None

    def resolve(self, dense: float) -> float:
        """The limit in absolute terms."""
        return self.share * dense if self.share is not None else float(self.amount or 0.0)


def parse_budget(text: str | float | Budget, what: str = "latency", unit: str | None = None) -> Budget:
    """Reads a budget.

    Args:
        text: "50%", "12.5ms" (latency), "4M", "4000000" or 4000000 (parameters, MACs), "20MiB" (memory), or a share of
            the dense network as a number.
        what: name of the cost, such as "latency", "params", "macs" or "memory".
        unit: "us", "params", "macs" or "bytes"; by default that of the name.

    Raises:
        BudgetError: it is none of these, not positive, or above 100 %.
    """
    unit = unit or _UNIT_OF[what]
    units, example = _KINDS[unit]
    if isinstance(text, Budget):
        return text
    if isinstance(text, numbers.Real) and not isinstance(text, bool):
        if unit != "us" and isinstance(text, numbers.Integral) and text > 1:
            return Budget(amount=float(text))
        return _share(float(text), what, example)
    if not isinstance(text, str):
        msg = f"cannot read the {what} budget {text!r}: write it as {example}, or as a share of the dense network"
        raise BudgetError(msg)
    match = _FORM.fullmatch(text)
    if match is None:
        msg = f"cannot read the {what} budget {text!r}: write it as {example}"
        raise BudgetError(msg)
    value, suffix = float(match[1]), match[2].lower().replace("µ", "u")
    if suffix == "%":
        return _share(value / 100, what, example)
    if suffix not in units or not math.isfinite(value) or value <= 0:
        msg = f"cannot read the {what} budget {text!r}: write it as {example}"
        raise BudgetError(msg)
    return Budget(amount=value * units[suffix])


def _share(share: float, what: str, example: str) -> Budget:
    if not 0 < share <= 1:
        given = f"a {what} budget of {100 * share:g} %"
        msg = f"{given} is not between 0 and 100 % of the dense network: write it as {example}"
        raise BudgetError(msg)
    return Budget(share=share)
