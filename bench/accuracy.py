"""Which method keeps most accuracy at the same measured latency? `python bench/accuracy.py --help`

Every row (data set, network, budget, method, seed) is committed to the JSON as it is done, so a stopped run goes on
where it was. All networks are pruned to the same share of the dense network's measured latency (ONNX Runtime on the
CPU, one thread), and fine-tuned alike.
"""

from __future__ import annotations

import fcntl
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import click
import torch
from torch import Tensor, nn

from bench import accuracy_methods as methods
from bench import readme_tables
from bench.accuracy_plot import plot
from bench.accuracy_tasks import TASKS, Epochs, Images, Task
from bench.common import MET, load, machine, save, training_precision, write
from mdp_fx.files import atomic_write
from mdp_fx.train.batch_norm import recalibrate_batch_norm
from mdp_fx.train.config import TuneConfig
from mdp_fx.train.pruning import Pruner
from mdp_fx.train.run_state import seed_all
from mdp_fx.train.schedule import Schedule
from mdp_fx.train.trainer import Trainer, make_accelerator

BUDGETS = (0.5, 0.3, 0.2)
SMALL_BUDGETS = (0.3,)
TRAINING = ("batch", "rate", "dense_rate", "timed_batch", "step")
"""What is recorded of a task."""
IMPORTANCE_BATCHES = 30
RECALIBRATION_BATCHES = 10
KEPT = Path(__file__).parent.parent / "build" / "accuracy"
"""Dense baselines, which are trained once."""

Key = tuple[str, str, float, str, int]


def accuracy(network: nn.Module, images: Images) -> float:
    """Top-1 on the test images, of a network on their device, in eval mode."""
    network.eval()
    with torch.no_grad():
        right = [
            network(x).argmax(1) == y
            for x, y in zip(images.test.split(500), images.test_labels.split(500), strict=True)
        ]
    return float(torch.cat(right).float().mean())


class Bench:
    """One task on one device.

    Args:
        task: what is compared on.
        device: "cpu", "cuda" or "auto".
        epochs: of fine-tuning, None for the task's own; `dense_epochs` likewise, of the dense network.

    Attributes:
        precision: number format of training; accuracy is that of float32.
    """

    def __init__(self, task: Task, device: str, epochs: int | None, dense_epochs: int | None) -> None:
        self.task, self.epochs = task, epochs or task.epochs
        self.dense_epochs = dense_epochs or task.dense_epochs
        self.precision = training_precision(device)
        self.accelerator = make_accelerator(device, self.precision)
        self.images = task.load()
        self.placed = self.images.to(self.accelerator.device)
        self.paths: dict[tuple[str, int], methods.TorchPruning] = {}
        self.timed = torch.randn(task.timed_batch, *task.input, generator=torch.Generator().manual_seed(0))

    def train(self, network: nn.Module, epochs: int, rate: float, seed: int, pruner: Pruner | None = None) -> nn.Module:
        """Trains a network; with a pruner it is pruned on the way. Returns the network, which is another one then."""
        data = Epochs(self.placed, self.task.batch, seed, self.task.padding, self.task.flip)
        config = TuneConfig(epochs=epochs, rate=rate, nesterov=True, weight_decay=5e-4, warmup=min(1.0, epochs / 10))
        options: dict[str, Any] = {"epoch_steps": len(data), "shape": self.task.input, "classes": 10}
        trainer = Trainer(self.accelerator, network, config, **options)
        for epoch in range(epochs):
            seed_all(seed + epoch)
            batches = data.epoch(epoch)
            for _ in range(len(data)):
                trainer.after_backward = pruner.after_backward if pruner is not None else None
                loss = trainer.train_step(batches)
                if not torch.isfinite(torch.tensor(loss)):
                    msg = f"the loss is {loss} at step {trainer.step + 1}"
                    raise ValueError(msg)
                if pruner is not None:
                    pruner.step()
                    if pruner.done:
                        network, pruner = pruner.finish().module, None
                        trainer = Trainer(self.accelerator, network, config, step=trainer.step, **options)
        return trainer.bare()

    def dense(self) -> tuple[nn.Module, float, float]:
        """The trained dense network on the CPU, its accuracy, and the seconds that training took (0 if it was kept)."""
        network = self.task.build()
        path = KEPT / f"{self.task.data}-{self.task.network}-{self.dense_epochs}-{self.precision}.pt"
        seconds = 0.0
        if path.exists():
            network.load_state_dict(torch.load(path, weights_only=True))
        else:
            begin = time.perf_counter()
            network = self.train(network, self.dense_epochs, self.task.dense_rate, 0)
            seconds = time.perf_counter() - begin
            KEPT.mkdir(parents=True, exist_ok=True)
            atomic_write(path, lambda file: torch.save(network.state_dict(), file))
        return network.cpu().eval(), accuracy(network.to(self.accelerator.device), self.placed), seconds

    def row(self, dense: nn.Module, share: float, method: str, seed: int) -> dict[str, Any]:
        """Prunes by one method, measures, fine-tunes."""
        begin = time.perf_counter()
        dense = dense.cpu().eval()
        network, fault = methods.faults(method, lambda: self.pruned(dense, share, method, seed))
        pruning = time.perf_counter() - begin
        if network is None:
            return {"fault": fault, "prune_seconds": pruning}
        found: dict[str, Any] = {"latency": methods.latency_share(dense, network.cpu().eval(), self.timed)}
        found["params_share"] = _count(network) / _count(dense)
        network.to(self.accelerator.device)
        if method not in methods.SCHEDULED:
            found["before"] = accuracy(network, self.placed)
            data = Epochs(self.placed, self.task.batch, seed, self.task.padding, self.task.flip)
            state = {name: value.clone() for name, value in network.state_dict().items()}
            recalibrate_batch_norm(network, data.epoch(0), RECALIBRATION_BATCHES)
            found["before_recalibrated"] = accuracy(network, self.placed)
            network.load_state_dict(state)
            begin = time.perf_counter()
            network = self.train(network, self.epochs, self.task.rate, seed)
        found["after"] = accuracy(network.to(self.accelerator.device), self.placed)
        seconds = time.perf_counter() - begin
        return found | {"epochs": self.epochs, "prune_seconds": pruning, "tune_seconds": seconds}

    def pruned(self, dense: nn.Module, share: float, method: str, seed: int) -> nn.Module:
        """The pruned network; one that is pruned on a schedule is fine-tuned by then as well."""
        if method in methods.THEIRS:
            if (method, seed) not in self.paths:
                batches = self.importance_batches(seed)
                self.paths[method, seed] = methods.TorchPruning(method, dense, self.timed, batches, self.task.step)
            return self.paths[method, seed].at(share)
        if method not in methods.SCHEDULED:
            batches = self.importance_batches(seed)
            return methods.prune(method, dense, self.timed, share, batches, self.task.step, seed)
        steps = self.epochs * (len(self.images.train) // self.task.batch)
        searched, masks = methods.SCHEDULED[method]
        gather = max(1, min(40, steps // (3 * methods.STEPS)))
        pruner = Pruner(
            dense,
            self.timed,
            latency=share,
            threads=methods.THREADS,
            schedule=Schedule(min(methods.STEPS, steps // 3), "exp2", 0, gather),
            masks="soft" if masks == "soft" else "hard",
            method=searched,
            step=self.task.step,
            seed=seed,
        )
        return self.train(pruner.module, self.epochs, self.task.rate, seed, pruner)

    def importance_batches(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Batches that every method scores by."""
        data = Epochs(self.images, self.task.batch, seed, 0, flip=False)
        return [batch for batch, _ in zip(data.epoch(0), range(IMPORTANCE_BATCHES), strict=False)]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def key_of(row: dict[str, Any]) -> Key:
    """What a row is of."""
    return row["data"], row["network"], row["budget"], row["method"], row["seed"]


def dense_key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What dense network a row is of."""
    return row["data"], row["network"], row["precision"]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every data set, network and budget: each method's mean accuracy and its spread over the seeds, best first.

    Rows above the budget do not count.
    """
    found = []
    for where in sorted({key_of(row)[:3] for row in rows}, key=str):
        low, high = (limit * where[2] for limit in MET)
        measured = [row for row in rows if key_of(row)[:3] == where and "after" in row]
        inside = [row for row in measured if row["latency"]["share"] <= high]
        table = {}
        for name in methods.METHODS:
            if mine := [row for row in inside if row["method"] == name]:
                after = [row["after"] for row in mine]
                before = [row["before_recalibrated"] for row in mine if "before_recalibrated" in row]
                table[name] = {
                    "after": statistics.mean(after),
                    "spread": max(after) - min(after),
                    "before_recalibrated": statistics.mean(before) if before else None,
                    "latency_share": statistics.mean([row["latency"]["share"] for row in mine]),
                    "seeds": len(mine),
                }
        order = sorted(table, key=lambda name: -table[name]["after"])
        entry: dict[str, Any] = {"data": where[0], "network": where[1], "budget": where[2], "best": order[:1]}
        entry["methods"] = {name: table[name] for name in order}
        if own := table.get("mdp"):
            others = [name for name in order if not name.startswith("mdp")]
            entry["mdp_beaten_beyond_the_spread_by"] = [
                name
                for name in others
                if table[name]["after"] > own["after"] + max(table[name]["spread"], own["spread"])
            ]
        outside = [row for row in measured if not low <= row["latency"]["share"] <= high]
        entry["outside_the_budget"] = [(row["method"], row["seed"], row["latency"]["share"]) for row in outside]
        found.append(entry)
    return found


def check_same_training(before: dict[str, Any], task: Task, epochs: int, dense_epochs: int) -> None:
    """Rows are compared with each other: all of a task are trained alike.

    Raises:
        SystemExit: rows made earlier were not.
    """
    for name, wanted in (("rows", epochs), ("dense", dense_epochs)):
        for row in before.get(name, ()):
            if (row["data"], row["network"]) == (task.data, task.network) and row.get("epochs", wanted) != wanted:
                raise SystemExit(
                    f"{task.network} on {task.data}: the results hold {name} of {row['epochs']} epochs, not {wanted}: "
                    "give the same number, or remove them"
                )


@contextmanager
def alone() -> Iterator[None]:
    """Other processes wait meanwhile, where they come here too."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def record(file: str, dense_row: dict[str, Any], row: dict[str, Any]) -> None:
    """Adds a row, and that of the dense network it came from, to what is there; other processes may add theirs."""
    with alone():
        before = load(file)
        rows = {key_of(each): each for each in before.get("rows", ())} | {key_of(row): row}
        dense_rows = {dense_key(each): each for each in before.get("dense", ())}
        trained = {"seconds": dense_row["seconds"] or dense_rows.get(dense_key(dense_row), {}).get("seconds")}
        dense_rows[dense_key(dense_row)] = dense_row | trained
        ordered = sorted(rows.values(), key=lambda each: str(key_of(each)))
        facts = {"threads": methods.THREADS, "dense": list(dense_rows.values()), "summary": summary(ordered)}
        save(file, facts | {"rows": ordered}, quiet=True)
        write(f"{file}.svg", plot(ordered, list(dense_rows.values())))


@click.command()
@click.option("--small", is_flag=True, help="Fashion-MNIST, some of the methods, in its own result file.")
@click.option("--task", "names", multiple=True, type=click.Choice(list(TASKS)), help="Repeatable.  [default: CIFAR-10]")
@click.option(
    "--method",
    "chosen",
    multiple=True,
    type=click.Choice(methods.METHODS),
    help="Repeatable.  [default: all, some of them if --small]",
)
@click.option("--budget", "budgets", multiple=True, type=float, help="Share of the latency, repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1), show_default=True, help="Repeatable.")
@click.option("--epochs", type=int, help="Of fine-tuning.  [default: the task's]")
@click.option("--dense-epochs", type=int, help="Of the dense network.  [default: the task's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--rows", type=int, help="Stop after so many new rows.")
def main(
    small: bool,
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    budgets: tuple[float, ...],
    seeds: tuple[int, ...],
    epochs: int | None,
    dense_epochs: int | None,
    device: str,
    rows: int | None,
) -> None:
    """Compares the methods, and writes bench/results/accuracy.json and its plot."""
    file = "accuracy_small" if small else "accuracy"
    before = load(file)
    begin, left = time.perf_counter(), rows
    for name in names or (("fashion-mnist",) if small else ("cifar10-resnet20", "cifar10-resnet56")):
        bench: Bench | None = None
        task = TASKS[name]
        check_same_training(before, task, epochs or task.epochs, dense_epochs or task.dense_epochs)
        wanted = [
            (task.data, task.network, budget, method, seed)
            for seed in seeds
            for budget in budgets or (SMALL_BUDGETS if small else BUDGETS)
            for method in chosen or (methods.SMALL if small else methods.METHODS)
        ]
        for key in wanted:
            if left is not None and left <= 0:
                break
            if key in {key_of(row) for row in load(file).get("rows", ())}:
                continue
            if bench is None:
                bench = Bench(task, device, epochs, dense_epochs)
                with alone():
                    dense, top1, seconds = bench.dense()
                dense_row = {"data": task.data, "network": task.network, "precision": bench.precision, "top1": top1}
                dense_row |= {"epochs": bench.dense_epochs, "seconds": seconds or None}
                dense_row |= {each: getattr(task, each) for each in TRAINING}
            _, _, budget, method, seed = key
            row = dict(zip(("data", "network", "budget", "method", "seed"), key, strict=True))
            row |= {"device": str(bench.accelerator.device), "cpu": machine()["cpu"], "precision": bench.precision}
            row |= bench.row(dense, budget, method, seed)
            record(file, dense_row, row)
            print(row, flush=True)
            left = None if left is None else left - 1
    readme_tables.main()
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
