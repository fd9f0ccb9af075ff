"""What `self.training` is while a model is traced: false, and recognised wherever it ends up."""

from __future__ import annotations

import operator
from collections.abc import Callable

TAKEN = "taken"
"""Key in `node.meta`: the line of the model's code that gives the node `self.training`, which it takes for false."""


class EvalFlag:
    """The value of `self.training`. No bool or int, or numbers would compute with it unnoticed.

    Args:
        where: gives the line of the model's code that is running.

    Attributes:
        reads: lines that computed or decided something with it: there it is false for good.
        line: the line that gave it to a call as an argument; None for the model's own.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self.reads: list[str] = []
        self.line: str | None = None
        self._where = where

    def __repr__(self) -> str:
        return "False"

    def passed(self) -> EvalFlag:
        """The flag as an argument of the call that is running."""
        if self.line is not None:
            return self
        flag = EvalFlag(self._where)
        flag.line = self._where()
        return flag

    def read(self) -> bool:
        """What it is, for the line that is running."""
        self.reads.append(self._where())
        return False


def _define_operators() -> None:
    """Whatever is done with it is done with what it is."""
    alone = {"bool": bool, "int": int, "float": float, "hash": hash, "str": str}
    for name in "index neg pos abs invert".split():
        alone[name] = getattr(operator, name)
    for name, function in alone.items():
        setattr(EvalFlag, f"__{name}__", lambda self, function=function: function(self.read()))
    for name in "eq ne lt le gt ge".split():
        compare = getattr(operator, name)
        setattr(EvalFlag, f"__{name}__", lambda self, other, compare=compare: compare(self.read(), other))
    for name in "add sub mul truediv floordiv mod pow and_ or_ xor lshift rshift".split():
        compute, short = getattr(operator, name), name.rstrip("_")
        setattr(EvalFlag, f"__{short}__", lambda self, other, compute=compute: compute(self.read(), other))
        setattr(EvalFlag, f"__r{short}__", lambda self, other, compute=compute: compute(other, self.read()))


_define_operators()


def is_eval_flag(value: object) -> bool:
    """Whether an argument of a traced node is the model's `self.training`."""
    return isinstance(value, EvalFlag)
