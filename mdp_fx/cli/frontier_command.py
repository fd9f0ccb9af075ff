"""`mdp-fx frontier`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mdp_fx.cli import loading, options
from mdp_fx.cli.pattern_options import pattern_options, patterns
from mdp_fx.cli.score_options import load_scores, scores_option
from mdp_fx.errors import InputError

if TYPE_CHECKING:
    from mdp_fx.cli.console import Reporter
    from mdp_fx.passes.search_space import SearchSpace
    from mdp_fx.report.facts import Prediction
    from mdp_fx.report.frontier import Curve

_COSTS = ("latency", "params", "macs")
"""Costs of a network; a saved search space may have others."""

_OUTPUTS = {"save_space", "force", "as_json", "verbose"}


class _Command(click.Command):
    """Remembers the options as they were written, so that the next command can be given the same."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        written = list(args)
        rest = super().parse_args(ctx, args)
        ctx.meta["written"] = self.make_parser(ctx).parse_args(written)[0]
        return rest


@click.command("frontier", cls=_Command)
@options.model_argument("source")
@click.option("--cost", metavar="NAME", default="latency", show_default=True, help="What to trade importance for.")
@click.option(
    "--points", type=click.IntRange(min=2), metavar="N", default=100, show_default=True, help="Most points to compute."
)
@options.method_option()
@options.restrictions
@click.option("--plot", type=click.Path(path_type=Path), help="Also plot the curve: a .html file, or .png.")
@click.option("--save-space", type=click.Path(path_type=Path), help="Also write the search space, for mdp-fx solve.")
@options.target_options
@options.fill_option
@options.input_options
@options.scoring_options
@scores_option
@options.step_option
@pattern_options
@options.seed_option
@options.force_option
@options.front_end_option
@options.model_options
@options.output_format
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    cost: str,
    points: int,
    method: str,
    min_keep: float | None,
    fixed: dict[str, int],
    keep_blocks: tuple[str, ...],
    plot: Path | None,
    save_space: Path | None,
    force: bool,
    as_json: bool,
    verbose: bool,
    **of_model: Any,
) -> None:
    """Show how much importance SOURCE keeps at every latency: the whole curve, with its knees.

    The points are the corners of the curve's upper hull: each keeps the most importance for its latency. Between two of
    them may lie further structures, below the line that joins them: mdp-fx solve decides at any budget. It also takes
    --max-removed, a number that the sweep cannot hold.

    SOURCE is a MODEL, as for mdp-fx prune, or a JSON file with a search space, as for mdp-fx solve. A MODEL is measured
    on the target, but not pruned; what is known from earlier runs is not measured again.
    """
    from mdp_fx.cli.console import Reporter, print_json, show
    from mdp_fx.files import holds_json, together
    from mdp_fx.report.frontier import Curve, check_plot, frontier_tables, write_plot

    saved = Path(source).suffix.lower() == ".json" or holds_json(source)
    if saved and (wrong := [name for name in of_model if name in ctx.meta["written"]]):
        wrong = [param.opts[0] for param in ctx.command.params if param.name in wrong]
        raise InputError(f"{source} is a search space, measured and scored already: leave out {', '.join(wrong)}")
    if not saved and cost not in _COSTS:
        raise InputError(f"no cost {cost!r} to sweep; a network has {', '.join(_COSTS)}")
    loading.check_outputs({"--plot": plot, "--save-space": save_space}, force, [source])
    restrictions = {"min_keep": min_keep, "fixed": fixed, "keep_blocks": keep_blocks}
    with Reporter(verbose).running() as reporter:
        if plot is not None:
            check_plot(plot)
        if saved:
            found = _read(source, restrictions, reporter)
        else:
            timed = cost == "latency" or save_space is not None
            found = _measure(source, restrictions, reporter, timed=timed, **of_model)
        from mdp_fx.passes.frontier import frontier

        reporter.stage("sweep")
        points_of = frontier(found.space, cost, method=method, most=points)
        curve = Curve(found.name, found.space, cost, method, points_of, found.about, found.warnings)
        reporter.stage("write")
        with together():
            if plot is not None:
                write_plot(curve, plot)
            if save_space is not None:
                curve.space.save(save_space)
    written = {kind: str(path) for kind, path in (("plot", plot), ("space", save_space)) if path is not None}
    if as_json:
        print_json(curve.to_json() | {"written": written})
        return
    follow_up = _follow_up(ctx, source, saved, curve)
    show(*frontier_tables(curve, follow_up, written, verbose=verbose))


class _Source(NamedTuple):
    """What is swept, and what is known of it."""

    name: str
    space: SearchSpace
    about: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _read(source: str, restrictions: dict[str, Any], reporter: Reporter) -> _Source:
    reporter.stage("read the search space")
    from mdp_fx.passes.restrict import restrict
    from mdp_fx.passes.search_space import SearchSpace

    return _Source(Path(source).name, restrict(SearchSpace.load(Path(source)), **restrictions))


def _measure(
    source: str,
    restrictions: dict[str, Any],
    reporter: Reporter,
    *,
    timed: bool,
    target: str,
    threads: int | None,
    dtype: str,
    fill: Any,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    importance: str | None,
    data: str | None,
    loss: str | None,
    scores: Path | None,
    step: int,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    backbone_only: bool,
    seed: int,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
) -> _Source:
    reporter.stage("load the network")
    from mdp_fx.latency.targets import get_target

    device = get_target(target, threads, dtype, fill=fill, batch=batch)
    known = load_scores(scores)
    model = loading.load_to_score(source, arch, trust_pickle, shapes, batch, data, loss, seed)
    from mdp_fx.api import search_space
    from mdp_fx.report.tables import prediction_notes
    from mdp_fx.run_report import accuracy_warning
    from mdp_fx.scoring import importance_kind

    found: list[Prediction] = []
    space = search_space(
        model.loaded.module,
        model.inputs,
        target=target if timed else None,
        threads=threads,
        dtype=dtype,
        fill=fill,
        importance=importance,
        data=model.data,
        loss=model.loss,
        scores=known,
        step=step,
        keep=keep,
        only=patterns(only, backbone_only, model.loaded.module),
        front_end=front_end,
        seed=seed,
        stage=reporter.stage,
        progress=reporter.measured,
        predicted=found.append,
        **restrictions,
    )
    kind = importance_kind(importance, model.data, known)
    about = (f"{kind} importance, batch {batch}", *([device.fingerprint()] if timed else []))
    has_data = model.data is not None or (known is not None and known.batches > 0)
    warning = accuracy_warning(kind, has_data, model.loaded.pretrained)
    rests_on = [f"{label}: {text}" for each in found for label, text, _ in prediction_notes(each, verbose=False)]
    return _Source(model.loaded.name, space, (*about, *rests_on), (warning,))


def _follow_up(ctx: click.Context, source: str, saved: bool, curve: Curve) -> str:
    """The command that prunes to the suggested point, or decides on it, with the options that were given here."""
    if saved:
        from mdp_fx.cli.solve_command import command as following
    else:
        from mdp_fx.cli.prune_command import command as following
    names = {param.name for param in following.params} - _OUTPUTS
    words = ["mdp-fx", str(following.name), source, *_budget(curve, saved)]
    for param in ctx.command.params:
        value = ctx.meta["written"].get(param.name)
        if param.name not in names or value is None:
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [param.opts[0]] if each is True else [param.opts[0], each]
    return shlex.join(words)


def _budget(curve: Curve, saved: bool) -> list[str]:
    """The cost of the suggested point, rounded up to what reads well."""
    from mdp_fx.passes.search_space import digits

    value = max(curve.suggestion.cost, 0.001)  # a budget of nothing is none
    if curve.unit == "us" and not saved:
        text = f"{digits(value / 1000, math.ceil)}ms"
    else:
        text = digits(value, math.ceil) + ("us" if curve.unit == "us" else "")
    if curve.cost == "latency" and saved:
        return ["--budget", text]
    return [f"--{curve.cost}", text] if curve.cost in (*_COSTS, "memory") else ["--limit", f"{curve.cost}={text}"]
