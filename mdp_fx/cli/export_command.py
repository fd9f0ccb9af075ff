"""`mdp-fx export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mdp_fx.cli import loading, options


@click.command("export")
@options.model_argument()
@click.option(
    "--to", "form", type=click.Choice(["onnx", "tensorrt"]), default="onnx", show_default=True, help="Format."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--dtype", type=options.DTYPES, help="Number format to write.  [default: MODEL's own, float32 for tensorrt]"
)
@click.option("--whole", is_flag=True, help="Export a detector with its boxes, for one image, not its raw maps.")
@options.input_options
@options.force_option
@options.model_options
@options.output_format
def command(
    model: str,
    form: str,
    output: Path,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    dtype: str | None,
    whole: bool,
    force: bool,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Export MODEL, and check what is written against torch.

    To ONNX with a dynamic batch, checked in ONNX Runtime; or to a TensorRT engine for this machine's GPU, which is
    fastest at the batch size asked for and takes smaller ones. Of a detector the backbone and heads are exported, from
    normalised images to raw maps.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    if whole and (form != "onnx" or dtype is not None):
        raise click.UsageError("--whole is for --to onnx in MODEL's own number format.")
    loading.check_outputs({"--output": output}, force, [model])
    with Reporter(verbose).running() as reporter:
        from mdp_fx.graph.forward import run_once

        reporter.stage("load the network")
        loaded = loading.load(model, arch, trust_pickle)
        inputs = loading.make_inputs(shapes, batch, loaded)
        run_once(loaded.module, inputs, loaded.name)
        from mdp_fx.detectors.subject import subject_of
        from mdp_fx.report.engine import engine_tables
        from mdp_fx.report.tables import export_tables

        reporter.stage("export and check")
        if form == "tensorrt":
            from mdp_fx.exporters.tensorrt_engine import export_tensorrt
            from mdp_fx.latency.cache_folders import cache_folder

            cache = cache_folder("tensorrt")
            subject = subject_of(loaded.module, inputs)
            built = export_tensorrt(
                subject.runnable(), subject.inputs, output, dtype=dtype or "float32", timing_cache=cache, force=force
            )
            facts = asdict(built)
            tables = engine_tables(str(output), facts, verbose=verbose)
        else:
            from mdp_fx.detectors.onnx import export_onnx
            from mdp_fx.graph.casting import cast_network

            module = loaded.module
            if dtype is not None:
                subject = subject_of(module, inputs)
                module, inputs = cast_network(subject.runnable(), subject.inputs, dtype)
            parity = export_onnx(module, inputs, output, force, whole=whole)
            facts = asdict(parity)
            tables = export_tables(str(output), parity)
    if as_json:
        print_json({"format": form, "written": {form: str(output)}} | facts)
        return
    show(*tables)
