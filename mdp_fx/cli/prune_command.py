"""`mdp-fx prune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mdp_fx.cli import options


@click.command("prune")
@options.model_argument()
@click.option("--latency", metavar="BUDGET", help="50% of the dense latency, or 12.5ms.  [default: 50%]")
@click.option("--params", metavar="BUDGET", help="Parameters: 60%, or 4M.")
@click.option("--macs", metavar="BUDGET", help="Multiply-accumulates: 60%, or 300M.")
@options.target_options
@options.input_options
@click.option(
    "--importance",
    type=click.Choice(["l2", "l1", "bn", "taylor", "random"]),
    help="What channels are worth.  [default: taylor with --data, else l2]",
)
@click.option("--data", metavar="SPEC", help="package.module:make_loader, or imagefolder:PATH, for taylor.")
@click.option("--loss", metavar="SPEC", help="package.module:function of (outputs, targets).  [default: cross-entropy]")
@click.option(
    "--method",
    type=click.Choice(["mdp", "mgp", "mdlm", "halp", "uniform"]),
    default="mdp",
    show_default=True,
    help="How to choose.",
)
@options.step_option
@click.option("--keep", metavar="PATTERN", multiple=True, help="Modules to leave alone, repeatable.")
@click.option("--only", metavar="PATTERN", multiple=True, help="Modules to prune, repeatable.")
@click.option("--gap", metavar="PERCENT", default="0.1%", show_default=True, help="Optimality gap to stop at.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=20.0,
    show_default="20",
    help="Limit of each call of the solver.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=0,
    show_default="0",
    help="Seed of everything random.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Slim network.  [default: <model>-slim.pt]")
@click.option("--onnx", type=click.Path(path_type=Path), help="Also export it to ONNX.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Also write the recipe as JSON.")
@options.force_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    latency: str | None,
    params: str | None,
    macs: str | None,
    target: str,
    threads: int | None,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    importance: str | None,
    data: str | None,
    loss: str | None,
    method: str,
    step: int,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    gap: str,
    time_limit: float,
    seed: int,
    output: Path | None,
    onnx: Path | None,
    recipe: Path | None,
    force: bool,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Make MODEL faster: prune it to a latency budget on a target.

    MODEL is a .pt file (a pickled network, or a state dict with --arch), torchvision:NAME, timm:NAME, or
    package.module:factory. The slim network is written as <model>-slim.pt; load it with mdp_fx.load.
    """
    from mdp_fx.budgets import parse_budget
    from mdp_fx.cli.console import Reporter, print_json, show

    given = {"latency": latency, "params": params, "macs": macs}
    budgets: dict[str, Any] = {what: parse_budget(text, what) for what, text in given.items() if text is not None}
    proven = _percent(gap)
    slim_path = output or Path(f"{_stem(model)}-slim.pt")
    options.check_outputs({"--output": slim_path, "--onnx": onnx, "--recipe": recipe}, force)

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.data import load_function, load_loader
        from mdp_fx.latency.targets import get_target

        get_target(target, threads)
        criterion = load_function(loss, "loss") if loss not in (None, "cross-entropy") else None
        loaded = options.load(model, arch, trust_pickle)
        if loaded.recipe is not None:
            click.echo(f"mdp-fx: {model} is a slim network already; it is pruned further", err=True)
        inputs = options.make_inputs(shapes, batch, loaded)
        batches = load_loader(data, tuple(inputs[0].shape[1:]), batch_size=32, seed=seed) if data is not None else None

        from mdp_fx.api import prune
        from mdp_fx.checkpoint import check_savable, save_slim
        from mdp_fx.exporters.onnx_export import export_onnx
        from mdp_fx.files import together
        from mdp_fx.report.tables import prune_tables

        result = prune(
            loaded.module,
            inputs,
            **budgets,
            target=target,
            threads=threads,
            method=method,
            importance=importance,
            data=batches,
            loss=criterion,
            step=step,
            keep=keep,
            only=only,
            front_end=front_end,
            seed=seed,
            gap=proven,
            time_limit=time_limit,
            name=loaded.name,
            pretrained=loaded.pretrained,
            stage=reporter.stage,
            progress=reporter.measured,
        )
        reporter.stage("write")
        check_savable(result.module)
        with together():
            parity = export_onnx(result.module, inputs, onnx, force) if onnx is not None else None
            save_slim(slim_path, result.module, result.recipe, result.report.to_json())
            if recipe is not None:
                result.recipe.save(recipe)
    paths = {"slim": slim_path, "onnx": onnx, "recipe": recipe}
    written = {kind: str(path) for kind, path in paths.items() if path is not None}
    if as_json:
        facts = result.report.to_json()
        print_json(facts | {"written": written, "onnx_parity": asdict(parity) if parity is not None else None})
        return
    show(*prune_tables(result.report, written, parity, verbose=verbose))


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a percentage such as 0.1%", param_hint="--gap") from error
    if not 0 <= value < 1:
        raise click.BadParameter(f"{text!r} is not between 0% and 100%", param_hint="--gap")
    return value


def _stem(model: str) -> str:
    """What the slim network is called by default, in the working folder: after the file, or what is after the colon."""
    if ":" not in model or Path(model).exists():
        return Path(model).stem
    return model.rpartition(":")[2].replace("/", "_")
