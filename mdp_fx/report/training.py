"""What a training run found out, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mdp_fx.report import cells


@dataclass(frozen=True)
class Accuracy:
    """Shares of the examples whose label is the first guess, or among the first five; `examples` of them."""

    top1: float
    top5: float
    examples: int


@dataclass(frozen=True)
class TrainReport:
    """Everything `mdp-fx train` and `mdp-fx finetune` tell.

    Attributes:
        model: what was trained, `output` the slim network, `folder` the run.
        dense: accuracy of the dense network on some validation batches; None where it was not estimated.
        pruned: accuracy on the same batches after pruning, before any further training.
        final: accuracy on the validation data at the end; None without validation data.
        best: the best one of all validations, shares of the examples.
        epochs: epochs trained, `steps` in all, by `processes` processes.
        device: where, and `precision` in which number format.
        latency: the facts of the pruning run; None for a network that was pruned before.
        resumed: step that the run was taken up at; 0 where it was not.
        seed: of everything random.
        seconds: of training, over all times it was taken up.
        warnings: what the user should know.
    """

    model: str
    output: str
    folder: str
    dense: Accuracy | None
    pruned: Accuracy | None
    final: Accuracy | None
    best: float | None
    epochs: int
    steps: int
    processes: int
    device: str
    precision: str
    latency: dict[str, Any] | None
    resumed: int
    seed: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def train_tables(report: TrainReport) -> Iterator[RenderableType]:
    """The report of a training run, part by part."""
    shown = f"top-1 {cells.share(report.final.top1)}" if report.final is not None else "accuracy not measured"
    yield Text(f"{report.model}: {shown}", style="bold")
    processes = cells.plural(report.processes, "process", "es")
    yield Text(f"{processes} on {report.device}, {report.precision}, seed {report.seed}", style="dim")
    yield Text("")
    rows = {"dense": report.dense, "pruned": report.pruned, "fine-tuned": report.final}
    if any(found is not None for found in rows.values()):
        table = cells.table("", "top-1", "top-5", "examples")
        for name, found in rows.items():
            if found is not None:
                table.add_row(name, cells.share(found.top1), cells.share(found.top5), f"{found.examples}")
        yield table
        yield Text("")
    notes = [("warning", text, "yellow") for text in report.warnings]
    taken_up = f", taken up at step {report.resumed}" if report.resumed else ""
    notes.append(("trained", f"{report.epochs} epochs, {report.steps} steps, {report.seconds:.0f} s{taken_up}", ""))
    notes.append(("log", f"{report.folder}/log.jsonl", ""))
    notes.append(("wrote", report.output, "green"))
    yield cells.Notes(tuple(notes))
