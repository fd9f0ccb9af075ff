"""Running a function in two processes that talk to each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2


def _run(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["MDP_FX_CACHE"] = f"{folder}/cache{rank}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    try:
        torch.save(work(rank), f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)`, a function of a module, returns in each of two processes: plain data and tensors."""
    mp.spawn(_run, (work, str(folder)), nprocs=PROCESSES)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
