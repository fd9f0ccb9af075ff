"""What a pruning run found out, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

BUSY = 0.9
"""Share of disturbed runs above which a run is warned of."""

BRANCH = "branch of a concatenation"
"""Kind of a block that is joined with others; the other kind adds to them."""


@dataclass(frozen=True)
class LatencyFacts:
    """Latency of the dense and the slim network on the target, milliseconds; medians of runs in turn.

    Attributes:
        asked_ms: the budget, None where latency was not limited.
        asked_share: the budget over the dense latency, None where latency was not limited.
        predicted_ms: predicted latency of the slim network, None where latency was neither limited nor only predicted.
        measured_ms: measured latency of the slim network, None on a target that only predicts.
        dense_ms: latency of the dense network: measured, or predicted where the target only predicts.
        dense_sum_ms: sum over the dense network's cost regions, each measured alone.
        calibration: factor from a region alone to the same in a network.
        calibration_per_region_us: microseconds that each region takes beside that.
        rounds: how often the solver was asked.
        regions_measured: points of the tables measured in this run, but for those at exactly the sizes of a network.
        regions_cached: table points that were known before.
        disturbed: share of the timed rounds in which a processor was shared or slowed down.
        spread: interquartile range of the slim network's runs over their median.
    """

    measured_ms: float | None
    dense_ms: float
    asked_ms: float | None = None
    asked_share: float | None = None
    predicted_ms: float | None = None
    dense_sum_ms: float | None = None
    calibration: float | None = None
    calibration_per_region_us: float | None = None
    rounds: int = 1
    regions_measured: int = 0
    regions_cached: int = 0
    disturbed: float = 0.0
    spread: float = 0.0

    @property
    def slim_ms(self) -> float:
        """Latency of the slim network: measured, or predicted where nothing is."""
        return self.measured_ms if self.measured_ms is not None else self.predicted_ms or 0.0


@dataclass(frozen=True)
class Prediction:
    """How far the table goes that latency was predicted from; nothing was run.

    Attributes:
        table: what it is.
        batch: examples at once.
        dense_per_s: predicted examples per second of the dense network.
        slim_per_s: those of the slim network, None where there is none.
        points: sizes of regions that were looked up.
        estimated_points: how many of them the table does not have.
        estimated: layers that these belong to.
        fit: how they were estimated, None where that was not allowed.
        not_counted: regions without a convolution, which no such table has: they cost 0.
        counted_macs: share of the dense network's multiply-accumulates in the other regions.
        held: channel groups for which the table has no smaller size.
    """

    table: str
    batch: int
    dense_per_s: float
    slim_per_s: float | None
    points: int
    estimated_points: int
    estimated: tuple[str, ...]
    fit: str | None
    not_counted: tuple[str, ...]
    counted_macs: float
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockRow:
    """A block: removed, kept, or not removable for a reason; a residual one or a branch of a concatenation."""

    name: str
    removed: bool
    reason: str | None = None
    kind: str = "residual block"


@dataclass(frozen=True)
class GroupRow:
    """A channel group before and after."""

    name: str
    before: int
    after: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """An axis that cannot be pruned, and why."""

    where: str
    size: int
    reason: str


@dataclass(frozen=True)
class Change:
    """A count in the dense and the slim network."""

    dense: int
    slim: int

    @property
    def share(self) -> float:
        """Slim over dense."""
        return self.slim / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class PruneReport:
    """Everything `mdp-fx prune` tells."""

    model: str
    method: str
    importance: str
    target: str
    device: str
    threads: int
    batch: int
    latency: LatencyFacts
    params: Change
    macs: Change
    blocks: tuple[BlockRow, ...]
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    solver: dict[str, Any]
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    front_end: str = "symbolic"
    front_end_why: str = ""
    prediction: Prediction | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class MaskReport:
    """Everything `mdp-fx apply --masks` tells.

    Attributes:
        source: name of the mask file.
        layers: how many layers have a mask in it.
        params: parameters.
        groups: channel groups.
        removed_blocks: blocks that the masks close.
        warnings: where the slim network is not the masked one.
    """

    source: str
    layers: int
    params: Change
    groups: tuple[GroupRow, ...]
    removed_blocks: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """Everything `mdp-fx inspect` tells.

    Attributes:
        model: name of the network.
        groups: channel groups; `after` equals `before`.
        blocks: residual blocks, with the reason where one cannot be removed.
        frozen: axes that cannot be pruned.
        prunable_params_share: share of the parameters that some group mentions.
        prunable_macs_share: share of the multiply-accumulates in regions that some group mentions.
        baked_in: what the example inputs decided for good.
        front_end: what made the graph, and `front_end_why` the reason for that front end.
    """

    model: str
    groups: tuple[GroupRow, ...]
    blocks: tuple[BlockRow, ...]
    frozen: tuple[FrozenRow, ...]
    prunable_params_share: float
    prunable_macs_share: float
    baked_in: tuple[str, ...] = ()
    front_end: str = "symbolic"
    front_end_why: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class RegionRow:
    """A cost region and its measured latency in the dense network, milliseconds."""

    name: str
    kind: str
    ms: float
    share: float
    macs: int


@dataclass(frozen=True)
class Profile:
    """Everything `mdp-fx profile` tells.

    Attributes:
        model: name of the network, `target` and `device` what it was measured on.
        dense_ms: the dense network as a whole.
        sum_ms: its regions, each as a part of a network.
        calibration: what a region takes in a network over what it takes alone, before `calibration_per_region_us` is
            added: so it fits this network and slim ones of it.
        regions: where the time goes.
        regions_measured: points of the tables measured now, `regions_cached` those that were known. What is measured
            at exactly the sizes of a network, besides, is not counted.
        table: where they are kept.
        prediction: where the target only predicts; `calibration` is 1 then.
        expected_error: mean share by which reading a region's table between its points errs.
    """

    model: str
    target: str
    device: str
    dense_ms: float
    sum_ms: float
    calibration: float
    regions: tuple[RegionRow, ...]
    regions_measured: int
    regions_cached: int
    table: str
    prediction: Prediction | None = None
    expected_error: float = 0.0
    calibration_per_region_us: float = 0.0

    @property
    def residual_ms(self) -> float:
        """What the network takes beyond its regions: calls, changes of layout, memory-bound glue."""
        return self.dense_ms - self.sum_ms

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {"residual_ms": self.residual_ms}


PEAK_MEMORY = "resident peak of a process that loads and runs the network alone, less what it had before that"
"""What the peak memory of a network is."""


LOADING = 0.02
"""Share by which two loadings of one network may differ, as they lie elsewhere in memory; small networks by more."""


@dataclass(frozen=True)
class BenchRow:
    """Latency of one network, timed in turn with the others.

    Attributes:
        name: of the network.
        median_ms: median of its undisturbed runs, milliseconds; `p90_ms` their 90th percentile.
        runs: how many those are.
        per_second: examples in a second, from the median.
        ratio: its latency over the first network's: the median over the rounds, of which each has a run of both. It may
            differ a little from the ratio of the medians, which what happened to the machine between rounds moves.
        interval: 95 % confidence interval of the ratio; None for the first network.
        inputs: shapes of its inputs.
        disturbed: share of the rounds in which the processor was shared or slowed down.
        memory_bytes: peak memory of a process that loads and runs it alone, None where that was not measured.
        memory_failure: why it could not be measured.
    """

    name: str
    median_ms: float
    p90_ms: float
    runs: int
    per_second: float
    ratio: float
    interval: tuple[float, float] | None = None
    inputs: tuple[tuple[int, ...], ...] = ()
    disturbed: float = 0.0
    memory_bytes: int | None = None
    memory_failure: str | None = None

    @property
    def proven(self) -> bool:
        """Whether it is known to be faster or slower than the first network, by more than a loading of it may be."""
        return self.interval is not None and not (
            self.interval[0] <= 1.0 + LOADING and self.interval[1] >= 1.0 - LOADING
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {"proven": self.proven}


@dataclass(frozen=True)
class TargetRow:
    """A target, and what this machine has of it.

    Attributes:
        name: the name in the registry.
        available: whether it can be used here.
        dtypes: number formats that it can run in; empty where its package is missing.
        why_not: what is missing and how to come by it, None where it is available.
        device: what the device is called, None where it is not available, as for all that follow.
        alignment: channel multiple at which its latency steps.
        fingerprint: what measurements on it are kept under.
    """

    name: str
    available: bool
    dtypes: tuple[str, ...]
    why_not: str | None = None
    device: str | None = None
    alignment: int | None = None
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)
