"""What is measured of a region, on made-up targets whose time is a formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from mdp_fx.latency.region_model import AxisModel, RegionModel
from mdp_fx.latency.sampling import EXPECTED_ERROR, RegionSampler, Sizes

EIGHTS = tuple(range(8, 513, 8))
FEW = 21
"""Three lines on each of two axes, four probes for each, three more where there are no treads, and the one held out."""

Formula = Callable[..., float]


def ceil(size: int, tread: int) -> int:
    return -(-size // tread) * tread


def affine(*sizes: int) -> float:
    return 5e-6 + 1e-8 * math.prod(sizes)


def stairs(*sizes: int) -> float:
    return affine(*(ceil(size, 16) for size in sizes))


def padded(*sizes: int) -> float:
    """Sizes off the treads are copied first."""
    return stairs(*sizes) * 1.4 ** sum(size % 16 > 0 for size in sizes)


def reordered(*sizes: int) -> float:
    """Sizes off the treads are copied first, which is dear where there is little else to do."""
    return stairs(*sizes) * (1 + 12 / sizes[0] * (sizes[0] % 16 > 0))


def narrow(*sizes: int) -> float:
    """What does not fill a vector has a kernel of its own."""
    return 1e-8 * math.prod(3 if size < 16 else ceil(size, 16) for size in sizes)


def jointly(*sizes: int) -> float:
    """What is off the treads on both axes costs more than both prices say."""
    off = sum(size % 16 > 0 for size in sizes)
    return stairs(*sizes) * (1.0, 1.15, 1.6)[off]


def bent(*sizes: int) -> float:
    return 1e-6 + 1e-8 * math.prod(size**1.6 for size in sizes)


def cliff(*sizes: int) -> float:
    """Another kernel above a size."""
    return affine(*sizes) * (1.8 if sizes[0] > 200 else 1.0)


def sampled(
    formula: Formula, sizes: Sequence[Sequence[int]], alignment: int = 16, network_s: float = 0.0
) -> tuple[RegionModel, RegionSampler, int]:
    """The model, its sampler, and how many points were measured."""
    sampler = RegionSampler(sizes, alignment)
    known: dict[Sizes, float] = {}
    while True:
        known |= {point: formula(*point) for point in sampler.wanted()}
        if not sampler.refine(known, network_s or known[tuple(axis[-1] for axis in sizes)]):
            return sampler.model(known), sampler, len(known)


def mean_error(model: RegionModel, formula: Formula, sizes: Sequence[Sequence[int]]) -> float:
    true = np.array([formula(*point) for point in product(*sizes)]).reshape([len(axis) for axis in sizes])
    return float(np.mean(np.abs(model.at(sizes) - true) / true))


@pytest.mark.parametrize("formula", [affine, stairs, padded], ids=lambda f: f.__name__)
def test_lines_and_stairs_need_few_points(formula: Formula) -> None:
    model, sampler, points = sampled(formula, (EIGHTS, EIGHTS))
    assert points <= FEW
    assert mean_error(model, formula, (EIGHTS, EIGHTS)) < 0.002
    assert sampler.expected_error < EXPECTED_ERROR


@pytest.mark.parametrize("formula", [bent, cliff], ids=lambda f: f.__name__)
def test_rougher_regions_get_more_until_reading_them_is_good_enough(formula: Formula) -> None:
    model, _, points = sampled(formula, (EIGHTS, EIGHTS))
    lines = (8, 64, 512)
    few = RegionModel((AxisModel(lines),) * 2, np.array([[formula(a, b) for b in lines] for a in lines]))
    assert FEW < points < len(EIGHTS) ** 2 / 10
    assert mean_error(model, formula, (EIGHTS, EIGHTS)) < 0.5 * mean_error(few, formula, (EIGHTS, EIGHTS))


def test_what_hardly_counts_is_not_measured_finely() -> None:
    _, _, alone = sampled(bent, (EIGHTS,))
    _, _, small = sampled(bent, (EIGHTS,), network_s=1e4 * bent(512))
    assert small < alone


@pytest.mark.parametrize("tread", [16, 32, 64, 128])
def test_treads_are_found_by_probes(tread: int) -> None:
    def steps(*sizes: int) -> float:
        return affine(*(ceil(size, tread) for size in sizes))

    model, _, points = sampled(steps, (EIGHTS, EIGHTS))
    assert [(axis.tread, axis.prices) for axis in model.axes] == [(tread, ())] * 2
    assert mean_error(model, steps, (EIGHTS, EIGHTS)) < 1e-9
    assert points <= 2 * FEW


def test_no_treads_are_found_where_there_are_none() -> None:
    assert [axis.tread for axis in sampled(affine, (EIGHTS, EIGHTS))[0].axes] == [1, 1]


def test_padding_is_found_with_its_price() -> None:
    found = sampled(padded, (EIGHTS, EIGHTS))[0].axes
    assert [axis.tread for axis in found] == [16, 16]
    assert [factor for axis in found for _, factor in axis.prices] == pytest.approx([1.4] * 6)


def test_the_price_of_padding_follows_the_size() -> None:
    model, _, points = sampled(reordered, (EIGHTS, EIGHTS))
    axis = model.axes[0]
    assert axis.tread == 16
    _, (_, small), (_, large) = axis.prices
    assert small == pytest.approx(1.5, rel=0.02)
    assert large == pytest.approx(1.1, rel=0.02)
    assert points <= FEW
    assert mean_error(model, reordered, (EIGHTS, EIGHTS)) < 0.03


def test_what_reading_misses_shows_in_the_expected_error() -> None:
    model, sampler, _ = sampled(jointly, (EIGHTS, EIGHTS))
    both_off = 1 - 1.15**2 / 1.6
    assert sampler.expected_error == pytest.approx(both_off, rel=0.05)
    assert mean_error(model, jointly, (EIGHTS, EIGHTS)) > 0.02


def test_sizes_that_do_not_fill_a_vector_are_no_tread() -> None:
    model, _, points = sampled(narrow, (EIGHTS, EIGHTS))
    assert [axis.tread for axis in model.axes] == [16, 16]
    assert points <= FEW
    assert mean_error(model, narrow, (EIGHTS, EIGHTS)) < 1e-9


def test_few_sizes_on_and_off_the_treads_are_read_right() -> None:
    sizes = tuple(range(8, 65, 8))
    model, _, _ = sampled(narrow, (sizes, sizes))
    assert mean_error(model, narrow, (sizes, sizes)) < 1e-9


def test_where_every_size_is_a_multiple_there_is_no_probe() -> None:
    sizes = tuple(range(16, 257, 16))
    sampler = RegionSampler((sizes,), 16)
    assert len(sampler.wanted()) == 4  # three lines, and the point held out
    assert sampled(stairs, (sizes,))[0].axes[0].tread == 1


@pytest.mark.parametrize("sizes", [(24,), (8, 24), (8, 16, 24)])
def test_few_sizes_are_all_measured(sizes: tuple[int, ...]) -> None:
    model, _, points = sampled(bent, (sizes,))
    assert points == len(sizes)
    assert mean_error(model, bent, (sizes,)) < 1e-12


def test_a_region_without_axes_is_measured_once() -> None:
    model, sampler, points = sampled(lambda: 3e-6, ())
    assert points == 1
    assert float(model.seconds) == 3e-6
    assert sampler.expected_error == 0.0


def test_regions_that_take_no_time_are_left_alone() -> None:
    model, _, points = sampled(lambda *_: 0.0, (EIGHTS, EIGHTS))
    assert points <= FEW
    assert not model.at((EIGHTS, EIGHTS)).any()


def test_noise_does_not_call_for_more() -> None:
    noise = np.random.default_rng(0)
    _, _, points = sampled(lambda *sizes: affine(*sizes) * noise.normal(1.0, 0.01), (EIGHTS, EIGHTS))
    assert points <= FEW


def test_noise_of_a_busy_machine_calls_for_little_more() -> None:
    noise = np.random.default_rng(0)
    _, _, points = sampled(lambda *sizes: affine(*sizes) * noise.lognormal(0.0, 0.15), (EIGHTS, EIGHTS))
    assert points <= 4 * FEW


def test_smallest_and_largest_sizes_are_always_measured() -> None:
    sizes = (5, 8, 13, 40, 77, 99)
    model, _, _ = sampled(stairs, (sizes, EIGHTS))
    assert model.axes[0].places([5])[0] == model.axes[0].places(model.axes[0].lines)[0]
    assert model.axes[0].lines[-1] == 99
    model.at((sizes, EIGHTS))
