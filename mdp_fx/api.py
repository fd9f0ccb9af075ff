"""The public functions on networks: prune, search_space, apply, save, load, inspect, profile, diff, bench."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mdp_fx.budgets import Budget, parse_budget
from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.comparison import bench as bench
from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import RecipeError
from mdp_fx.example_inputs import random_inputs, recipe_types
from mdp_fx.latency.network import exact_sum
from mdp_fx.latency.table_target import Fill, TableTarget
from mdp_fx.latency.tables import table_for
from mdp_fx.latency.targets import get_target
from mdp_fx.layer_masks import MaskedResult
from mdp_fx.outcome import SolverOptions
from mdp_fx.passes.arguments import check_limits, check_restrictions
from mdp_fx.passes.base import Stage, batch_of, silent
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import choose
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import Loss
from mdp_fx.passes.restrict import named_restrictions, restrict
from mdp_fx.passes.search_space import SearchSpace
from mdp_fx.pipeline import Stopwatch, analyse, as_inputs, first_example, rewrite
from mdp_fx.predicted_search import PredictedSearch, predicted_profile, search_for
from mdp_fx.recipe import Recipe, fingerprint
from mdp_fx.report.diff import Diff
from mdp_fx.report.diff import diff as compare_networks
from mdp_fx.report.facts import Inspection, Prediction, Profile, PruneReport, RegionRow
from mdp_fx.run_report import inspection, prune_recipe, prune_report
from mdp_fx.scores import Scores
from mdp_fx.scoring import analyse_and_score, importance_kind
from mdp_fx.whole_network import dense_runner, measure_network

MeasureProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        module: the slim network: a graph in eval mode, or a detector of the class and in the mode of the dense one.
        recipe: what was kept and removed; `apply` repeats it on the same dense network.
        report: the facts of the run.
        space: the search space that was decided on, with the budgets that the solver was given (latency a little below
            what was asked, see `budget_search.AIM`), without restrictions: they can be chosen anew.
    """

    module: nn.Module
    recipe: Recipe
    report: PruneReport
    space: SearchSpace


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    latency: str | float | Budget | None = None,
    params: str | float | Budget | None = None,
    macs: str | float | Budget | None = None,
    target: str = "onnxruntime:cpu",
    threads: int | None = None,
    dtype: str = "float32",
    fill: Fill | None = None,
    method: str = "mdp",
    importance: str | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    scores: Scores | None = None,
    step: int = 8,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    min_keep: float | None = None,
    fixed: Mapping[str, int] | None = None,
    keep_blocks: Collection[str] = (),
    max_removed: int | None = None,
    front_end: Choice = "auto",
    seed: int = 0,
    gap: float = 1e-3,
    time_limit: float = 20.0,
    name: str | None = None,
    pretrained: bool = True,
    stage: Stage = silent,
    progress: MeasureProgress | None = None,
) -> PruneResult:
    """Prunes a network to a measured latency.

    Args:
        model: the trained dense network; left unchanged.
        example_inputs: a tensor, or the positional arguments of its forward; axis 0 is the batch that counts.
        latency: "50%" of the dense latency, "12.5ms", or a share as a number; 50 % where no budget is given.
        params: budget of parameters: "60%", "4M", or a share.
        macs: budget of multiply-accumulates, likewise.
        target: where latency counts, one of those that `targets` lists: measured on a device, or predicted from a
            table without any run ("titan-v", or "table:" and the path of a CSV file; example inputs then only say the
            batch).
        threads: CPU threads of the target, None for one per physical core.
        dtype: number format that it runs in: "float32", "float16" or "bfloat16"; the slim network keeps its own.
        fill: "analytic" estimates convolutions that a table does not have; without it they are an error.
        method: "mdp", "mgp", "mdlm", "halp" or "uniform".
        importance: one of `mdp_fx.passes.importance.KINDS`; "taylor" by default with data, "l2" without.
        data: batches of (inputs, targets), for the kinds that need them.
        loss: of (outputs, targets), cross-entropy by default; a detector is scored by its own losses.
        scores: importance that was made before, in place of the three above.
        step: channel step.
        keep: patterns of module names to leave alone.
        only: patterns of module names to prune.
        min_keep: share of its units that every channel group keeps at least.
        fixed: channel groups held at one of the sizes that the step offers.
        keep_blocks: names of blocks that must stay.
        max_removed: most blocks to remove, those inside of a removed block included.
        front_end: "symbolic" tracing, torch.export ("export"), or "auto": the first of them that can follow the model.
        seed: of everything random.
        gap: relative optimality gap the solver may stop at.
        time_limit: seconds for each call of the solver.
        name: of the model, for the report.
        pretrained: False adds a warning that the weights are random.
        stage: called with the name of each stage as it starts.
        progress: called with (done, total, text) while measuring.

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    check_restrictions(min_keep, fixed, keep_blocks)
    check_limits(gap, time_limit, threads, seed, max_removed)
    budgets = _budgets(latency, params, macs)
    kind = importance_kind(importance, data, scores)
    inputs = as_inputs(example_inputs)
    batch = batch_of(inputs)
    device = get_target(target, threads, dtype, fill=fill, batch=batch)
    watch = Stopwatch(stage)
    options = SolverOptions(method, gap, time_limit, seed, min_keep, dict(fixed or {}), tuple(keep_blocks), max_removed)
    with table_for(device) as table, named_restrictions(min_keep, fixed, keep_blocks):
        subject = subject_of(model, inputs)
        analysis, choices, worth = analyse_and_score(
            *(subject, kind, data, loss, step, keep, only, front_end, seed, watch, progress),
            all_examples=device.can_run,
            scores=scores,
        )
        timed = subject.inputs
        if not device.can_run:
            timed = analysis.graph.example_inputs  # Those few that the network was traced with: no other is needed.
        search = search_for(analysis, choices, worth, device, table, timed, batch, options, watch, progress)
        outcome = search.run(budgets.get("latency"), {k: v for k, v in budgets.items() if k != "latency"})
    module = subject.returned(analysis, outcome.module)
    watch("")
    recipe = prune_recipe(model, analysis, outcome, kind, inputs if subject.is_part else timed, device.name)
    report = prune_report(
        name or type(model).__name__,
        analysis,
        outcome,
        device,
        importance=kind,
        batch=batch,
        has_data=data is not None or (scores is not None and scores.batches > 0),
        pretrained=pretrained,
        seconds=watch.seconds,
    )
    return PruneResult(module, recipe, report, outcome.space)


def search_space(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: str | None = "onnxruntime:cpu",
    threads: int | None = None,
    dtype: str = "float32",
    fill: Fill | None = None,
    importance: str | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    scores: Scores | None = None,
    step: int = 8,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    min_keep: float | None = None,
    fixed: Mapping[str, int] | None = None,
    keep_blocks: Collection[str] = (),
    front_end: Choice = "auto",
    seed: int = 0,
    stage: Stage = silent,
    progress: MeasureProgress | None = None,
    predicted: Callable[[Prediction], None] | None = None,
) -> SearchSpace:
    """What `prune` decides on, without a decision: for `solve`, `frontier`, or a file (`SearchSpace.save`).

    Args:
        model: the trained dense network; left unchanged.
        example_inputs: a tensor, or the positional arguments of its forward; axis 0 is the batch that counts.
        target: where latency counts, measured as `prune` does and calibrated by whole networks, or predicted; with
            None nothing is measured, and the space has the costs "params" and "macs" only.
        threads: see `prune`, as for all that follow.
        fill: how to estimate what a table does not have.
        importance: what channels are worth.
        data: batches of (inputs, targets).
        loss: of (outputs, targets).
        scores: importance that was made before, in place of the three above.
        step: channel step.
        keep: patterns of module names to leave alone.
        only: patterns of module names to prune.
        min_keep: share of its units that every channel group keeps at least.
        fixed: channel groups held at a size.
        keep_blocks: names of blocks that must stay.
        front_end: what makes the graph.
        seed: of everything random.
        stage: called with the name of each stage as it starts.
        progress: called with (done, total, text) while measuring.
        predicted: told how far the table goes, where the target only predicts.

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    check_restrictions(min_keep, fixed, keep_blocks)
    kind = importance_kind(importance, data, scores)
    inputs = as_inputs(example_inputs)
    batch = batch_of(inputs)
    device = None if target is None else get_target(target, threads, dtype, fill=fill, batch=batch)
    options = SolverOptions(min_keep=min_keep, fixed=dict(fixed or {}), keep_blocks=tuple(keep_blocks))
    with table_for(device) as table:
        subject = subject_of(model, inputs)
        analysis, choices, worth = analyse_and_score(
            *(subject, kind, data, loss, step, keep, only, front_end, seed, stage, progress),
            all_examples=device is None or device.can_run,
            scores=scores,
        )
        if device is None:
            space = build_space(analysis, choices, worth, {})
            return restrict(space, min_keep=min_keep, fixed=fixed, keep_blocks=keep_blocks)
        search = search_for(analysis, choices, worth, device, table, subject.inputs, batch, options, stage, progress)
        if isinstance(search, PredictedSearch) and predicted is not None:
            predicted(search.prediction())
        return search.measured_space()


def _budgets(
    latency: str | float | Budget | None, params: str | float | Budget | None, macs: str | float | Budget | None
) -> dict[str, Budget]:
    given = {"latency": latency, "params": params, "macs": macs}
    if all(value is None for value in given.values()):
        given["latency"] = "50%"
    return {what: parse_budget(value, what) for what, value in given.items() if value is not None}


def apply(
    model: nn.Module, recipe: Recipe, example_inputs: Any | None = None, *, front_end: Choice = "auto"
) -> nn.Module:
    """Applies a recipe to the dense network it was made for.

    Args:
        model: the dense network.
        recipe: from `prune` or a file.
        example_inputs: inputs to trace with; random ones of the recipe's shapes by default.
        front_end: "symbolic", "export", or "auto": the one that the recipe was made with.

    Raises:
        RecipeError: the recipe belongs to other weights or another network.
    """
    if recipe.fingerprint != fingerprint(model):
        msg = "the recipe belongs to another model: the weights it was made for have another fingerprint"
        raise RecipeError(msg)
    inputs = example_inputs
    if inputs is None:
        inputs = random_inputs(recipe.input_shapes, recipe_types(recipe))
    subject = subject_of(model, as_inputs(inputs))
    front_end = recipe.front_end if front_end == "auto" else front_end
    analysis = analyse(subject.module, subject.inputs, front_end=front_end)
    slim = rewrite(analysis, recipe.kept, recipe.removed_blocks, training=model.training)
    return subject.returned(analysis, slim)


def save(result: PruneResult | MaskedResult, path: str | os.PathLike[str]) -> None:
    """Writes a slim network as slim.pt; `load` reads it in any process.

    Raises:
        OutputError: the file cannot be written.
    """
    save_slim(path, result.module, result.recipe, result.report.to_json())


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The slim network in a slim.pt: trainable, on the CPU, in eval mode; code of yours is not needed.

    A graph, or a detector of torchvision's own class.

    `load_slim` also returns its recipe and report.

    Raises:
        ModelError: it is no slim.pt of ours.
    """
    return load_slim(path).module


def diff(
    a: nn.Module,
    b: nn.Module,
    example_inputs: Any,
    *,
    target: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    fill: Fill | None = None,
    front_end: Choice = "auto",
    progress: MeasureProgress | None = None,
) -> Diff:
    """Compares two networks module by module; with a target also by predicted latency."""
    inputs = as_inputs(example_inputs)
    subjects = [subject_of(each, inputs) for each in (a, b)]
    if subjects[0].is_part:
        a, b, inputs = subjects[0].module, subjects[1].module, subjects[0].inputs
    if target is None:
        return compare_networks(a, b, inputs)
    device = get_target(target, threads, dtype, fill=fill, batch=batch_of(inputs))
    with table_for(device) as table:
        sides = [
            exact_sum(found.regions, lambda dim: dim.size, device, table, progress)
            for found in (analyse(each, inputs, front_end=front_end, all_examples=device.can_run) for each in (a, b))
        ]
    inputs = inputs if device.can_run else first_example(inputs)
    return compare_networks(a, b, inputs, latency=(sides[0], sides[1]))


def inspect(
    model: nn.Module, example_inputs: Any, *, front_end: Choice = "auto", name: str | None = None
) -> Inspection:
    """Says what of a network can be pruned, and why the rest cannot."""
    subject = subject_of(model, as_inputs(example_inputs))
    found = inspection(subject.analyse(front_end), name or type(model).__name__)
    return replace(found, frozen=(*found.frozen, *subject.taken_apart()))


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: str = "onnxruntime:cpu",
    threads: int | None = None,
    dtype: str = "float32",
    fill: Fill | None = None,
    step: int = 8,
    front_end: Choice = "auto",
    name: str | None = None,
    stage: Stage = silent,
    progress: MeasureProgress | None = None,
) -> Profile:
    """Measures the latency tables that pruning a network needs, and says where its time goes."""
    subject = subject_of(model, as_inputs(example_inputs))
    inputs = subject.inputs
    device = get_target(target, threads, dtype, fill=fill, batch=batch_of(inputs))
    analysis = analyse(subject.module, inputs, front_end=front_end, all_examples=device.can_run, step=step, stage=stage)
    if isinstance(device, TableTarget):
        return predicted_profile(analysis, device, batch_of(inputs), name or type(model).__name__)
    stage("prepare the dense network")
    with table_for(device) as table, dense_runner(analysis, device, inputs) as runner:
        parts = (analysis, choose(analysis), device, table, inputs, runner)
        found = measure_network(*parts, stage=stage, progress=progress)
        where = str(table.path)
    return Profile(
        model=name or type(model).__name__,
        target=device.name,
        device=device.fingerprint(),
        dense_ms=1e3 * found.whole_s,
        sum_ms=1e3 * found.sum_s,
        calibration=found.calibration.factor,
        calibration_per_region_us=1e6 * found.calibration.per_region_s,
        regions=tuple(
            RegionRow(
                region.name,
                region.key.split(" ")[0],
                1e3 * found.regions_s[region.name],
                found.regions_s[region.name] / found.sum_s,
                round(region.macs(region.dense_sizes)),
            )
            for region in analysis.regions
        ),
        regions_measured=found.tables.measured,
        regions_cached=found.tables.cached,
        table=where,
        expected_error=found.tables.expected_error,
    )
