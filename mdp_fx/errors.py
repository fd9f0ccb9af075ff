"""The errors that mdp-fx raises for causes outside its own code.

Every message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MOST_NAMED = 8
"""Known names that a message lists."""


class MdpFxError(Exception):
    """Base of all mdp-fx errors; the command line prints the message and exits with code 1.

    Attributes:
        told: whether another process of the run has the same error and tells it.
    """

    told = False


class ModelError(MdpFxError):
    """The model cannot be read or traced."""


class InputError(MdpFxError):
    """An input file, option or value is not usable."""


class BudgetError(MdpFxError):
    """A budget cannot be met or makes no sense.

    Attributes:
        smallest: the smallest reachable value of each cost alone, where that is what is wrong.
    """

    def __init__(self, message: str, smallest: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.smallest = dict(smallest or {})


class DataError(MdpFxError):
    """A data set or loader is not usable."""


class TargetError(MdpFxError):
    """A target is unknown or its runtime is not installed."""


class RecipeError(MdpFxError):
    """A recipe does not fit the model it is applied to."""


class OutputError(MdpFxError):
    """A result cannot be written."""


class NothingToPruneError(MdpFxError):
    """The network has nothing that may be pruned."""


class SolverError(MdpFxError):
    """The solver failed, or its answer did not survive the independent check."""


class TrainingError(MdpFxError):
    """Training cannot go on, or not be taken up again."""


class ParityError(MdpFxError):
    """An exported or rewritten network does not compute what it should."""


def first_line(error: BaseException | None) -> str:
    """What a foreign error says, in one line of at most 200 characters: its name where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, if any is near."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(name: str, known: Iterable[str], has: str = "the search space has") -> str:
    """The end of a message about an unknown name: the nearest known one, or else some of those that are known."""
    names = list(known)
    shown = names if len(names) <= MOST_NAMED else [*names[:MOST_NAMED], f"and {len(names) - MOST_NAMED} more"]
    return did_you_mean(name, names) or f"; {has} {', '.join(shown) or 'none'}"
