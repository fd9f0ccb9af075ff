"""The facts of a run, put together from what its stages found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mdp_fx.graph.axes import free_dims
from mdp_fx.latency.targets import Target
from mdp_fx.outcome import Outcome, selection_changes
from mdp_fx.passes.channel_groups import find_frozen
from mdp_fx.passes.choices import Analysis
from mdp_fx.recipe import Recipe, fingerprint
from mdp_fx.report.facts import (
    BRANCH,
    BUSY,
    BlockRow,
    Change,
    FrozenRow,
    GroupRow,
    Inspection,
    LatencyFacts,
    PruneReport,
)

LOW_SHARE = 0.2
"""A layer cut below this share of its channels is warned of."""

MOST_LOW = 3
"""So many of them are named, the lowest ones."""

LOW, HIGH = 0.95, 1.03
"""Measured over asked latency outside of which a run is warned of."""

FAR_OFF = 0.08
"""A prediction that is off by more than this share is warned of."""

COUNTED = 0.95
"""A prediction that counts less than this share of a network's multiply-accumulates is warned of."""


def prune_report(
    name: str,
    analysis: Analysis,
    outcome: Outcome,
    target: Target,
    *,
    importance: str,
    batch: int,
    has_data: bool,
    pretrained: bool,
    seconds: Mapping[str, float],
) -> PruneReport:
    """Everything a user wants to know of a run."""
    asked, calibration = outcome.asked_s, outcome.calibration
    latency = LatencyFacts(
        measured_ms=1e3 * outcome.slim.median_s if outcome.slim is not None else None,
        dense_ms=1e3 * outcome.dense_s,
        asked_ms=_ms(asked),
        asked_share=asked / outcome.dense_s if asked is not None else None,
        predicted_ms=_ms(outcome.predicted_s),
        dense_sum_ms=_ms(outcome.dense_sum_s),
        calibration=calibration.factor if calibration is not None else None,
        calibration_per_region_us=1e6 * calibration.per_region_s if calibration is not None else None,
        rounds=outcome.rounds,
        regions_measured=outcome.regions_measured,
        regions_cached=outcome.regions_cached,
        disturbed=outcome.slim.disturbed if outcome.slim is not None else 0.0,
        spread=outcome.slim.spread if outcome.slim is not None else 0.0,
    )
    removed = set(outcome.selection.removed_blocks)
    groups = tuple(
        GroupRow(group.name, group.size, len(outcome.kept[group.name]), group.modules) for group in analysis.groups
    )
    dense_macs = sum(region.macs(region.dense_sizes) for region in analysis.regions)
    return PruneReport(
        model=name,
        method=outcome.certificate.method,
        importance=importance,
        target=target.name,
        device=target.fingerprint(),
        threads=target.threads,
        batch=batch,
        latency=latency,
        params=Change(_count(analysis.graph.module), _count(outcome.module)),
        macs=Change(round(dense_macs), round(outcome.certificate.costs["macs"])),
        blocks=_block_rows(analysis, removed),
        groups=groups,
        frozen=_frozen_rows(analysis),
        solver=outcome.certificate.to_json(),
        warnings=tuple(_warnings(analysis, outcome, groups, has_data, pretrained, importance)),
        seconds=dict(seconds),
        front_end=analysis.graph.front_end,
        front_end_why=analysis.graph.why,
        prediction=outcome.prediction,
    )


def prune_recipe(
    model: nn.Module,
    analysis: Analysis,
    outcome: Outcome,
    importance: str,
    inputs: tuple[Any, ...],
    target: str,
) -> Recipe:
    """What repeats a run on the same dense network."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    budgets = dict(outcome.certificate.budgets)
    predicted = dict(outcome.certificate.costs)
    if outcome.asked_s is not None:
        budgets["latency"] = outcome.asked_s
    if outcome.predicted_s is not None:
        predicted["latency"] = outcome.predicted_s
    return Recipe(
        kept=outcome.kept,
        removed_blocks=list(outcome.selection.removed_blocks),
        group_sizes={group.name: group.size for group in analysis.groups},
        method=outcome.certificate.method,
        target=target,
        budgets=budgets,
        predicted=predicted,
        certificate=outcome.certificate.to_json(),
        importance=importance,
        step=analysis.step,
        input_shapes=[list(value.shape) for value in tensors],
        input_dtypes=[str(value.dtype).removeprefix("torch.") for value in tensors],
        fingerprint=fingerprint(model),
        versions=versions(),
        front_end=analysis.graph.front_end,
    )


def versions() -> dict[str, str]:
    """Versions of mdp-fx and the libraries that decide what it does."""
    from importlib import metadata

    found = {"mdp-fx": _package_version(), "torch": torch.__version__}
    for package in ("onnx", "onnxruntime", "onnxruntime-gpu", "highspy", "pyomo", "torchvision", "timm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _package_version() -> str:
    import mdp_fx

    return str(mdp_fx.__version__)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _block_rows(analysis: Analysis, removed: set[str]) -> tuple[BlockRow, ...]:
    return tuple(
        BlockRow(
            block.name,
            block.name in removed,
            block.reason,
            "residual block" if block.kept is not None else BRANCH,
        )
        for block in (*analysis.blocks.removable, *analysis.blocks.kept)
    )


def _frozen_rows(analysis: Analysis) -> tuple[FrozenRow, ...]:
    return tuple(FrozenRow(row.where, row.size, row.reason) for row in find_frozen(analysis.graph))


def accuracy_warning(importance: str, has_data: bool, pretrained: bool) -> str:
    """What importance does not say of accuracy."""
    if not pretrained:
        return "the weights are random: this says how fast the network gets, not how accurate it stays"
    if not has_data:
        return f"accuracy is unknown: {importance} importance uses no data; pass --data for taylor, and fine-tune"
    return "accuracy of the slim network is unknown until it is fine-tuned and evaluated"


def _low(groups: Sequence[GroupRow]) -> Iterable[str]:
    """One warning of all groups of which little is left, with the lowest of them."""
    low = sorted(
        (row for row in groups if 0 < row.after < LOW_SHARE * row.before), key=lambda row: row.after / row.before
    )
    kept = [f"{row.name} keeps {row.after} of {row.before} channels" for row in low[:MOST_LOW]]
    if kept:
        further = f", {len(low) - len(kept)} more below {100 * LOW_SHARE:.0f} %" if len(low) > len(kept) else ""
        yield f"{', '.join(kept)}{further}: accuracy may collapse there"


def _warnings(
    analysis: Analysis, outcome: Outcome, groups: Sequence[GroupRow], has_data: bool, pretrained: bool, importance: str
) -> Iterable[str]:
    gone = {n for b in analysis.blocks.removable if b.name in outcome.selection.removed_blocks for n in b.nodes}
    alive = {str(n.target) for n in analysis.graph.module.graph.nodes if n.name not in gone}
    # What a removed block takes along is not there to collapse.
    yield from _low([row for row in groups if any(member in alive for member in row.members)])
    if outcome.prediction is not None and outcome.prediction.counted_macs < COUNTED:
        yield (
            f"the table counts {100 * outcome.prediction.counted_macs:.1f} % of the multiply-accumulates, those of "
            "convolutions: what the network really takes, and gains, is another matter"
        )
    yield accuracy_warning(importance, has_data, pretrained)
    frozen = [row for row in _frozen_rows(analysis) if not row.reason.startswith("output of the network")]
    if frozen:
        yield f"{len(frozen)} axes are frozen and were not pruned; `mdp-fx inspect` says why"
    for fact in analysis.graph.baked_in:
        yield f"tracing baked in {fact}"
    yield from _latency_warnings(analysis, outcome)
    gap = outcome.certificate.gap
    if outcome.certificate.status == "time limit" and gap is not None:
        yield f"the solver stopped at its time limit with a gap of {100 * gap:.2g} %"


def _latency_warnings(analysis: Analysis, outcome: Outcome) -> Iterable[str]:
    if outcome.slim is None:
        return
    disturbed = outcome.slim.disturbed
    if disturbed > BUSY:
        what = f"the processor was shared or slowed down in {100 * disturbed:.0f} % of the timed runs"
        yield f"{what}: run it on a quiet machine"
    if outcome.asked_s is None:
        return
    rounds = f"after {outcome.rounds} round{'s' * (outcome.rounds > 1)}"
    if outcome.ratio > HIGH:
        yield f"the measured latency is {100 * (outcome.ratio - 1):.0f} % above the budget {rounds}"
    elif outcome.ratio < LOW and selection_changes(outcome.selection, analysis):
        yield f"the measured latency is {100 * (1 - outcome.ratio):.0f} % below the budget {rounds}: more could be kept"
    if outcome.miss > FAR_OFF:
        yield f"the predicted latency is {100 * outcome.miss:.0f} % off the measured one: see mdp-fx profile"


def inspection(analysis: Analysis, name: str) -> Inspection:
    """What of an analysed network can be pruned, and why the rest cannot."""
    dense = sum(region.macs(region.dense_sizes) for region in analysis.regions)
    open_macs = sum(
        region.macs(region.dense_sizes) for region in analysis.regions if any(free_dims(axis) for axis in region.axes)
    )
    open_params = sum(
        tensor.numel()
        for _, tensor, types in analysis.graph.stored()
        if isinstance(tensor, nn.Parameter) and any(free_dims(axis) for axis in types)
    )
    return Inspection(
        model=name,
        groups=tuple(GroupRow(g.name, g.size, g.size, g.modules) for g in analysis.groups),
        blocks=_block_rows(analysis, set()),
        frozen=_frozen_rows(analysis),
        prunable_params_share=open_params / max(1, _count(analysis.graph.module)),
        prunable_macs_share=open_macs / dense if dense else 0.0,
        baked_in=analysis.graph.baked_in,
        front_end=analysis.graph.front_end,
        front_end_why=analysis.graph.why,
    )
