"""`mdp-fx export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mdp_fx.cli import options


@click.command("export")
@options.model_argument()
@click.option("--to", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
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
    force: bool,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Export MODEL to ONNX with a dynamic batch, and check it against torch on ONNX Runtime."""
    from mdp_fx.cli.console import Reporter, print_json, show

    options.check_outputs({"--output": output}, force, [model])
    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        loaded = options.load(model, arch, trust_pickle)
        inputs = options.make_inputs(shapes, batch, loaded)
        options.check_forward(loaded, inputs)
        from mdp_fx.exporters.onnx_export import export_onnx

        reporter.stage("export and check")
        parity = export_onnx(loaded.module, inputs, output, force)
    if as_json:
        print_json({"format": form, "written": {form: str(output)}} | asdict(parity))
        return
    from mdp_fx.report.tables import export_tables

    show(*export_tables(str(output), parity))
