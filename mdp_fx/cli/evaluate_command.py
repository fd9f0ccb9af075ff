"""`mdp-fx evaluate`."""

from __future__ import annotations

import click

from mdp_fx.cli import loading, options


@click.command("evaluate")
@options.model_argument()
@click.option("--data", metavar="SPEC", required=True, help="voc:PATH:split, or package.module:make_loader.")
@click.option(
    "--classes",
    metavar="NAMES",
    help="cat,dog,...: in the order of the labels.  [default: those of the folder, sorted]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", default=8, show_default=True, help="Images at a time."
)
@options.model_options
@options.output_format
def command(
    model: str,
    data: str,
    classes: str | None,
    batch: int,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how well a detector MODEL detects: average precision per class and its mean.

    It is COCO's average precision, at an overlap of 0.5 and over overlaps of 0.5 to 0.95. MODEL is a detector as
    torchvision has them; images come as they are, and it brings them to its own size. voc:PATH alone is the test split.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.data import load_detection_loader
        from mdp_fx.detection import evaluate
        from mdp_fx.report.detection import detection_tables

        names = [name.strip() for name in classes.split(",")] if classes is not None else None
        loader = load_detection_loader(data, batch_size=batch, classes=names)
        loaded = loading.load(model, arch, trust_pickle)
        reporter.stage("detect")
        scores = evaluate(loaded.module, loader, classes=names)
    if as_json:
        print_json({"model": loaded.name, "data": data, **scores})
        return
    show(*detection_tables(scores, loaded.name, data, loaded.pretrained))
