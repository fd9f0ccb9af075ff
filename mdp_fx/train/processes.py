"""One process decides, all are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from mdp_fx.errors import MdpFxError, first_line

Value = TypeVar("Value")


def together() -> bool:
    """Whether there is a group of processes."""
    return dist.is_available() and dist.is_initialized()


def from_all(value: Value) -> list[Value]:
    """What each process has, in every one of them: plain data and tensors on the CPU, in the order of the ranks."""
    if not together():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def place() -> tuple[int, int]:
    """Number of this process, and how many there are: (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the buffers of the first one: each has gathered statistics of its own examples."""
    if together():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def on_first(work: Callable[[], Value]) -> Value:
    """Runs `work` in the first process and gives all what it returns, plain data; without a process group it just runs.

    Raises:
        MdpFxError: in every process, what the first one had to tell.
        RuntimeError: in the others, where the first one failed otherwise; there, what it failed with.
    """
    if not together():
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
    if failure is not None:
        raise failure
    if told[1] is not None:
        if isinstance(told[1], MdpFxError):
            told[1].told = True
        raise told[1]
    value: Value = told[0]
    return value
