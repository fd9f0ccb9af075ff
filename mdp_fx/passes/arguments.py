"""Checks of arguments: from Python anything can come, and no wrong type may get as far as a solver or a clock."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeGuard

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.passes.search_space import SearchSpace


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Checks an integer.

    Raises:
        InputError: it is none (numpy's are not), or out of range.
    """
    if not _is_whole(value) or not least <= value <= most:
        upper = "" if math.isinf(most) else f" and at most {most}"
        raise InputError(f"{name} is {value!r}; it must be an int of at least {least}{upper}")


def check_is_space(space: object) -> None:
    """Checks that a search space is one.

    Raises:
        InputError: it is a path or something else.
    """
    if not isinstance(space, SearchSpace):
        hint = f"a {type(space).__name__}; read a file with mdp_fx.SearchSpace.load(path)"
        raise InputError(f"expected a SearchSpace, found {hint}")


def check_restrictions(min_keep: object, fixed: object, keep_blocks: object) -> None:
    """Checks the types of what restricts a search space; `restrict` looks the names up.

    Raises:
        InputError: one is of another type, or the share is none.
    """
    if min_keep is not None and not (_is_number(min_keep) and 0 <= min_keep <= 1):
        raise InputError(f"min_keep is {min_keep!r}; it must be a share between 0 and 1, such as 0.1 for 10 %")
    if fixed is not None and not isinstance(fixed, Mapping):
        raise InputError(f"fixed is {fixed!r}; it must be sizes by dimension, such as {{'conv1': 32}}")
    for name, size in (fixed or {}).items():
        if not isinstance(name, str) or not _is_whole(size):
            raise InputError(f"fixed holds {name!r} at {size!r}; it must be a size as an int by a dimension's name")
    if isinstance(keep_blocks, str):
        raise InputError(f"keep_blocks is the string {keep_blocks!r}; it must be a list of names: [{keep_blocks!r}]")
    if not isinstance(keep_blocks, Collection) or not all(isinstance(name, str) for name in keep_blocks):
        raise InputError(f"keep_blocks is {keep_blocks!r}; it must be a list of names of blocks")


def check_time_limit(seconds: object) -> None:
    """Checks how long something may take.

    Raises:
        InputError: it is no number above 0.
    """
    if seconds != math.inf and (not _is_number(seconds) or seconds <= 0):
        raise InputError(f"the time limit is {seconds!r}; it must be a number of seconds above 0")


def check_limits(gap: object, time_limit: object, threads: object, seed: object, max_removed: object) -> None:
    """Checks what else a solver is told.

    Raises:
        InputError: one is of another type, or out of range.
    """
    if not _is_number(gap) or gap < 0:
        raise InputError(f"gap is {gap!r}; it must be a number of at least 0, such as 0.001 for 0.1 %")
    check_time_limit(time_limit)
    if threads is not None:
        check_whole("threads", threads, 1)
    check_whole("seed", seed, 0, 2**32 - 1)
    if max_removed is not None:
        check_whole("max_removed", max_removed, 0)
