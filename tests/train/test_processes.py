"""Two processes that prune together: one decides, both end with the same network, and errors reach both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mdp_fx.errors import BudgetError
from mdp_fx.train.processes import on_first, share_buffers
from mdp_fx.train.pruning import Pruner
from mdp_fx.train.schedule import Schedule
from tests.gloo import in_two_processes
from tests.train.networks import PREDICTED, batch, images, small

SCHEDULE = Schedule(steps=2, gather=2)


def _prune_together(rank: int) -> dict[str, Any]:
    pruner = Pruner(small(), images(), latency="90%", **PREDICTED, schedule=SCHEDULE, keep_blocks=["one", "two"])
    network = DistributedDataParallel(pruner.module.train())
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    torch.manual_seed(0)
    while not pruner.done:
        x, y = batch(2 * pruner.iteration + rank)
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        pruner.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    result = pruner.finish()
    shapes = [list(parameter.shape) for parameter in result.module.parameters()]
    return {"kept": result.recipe.kept, "removed": result.recipe.removed_blocks, "shapes": shapes}


def _fail(rank: int) -> list[str]:
    told = []
    for error in (BudgetError("too small", {"latency": 3.0}), ValueError("a fault of ours")):

        def work(error: Exception = error) -> None:
            assert rank == 0, "the others do nothing"
            raise error

        try:
            on_first(work)
        except BudgetError as caught:
            told.append(f"{caught} {caught.smallest} {caught.told}")
        except (ValueError, RuntimeError) as caught:
            told.append(f"{type(caught).__name__}: {caught}")
    return [*told, on_first(lambda: "still talking")]


def _take_up(rank: int) -> dict[str, Any]:
    """Gathers on batches of its own, with a stop in between or without; ends with what a state holds."""
    found = []
    for stops in (False, True):
        pruner = Pruner(small(), images(), latency="90%", **PREDICTED, importance="activation", schedule=SCHEDULE)
        for number in range(2):
            pruner.module.eval()(batch(2 * number + rank)[0])
            pruner.after_backward()
            if number == 0 and stops:
                state = pruner.state_dict()
                pruner = Pruner(
                    small(), images(), latency="90%", **PREDICTED, importance="activation", schedule=SCHEDULE
                )
                pruner.load_state_dict(state)
        found.append([each["sums"] for each in pruner.state_dict()["importance"]])
    alone = torch.nn.BatchNorm2d(2)
    torch.nn.init.constant_(alone.running_mean, rank)  # type: ignore[arg-type]
    share_buffers(alone)
    return {"whole": found[0], "stopped": found[1], "statistics": alone.running_mean}


def _both(rank: int) -> dict[str, Any]:
    return {**_prune_together(rank), "told": _fail(rank), **_take_up(rank)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ends with: starting them takes longer than all that they do."""
    return in_two_processes(_both, tmp_path_factory.mktemp("together"))


def test_two_processes_end_with_one_structure(results: list[dict[str, Any]]) -> None:
    one, other = ({name: found[name] for name in ("kept", "removed", "shapes")} for found in results)
    assert one == other
    assert sum(map(len, one["kept"].values())) < 16 + 24 + 24


def test_what_the_first_process_fails_with_reaches_all(results: list[dict[str, Any]]) -> None:
    first, other = (found["told"] for found in results)
    assert first == ["too small {'latency': 3.0} False", "ValueError: a fault of ours", "still talking"]
    assert other[0] == "too small {'latency': 3.0} True", "the command line of the first process tells it"
    assert other[1] == "RuntimeError: the first process failed with ValueError: a fault of ours"


def test_what_each_process_has_gathered_is_in_the_state(results: list[dict[str, Any]]) -> None:
    for found in results:
        first, other = found["whole"]
        assert not torch.equal(first, other)
        assert all(torch.equal(a, b) for a, b in zip(found["whole"], found["stopped"], strict=True))


def test_all_get_the_statistics_of_the_first(results: list[dict[str, Any]]) -> None:
    assert [found["statistics"].tolist() for found in results] == [[0.0, 0.0]] * 2


def test_alone_it_just_runs() -> None:
    assert on_first(lambda: 3) == 3
    with pytest.raises(BudgetError, match="no"):
        on_first(_raise)


def _raise() -> None:
    raise BudgetError("no")
