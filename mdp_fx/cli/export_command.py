"""`mdp-fx export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mdp_fx.cli import options


@click.command("export")
@click.argument("model")
@click.option("--to", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@options.input_options
@options.force_option
@options.model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
) -> None:
    """Export MODEL to ONNX with a dynamic batch, and check it against torch on ONNX Runtime."""
    from mdp_fx.cli.console import print_json
    from mdp_fx.files import check_output

    check_output(output, force)
    loaded = options.load(model, arch, trust_pickle)
    from mdp_fx.exporters.onnx_export import export_onnx

    parity = export_onnx(loaded.module.eval(), options.make_inputs(shapes, batch, loaded.recipe), output, force)
    if as_json:
        print_json({"format": form, "path": str(output)} | asdict(parity))
        return
    batch_text = "dynamic batch" if parity.dynamic_batch else f"fixed batch of {batch}"
    click.echo(
        f"wrote {output}: {batch_text}, agrees with torch on ONNX Runtime "
        f"(max abs error {parity.max_abs_error:.1e}, relative {parity.max_rel_error:.1e})"
    )
