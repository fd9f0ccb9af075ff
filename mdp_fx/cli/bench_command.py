"""`mdp-fx bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mdp_fx.cli import loading, options

if TYPE_CHECKING:
    from mdp_fx.cli.console import Reporter
    from mdp_fx.latency.targets import Target
    from mdp_fx.model_source import LoadedModel


@click.command("bench")
@options.model_argument("models", nargs=-1, required=True)
@options.target_options
@options.input_options
@options.time_limit_option(20, "Of timing, 20 rounds granted; it ends sooner where all are steady.")
@click.option("--memory", is_flag=True, help="Also measure peak memory, each network in a process of its own.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a bar chart: chart.html, or chart.png.")
@options.force_option
@options.model_options
@options.output_format
def command(
    models: tuple[str, ...],
    target: str,
    threads: int | None,
    dtype: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    time_limit: float,
    memory: bool,
    plot: Path | None,
    force: bool,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time MODELS in turn in the same run: median, 90th percentile, throughput, ratio over the first.

    A MODEL may also be an ONNX file (.onnx), a TensorRT engine (.engine, .plan), or layer masks of HALP or MDP (.pkl),
    which are applied to the network named before them, or by --arch. An ONNX file gets inputs of its own shapes; sizes
    that it leaves open are those of --input and --batch.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    loading.check_outputs({"--plot": plot}, force)
    if plot is not None:
        from mdp_fx.report.frontier import check_plot

        check_plot(plot)
    with Reporter(verbose).running() as reporter:
        reporter.stage("load the networks")
        from mdp_fx.latency.targets import get_target

        device = get_target(target, threads, dtype)
        found = _load(models, device, arch, trust_pickle, memory)
        inputs = _make_inputs(found, shapes, batch)
        networks = _runnable(found, inputs, reporter)
        from mdp_fx.comparison import bench

        reporter.stage("time them in turn")
        rows = bench(
            networks, inputs, target=target, threads=threads, dtype=dtype, memory=memory, time_limit=time_limit
        )
        if plot is not None:
            from mdp_fx.report.bench_chart import write_chart

            write_chart(rows, plot, target, device.fingerprint())
    written = {"plot": str(plot)} if plot is not None else {}
    if as_json:
        from mdp_fx.report.facts import PEAK_MEMORY

        facts: dict[str, Any] = {"target": target, "device": device.fingerprint(), "batch": batch}
        facts |= {"peak_memory_is": PEAK_MEMORY} if memory else {}
        facts |= {"networks": [row.to_json() for row in rows]}
        print_json(facts | {"written": written})
        return
    from mdp_fx.report.tables import bench_tables

    show(*bench_tables(rows, target, batch, written))


class _Masked(NamedTuple):
    """Layer masks, and the network that they are for."""

    dense: LoadedModel
    masks: dict[str, Any]


def _load(
    models: Sequence[str], device: Target, arch: str | None, trust_pickle: bool, memory: bool
) -> dict[str, LoadedModel | Path | _Masked]:
    """What is named on the command line, by label; files that the target runs as they are stay files."""
    from mdp_fx.comparison import check_runnable
    from mdp_fx.errors import InputError
    from mdp_fx.latency.targets import is_engine, is_onnx
    from mdp_fx.mask_file import is_mask_file, read_masks

    specs = dict(zip(_labels(models), models, strict=True))
    files = {label: Path(spec) for label, spec in specs.items() if is_onnx(Path(spec)) or is_engine(Path(spec))}
    check_runnable(files, device, memory)
    found: dict[str, LoadedModel | Path | _Masked] = {}
    dense: LoadedModel | None = None
    for label, spec in specs.items():
        if label in files:
            found[label] = files[label]
        elif is_mask_file(Path(spec)):
            masks = read_masks(spec)
            if dense is None and arch is None:
                raise InputError(f"{spec} holds layer masks: name their network before it, or with --arch")
            dense = dense or loading.load(str(arch), None, trust_pickle)
            found[label] = _Masked(dense, masks)
        else:
            dense = found[label] = loading.load(spec, arch, trust_pickle)
    return found


def _make_inputs(
    found: Mapping[str, LoadedModel | Path | _Masked], shapes: tuple[tuple[int, ...], ...], batch: int
) -> tuple[Any, ...]:
    """Example inputs that all networks take."""
    import torch

    from mdp_fx.errors import InputError
    from mdp_fx.example_inputs import random_inputs
    from mdp_fx.graph.forward import run_once

    networks = [each.dense if isinstance(each, _Masked) else each for each in found.values()]
    loaded = [each for each in networks if not isinstance(each, Path)]
    if not loaded:
        made = [(batch, *shape) for shape in loading.input_shapes(shapes)]
        return random_inputs(made, [torch.float32] * len(made))
    own = {each.name: loading.input_shapes((), each.recipe) for each in loaded if each.recipe is not None}
    if not shapes and len(set(own.values())) > 1:
        names = ", ".join(f"{name} {'x'.join(map(str, shape[0]))}" for name, shape in own.items())
        raise InputError(f"the slim networks were made for inputs that differ ({names}): say which with --input")
    recipe = next((each.recipe for each in loaded if each.recipe is not None), None)
    inputs = loading.make_inputs(shapes, batch, loaded[0], recipe)
    for each in loaded:
        run_once(each.module, inputs, each.name)
    return inputs


def _runnable(
    found: Mapping[str, LoadedModel | Path | _Masked], inputs: tuple[Any, ...], reporter: Reporter
) -> dict[str, Any]:
    """Networks and files by label; masks have become slim networks."""
    from mdp_fx.layer_masks import apply_masks

    def made(each: LoadedModel | Path | _Masked) -> Any:
        if isinstance(each, _Masked):
            return apply_masks(each.dense.module, each.masks, inputs, stage=reporter.stage).module
        return each if isinstance(each, Path) else each.module

    return {label: made(each) for label, each in found.items()}


def _labels(models: Sequence[str]) -> list[str]:
    """Names of the rows: a network that is given twice, to see the noise, gets two."""
    return [
        model if model not in models[:i] else f"{model} ({models[: i + 1].count(model)})"
        for i, model in enumerate(models)
    ]
