"""Schedules: targets by hand, laws of the curves, when steps come, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.errors import InputError
from mdp_fx.train.schedule import CURVES, Schedule


@pytest.mark.parametrize(
    ("curve", "shares"),
    [
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("exp2", [0.2**0.25, 0.2**0.5, 0.2**0.75, 0.2]),
        ("exp", [1 - 0.8 * (1 - math.exp(-0.05 * k)) / (1 - math.exp(-0.2)) for k in (1, 2, 3, 4)]),
    ],
)
def test_shares_by_hand(curve: str, shares: list[float]) -> None:
    schedule = Schedule(steps=4, curve=curve)
    assert [schedule.share(k, 0.2) for k in (1, 2, 3, 4)] == pytest.approx(shares)


@given(st.sampled_from(CURVES), st.integers(1, 60), st.floats(0.01, 1.0))
def test_shares_fall_to_exactly_the_target(curve: str, steps: int, target: float) -> None:
    schedule = Schedule(steps=steps, curve=curve)
    shares = [1.0, *(schedule.share(k, target) for k in range(1, steps + 1))]
    assert shares[-1] == target
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(shares))


@given(st.integers(1, 5), st.integers(0, 7), st.integers(1, 5), st.integers(0, 4))
def test_every_step_gathers_over_as_many_iterations_as_it_says(steps: int, start: int, gather: int, more: int) -> None:
    schedule = Schedule(steps, "exp2", start, gather, gather + more)
    number, seen, taken = 1, 0, []
    for iteration in range(schedule.iterations):
        seen += schedule.gathers(iteration, number)
        if number <= steps and iteration + 1 == schedule.ends(number):
            assert seen == gather
            taken.append(iteration + 1)
            number, seen = number + 1, 0
    assert taken == [start + gather + k * (gather + more) for k in range(steps)]
    assert not schedule.gathers(schedule.iterations, number)


def test_one_shot_asks_for_the_target_at_once() -> None:
    assert Schedule(gather=1200).iterations == 1200
    assert [Schedule(curve=curve).share(1, 0.3) for curve in CURVES] == [0.3, 0.3, 0.3]


def test_training_that_is_too_short_is_one_line() -> None:
    schedule = Schedule(steps=30, start=10, gather=40, every=320)
    schedule.check(9330)
    with pytest.raises(
        InputError, match=r"^the schedule cannot reach its target: .* after 9330 iterations, and training has 9329;"
    ):
        schedule.check(9329)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"curve": "exp3"}, "unknown curve 'exp3' of a schedule; did you mean 'exp"),
        ({"steps": 0}, "steps of the schedule is 0; it must be an int of at least 1"),
        ({"gather": 2.5}, "gather of the schedule is 2.5; it must be an int of at least 1"),
        ({"start": -1}, "start of the schedule is -1; it must be an int of at least 0"),
        ({"gather": 5, "every": 3}, "the schedule takes a step every 3 iterations and gathers importance over 5"),
    ],
)
def test_what_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Schedule(**fields)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
