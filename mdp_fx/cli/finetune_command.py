"""`mdp-fx finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from mdp_fx.cli import options, training

_LOGITS = 0.5
"""Weight of a teacher's outputs where only the teacher is named."""


@click.command("finetune")
@options.model_argument()
@click.option("--data", metavar="SPEC", help="Training data: imagefolder:PATH or package.module:make_loader.")
@click.option("--val", metavar="SPEC", help="Validation data, in the same forms.")
@click.option("--teacher", metavar="MODEL", help="Dense network that teaches; weights half unless set.")
@click.option("--teacher-arch", metavar="MODEL", help="Network of the teacher's state dict.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Epochs.  [default: 10]")
@click.option("--rate", type=click.FloatRange(min=0), metavar="X", help="Highest learning rate.  [default: 0.1]")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Batch of one process.  [default: 128]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with further keys; options come before it.")
@click.option("-o", "--output", metavar="PATH", help="Slim network to write.  [default: <model>-tuned.pt]")
@training.training_options
@click.option("--trust-pickle", is_flag=True, help="Load the teacher's pickle even with foreign classes.")
@options.output_format
def command(
    model: str,
    data: str | None,
    val: str | None,
    teacher: str | None,
    teacher_arch: str | None,
    epochs: int | None,
    rate: float | None,
    batch: int | None,
    seed: int | None,
    config: Path | None,
    output: str | None,
    overrides: tuple[str, ...],
    folder: str | None,
    device: str | None,
    precision: str | None,
    resume: bool,
    force: bool,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Fine-tune MODEL, a slim.pt, and write a slim.pt again.

    A run keeps its checkpoint and logs in a folder; killed at any moment, it goes on from there with --resume and ends
    with the same weights. On several GPUs or machines start it with `accelerate launch -m mdp_fx finetune MODEL`.
    """
    from mdp_fx.train.config_file import read_config

    further = training.given(
        model=model,
        output=output,
        folder=folder,
        device=device,
        precision=precision,
        seed=seed,
        data__train=data,
        data__val=val,
        data__batch=batch,
        tune__epochs=epochs,
        tune__rate=rate,
        distill__teacher=teacher,
        distill__teacher_arch=teacher_arch,
    )
    plain = read_config(config, overrides, {k: v for k, v in further.items() if not k.startswith("distill.")})
    # Where only the teacher is named, its outputs teach.
    defaults = {"distill.logits": _LOGITS} if teacher is not None and not plain.distill.features else {}
    if output is None and plain.output is None:
        further["output"] = f"{Path(model).stem}-tuned.pt"
    read = read_config(config, overrides, further, defaults)
    training.run_command(
        read,
        prune=False,
        source=config,
        resume=resume,
        force=force,
        trust_pickle=trust_pickle,
        as_json=as_json,
        verbose=verbose,
    )
