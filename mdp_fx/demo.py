"""The demo: train a ResNet on real digits, prune it to half of its latency, fine-tune it, compare.

`python -m mdp_fx.demo FOLDER` leaves model.pt, slim.pt, slim.onnx, recipe.json, diff.txt and diff.json in FOLDER.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import mdp_fx
from mdp_fx.cli.console import Reporter, render, show
from mdp_fx.errors import InputError, MdpFxError
from mdp_fx.files import atomic_write

SIZE = 32
"""Height and width that the 8 x 8 digits are enlarged to."""

BATCH = 64


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: images of shape (N, 1, 32, 32) with values in [-1, 1], labels of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The training set once, in random order."""
        for chosen in torch.split(torch.randperm(len(self.train_images), generator=generator), BATCH):
            if len(chosen) > 1:  # batch norm needs two samples
                yield self.train_images[chosen], self.train_labels[chosen]


def load_digits() -> Digits:
    """Reads the digits from scikit-learn's own package; a quarter of them is the test set.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        msg = "the demo needs scikit-learn: pip install 'mdp-fx[demo]'"
        raise InputError(msg) from error
    found = datasets.load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.tensor(found.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=found.target)
    return Digits(images[train], labels[train], images[test], labels[test])


def build_network() -> nn.Module:
    """torchvision's ResNet-18 for one channel and ten classes.

    Raises:
        InputError: torchvision is not installed.
    """
    try:
        from torchvision.models import resnet18
    except ImportError as error:
        msg = "the demo needs torchvision: pip install 'mdp-fx[demo]'"
        raise InputError(msg) from error
    network: nn.Module = resnet18(weights=None, num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return network


def train(network: nn.Module, digits: Digits, epochs: int, rate: float, seed: int = 0) -> None:
    """Trains with AdamW and one cycle of the learning rate; leaves the network in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * sum(1 for _ in digits.batches(torch.Generator()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for images, labels in digits.batches(generator):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(network(images), labels))
            optimizer.step()
            schedule.step()
    network.eval()


def accuracy(network: nn.Module, digits: Digits) -> float:
    """Share of the test images that a network in eval mode classifies correctly."""
    with torch.no_grad():
        answers = network(digits.test_images).argmax(dim=1)
    return float((answers == digits.test_labels).float().mean())


def run(folder: Path, *, epochs: int = 8, tuning_epochs: int = 3, step: int = 16) -> dict[str, float]:
    """Runs the demo, prints what it finds, and leaves the files in `folder`.

    Args:
        folder: made if it is not there; files of an earlier run are replaced.
        epochs: of the training.
        tuning_epochs: of the fine-tuning.
        step: channel step of the pruning.

    Returns:
        Test accuracies (dense, pruned, tuned) and measured latencies (dense_ms, slim_ms).

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    from mdp_fx.report.diff_tables import diff_tables
    from mdp_fx.report.tables import demo_tables, prune_tables

    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    digits, network = load_digits(), build_network()
    inputs = digits.test_images[:1]

    with Reporter(verbose=True).running() as reporter:
        reporter.stage(f"train ResNet-18 on {len(digits.train_images)} digits")
        train(network, digits, epochs, 2e-3)
        atomic_write(folder / "model.pt", lambda file: torch.save(network, file))
        before = accuracy(network, digits)
        result = mdp_fx.prune(
            network,
            inputs,
            latency="50%",
            threads=1,
            importance="taylor",
            data=list(digits.batches(torch.Generator().manual_seed(0))),
            step=step,
            name="ResNet-18 on digits",
            stage=reporter.stage,
            progress=reporter.measured,
        )
        pruned = accuracy(result.module, digits)
        reporter.stage("fine-tune the slim network")
        train(result.module, digits, tuning_epochs, 1e-3)
        tuned = accuracy(result.module, digits)
        reporter.stage("write")
        written = {name: str(folder / name) for name in ("slim.pt", "slim.onnx", "recipe.json", "diff.txt")}
        mdp_fx.save(result, written["slim.pt"])
        parity = mdp_fx.export_onnx(result.module, (inputs,), written["slim.onnx"], force=True)
        result.recipe.save(written["recipe.json"])
        diff = mdp_fx.diff(network, result.module, inputs, target=result.report.target, threads=1)
        text = render(*diff_tables(diff, "model.pt", "slim.pt", verbose=True))
        document = json.dumps(diff.to_json(), indent=1) + "\n"
        atomic_write(folder / "diff.txt", lambda file: file.write(text.encode()))
        atomic_write(folder / "diff.json", lambda file: file.write(document.encode()))
    files = {"slim": written["slim.pt"], "onnx": written["slim.onnx"], "recipe": written["recipe.json"]}
    show(*prune_tables(result.report, files | {"diff": written["diff.txt"]}, parity, verbose=False))
    facts = {
        "dense": before,
        "pruned": pruned,
        "tuned": tuned,
        "dense_ms": result.report.latency.dense_ms,
        "slim_ms": result.report.latency.slim_ms,
    }
    show(*demo_tables(facts, time.perf_counter() - started))
    return facts


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"))
def main(folder: Path) -> None:
    """Train a small network on real digits, prune it to 50 % of its latency, fine-tune it, compare."""
    try:
        run(folder)
    except MdpFxError as error:
        click.echo(f"mdp-fx: error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
