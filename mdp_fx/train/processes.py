"""One process decides, all are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from mdp_fx.errors import MdpFxError, first_line

Value = TypeVar("Value")


def on_first(work: Callable[[], Value]) -> Value:
    """Runs `work` in the first process and gives all what it returns, plain data; without a process group it just runs.

    Raises:
        MdpFxError: in every process, what the first one had to tell.
        RuntimeError: in the others, where the first one failed otherwise; there, what it failed with.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except MdpFxError as error:
            told[1] = failure = error
        except Exception as error:  # noqa: BLE001 - raised below; the others must not wait for ever
            failure = error
            told[1] = RuntimeError(f"the first process failed with {type(error).__name__}: {first_line(error)}")
    dist.broadcast_object_list(told)
    raised = failure if failure is not None else told[1]
    if raised is not None:
        raise raised
    value: Value = told[0]
    return value
