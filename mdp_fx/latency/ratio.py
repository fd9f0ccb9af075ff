"""How much faster one network is than another, with a confidence interval, from runs made in turn."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mdp_fx.latency.interpolation import FloatArray
from mdp_fx.latency.timing import Runs, undisturbed_rounds

CONFIDENCE = 0.95
FEWEST_ROUNDS = 20
"""Rounds below which an interval is too wide to say much, or too narrow where the rounds depend on one another."""

_RESAMPLES = (500, 2000)  # at least, and at most: many rounds need fewer, and take longer
_MOST_DRAWN = 10_000_000  # ratios in all resamples
_DRAWN_AT_ONCE = 1_000_000
_MOST_CORRELATED = 0.95
_FEWEST_BLOCKS = 4


@dataclass(frozen=True)
class Ratio:
    """A ratio of two latencies.

    Attributes:
        value: the ratio.
        low: lower end of its 95 % confidence interval.
        high: upper end.
        rounds: how many rounds it comes from.
    """

    value: float
    low: float
    high: float
    rounds: int


def ratio_of(other: Runs, first: Runs, seed: int = 0) -> Ratio:
    """The latency of `other` over that of `first`, from runs of the same rounds (`measuring.time_in_turn`).

    The two runs of a round share what the machine was doing, so each round gives one ratio, and the median over the
    rounds is the answer: a clock that changes its speed cancels out. A round counts where both runs had their cores
    throughout; all of them count where that leaves fewer than half of `FEWEST_ROUNDS`.

    The interval is a circular block bootstrap of that median (Politis and Romano, "A circular block-resampling
    procedure for stationary data", 1992): rounds are drawn in runs of neighbours, because rounds close in time are
    alike. The more they are, the longer the blocks: b = (6^(1/2) rho / (1 - rho^2))^(2/3) n^(1/3) for n rounds with an
    autocorrelation of rho at lag one (Carlstein, "The use of subseries values for estimating the variance of a general
    statistic from a stationary sequence", 1986), here of ranks, which an outlier cannot move. Percentiles of so few
    blocks are too narrow; they are taken further out, as a t distribution of n/b - 1 degrees of freedom says
    (Hesterberg, "What teachers should know about the bootstrap", 2015, section 5.2).

    What it does not cover: two loads of one network lie elsewhere in memory, and may differ for that.

    Args:
        other: runs of the network in question.
        first: runs of the network it is compared with, as many.
        seed: of the resampling.

    Raises:
        ValueError: there are no rounds, or not as many of one as of the other.
    """
    if not first.seconds or len(first.seconds) != len(other.seconds):
        message = f"no rounds to take a ratio of: {len(other.seconds)} and {len(first.seconds)} runs"
        raise ValueError(message)
    ratios = np.asarray(other.seconds) / np.asarray(first.seconds)
    good = np.asarray(undisturbed_rounds((other, first)))
    if 2 * good.sum() >= FEWEST_ROUNDS:
        ratios = ratios[good]
    block = _block_length(ratios)
    tail = _tail(ratios.size / block)
    low, high = np.quantile(_resampled_medians(ratios, block, seed), (tail, 1 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high), int(ratios.size))


def _block_length(values: FloatArray) -> int:
    """How many neighbours to draw at a time; 1 where they do not depend on one another."""
    ranks = np.argsort(np.argsort(values)) - (values.size - 1) / 2
    total = float(ranks @ ranks)
    correlation = float(np.clip(ranks[1:] @ ranks[:-1] / total if total else 0.0, 0.0, _MOST_CORRELATED))
    wanted = (6**0.5 * correlation / (1 - correlation**2)) ** (2 / 3) * values.size ** (1 / 3)
    return max(1, min(round(float(wanted)), values.size // _FEWEST_BLOCKS))


def _tail(blocks: float) -> float:
    """The share of resampled medians to leave out at each end, by how many blocks there are."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    freedom = max(1.0, blocks - 1)
    # the quantile of t: Abramowitz and Stegun, 26.7.5
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * (1 + 1 / freedom) ** 0.5)


def _resampled_medians(values: FloatArray, block: int, seed: int) -> FloatArray:
    """The median of every resample, shape (resamples,)."""
    generator = np.random.default_rng(seed)
    size = values.size
    blocks = -(-size // block)
    medians: list[FloatArray] = []
    fewest, most = _RESAMPLES
    left = min(most, max(fewest, _MOST_DRAWN // size))
    while left:
        count = min(left, max(1, _DRAWN_AT_ONCE // size))
        starts = generator.integers(0, size, (count, blocks, 1))
        drawn = ((starts + np.arange(block)) % size).reshape(count, -1)[:, :size]
        medians.append(np.median(values[drawn], axis=1))
        left -= count
    return np.concatenate(medians)
