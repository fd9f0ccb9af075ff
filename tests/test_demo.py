"""The demo, with the least training that shows that it works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import mdp_fx
from mdp_fx import demo
from mdp_fx.latency import Effort, measuring


@pytest.fixture
def digits() -> demo.Digits:
    pytest.importorskip("sklearn")
    return demo.load_digits()


def test_digits_are_split_once_and_scaled(digits: demo.Digits) -> None:
    assert digits.train_images.shape == (1347, 1, demo.SIZE, demo.SIZE)
    assert digits.test_images.shape == (450, 1, demo.SIZE, demo.SIZE)
    assert digits.train_images.min() == -1
    assert digits.train_images.max() <= 1
    assert torch.bincount(digits.test_labels).min() >= 43  # stratified
    images = {image.numpy().tobytes() for image in digits.train_images}
    assert sum(image.numpy().tobytes() in images for image in digits.test_images) == 0


def test_batches_are_every_digit_once(digits: demo.Digits) -> None:
    batches = list(digits.batches(torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in batches] == [64] * 21 + [3]
    counts = torch.bincount(torch.cat([labels for _, labels in batches]))
    assert torch.equal(counts, torch.bincount(digits.train_labels))


def test_training_learns(digits: demo.Digits) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(demo.SIZE**2, 10))
    assert demo.accuracy(network, digits) < 0.3
    demo.train(network, digits, epochs=3, rate=2e-3)
    assert demo.accuracy(network, digits) > 0.85
    assert not network.training


def test_the_demo_leaves_its_files(
    digits: demo.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))
    few = torch.arange(128)
    small = demo.Digits(
        digits.train_images[few], digits.train_labels[few], digits.test_images[few], digits.test_labels[few]
    )
    monkeypatch.setattr(demo, "load_digits", lambda: small)
    quick = Effort(min_runs=3, max_runs=3, max_time_s=0.02)
    monkeypatch.setattr(measuring, "_REGION_EFFORT", quick)
    monkeypatch.setattr(measuring, "_PATIENT_EFFORT", quick)
    folder = tmp_path / "out"
    facts = demo.run(folder, epochs=1, tuning_epochs=1, step=128)
    names = ["diff.json", "diff.txt", "model.pt", "recipe.json", "slim.onnx", "slim.pt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    slim = mdp_fx.load(folder / "slim.pt")
    assert demo.accuracy(slim.eval(), small) == facts["tuned"]
    diff = json.loads((folder / "diff.json").read_text())
    assert diff["params"][1] == sum(parameter.numel() for parameter in slim.parameters()) < diff["params"][0]
    assert "conv1" in (folder / "diff.txt").read_text()
    out, err = capsys.readouterr()
    assert "On the test digits" in out
    assert "fine-tune the slim network" in err
