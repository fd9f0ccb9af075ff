"""What a teacher adds to a loss."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn

from mdp_fx.checkpoint import load_slim
from mdp_fx.errors import InputError
from mdp_fx.pipeline import analyse
from mdp_fx.train.distillation import Teacher, check_teacher, correspondences, feature_loss, logits_loss
from tests.cli.tiny import make_network
from tests.train.small_runs import SHAPE, slim_file


def test_logits_loss_is_the_divergence_times_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]])
    q, p = torch.softmax(student / 3, 1), torch.softmax(teacher / 3, 1)
    assert torch.isclose(logits_loss(student, teacher, 3.0), 9 * (p * (p.log() - q.log())).sum())
    assert float(logits_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_feature_loss_compares_the_kept_units() -> None:
    teacher = torch.arange(24.0).reshape(2, 4, 3)
    kept = torch.tensor([1, 3])
    assert float(feature_loss(teacher[:, kept], teacher, kept)) == 0
    assert float(feature_loss(torch.zeros(2, 2, 3), teacher, kept)) == pytest.approx(1.0)


def test_features_correspond_by_group(tmp_path: Path) -> None:
    dense, slim = make_network(), load_slim(slim_file(tmp_path / "slim.pt"))
    pairs = correspondences(
        analyse(dense, torch.zeros(2, *SHAPE)), slim.module, slim.recipe.kept, slim.recipe.group_sizes
    )
    assert {pair.group for pair in pairs} == slim.recipe.kept.keys()
    assert all(pair.kept.tolist() == list(range(16)) for pair in pairs)
    assert {pair.module for pair in pairs} == {"block.2", "block.4"}


def test_other_kept_units_of_the_teacher_are_other_features(tmp_path: Path) -> None:
    dense, slim = make_network(), load_slim(slim_file(tmp_path / "slim.pt"))
    analysis = analyse(dense, torch.zeros(2, *SHAPE))
    pairs = correspondences(analysis, slim.module, slim.recipe.kept, slim.recipe.group_sizes)
    inputs, losses = torch.randn(4, *SHAPE), {}
    for shifted in (False, True):
        used = [type(pair)(pair.group, pair.module, pair.kept + 16) if shifted else pair for pair in pairs]
        teacher = Teacher(
            analysis.graph.module,
            slim.module,
            logits=0.0,
            temperature=1.0,
            features=2.0,
            pairs=used,
            autocast=contextlib.nullcontext,
        )
        losses[shifted] = float(teacher((inputs,), slim.module(inputs), torch.tensor(1.0)).detach())
        teacher.close()
    assert losses[False] > 1
    assert losses[True] != pytest.approx(losses[False])


def test_a_network_taught_by_itself_has_nothing_to_learn() -> None:
    network = make_network()
    analysis = analyse(network, torch.zeros(2, *SHAPE))
    whole = {group.name: list(range(group.size)) for group in analysis.groups}
    student = analyse(network, torch.zeros(2, *SHAPE)).graph.module
    pairs = correspondences(analysis, student, whole, {name: len(units) for name, units in whole.items()})
    teacher = Teacher(
        analysis.graph.module,
        student,
        logits=0.25,
        temperature=2.0,
        features=1.0,
        pairs=pairs,
        autocast=contextlib.nullcontext,
    )
    inputs = torch.randn(4, *SHAPE)
    assert float(teacher((inputs,), student(inputs), torch.tensor(1.0))) == pytest.approx(0.75, abs=1e-5)


def test_a_teacher_of_another_structure_is_told(tmp_path: Path) -> None:
    slim = load_slim(slim_file(tmp_path / "slim.pt"))
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"a channel group .* that the slim network was not pruned from"):
        correspondences(analyse(other, torch.zeros(2, *SHAPE)), slim.module, slim.recipe.kept, slim.recipe.group_sizes)
    wider = {name: size + 8 for name, size in slim.recipe.group_sizes.items()}
    with pytest.raises(InputError, match=r"has 32 units, and 40 in the network that is pruned: .* distill.features"):
        correspondences(analyse(make_network(), torch.zeros(2, *SHAPE)), slim.module, slim.recipe.kept, wider)
    with pytest.raises(InputError, match="the teacher rejects an input of shape 2x3x2x2"):
        check_teacher(other, slim.module, (torch.zeros(2, 3, 2, 2),))


def test_checking_a_teacher_leaves_every_part_in_its_mode() -> None:
    teacher, student = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train() for _ in range(2))
    student[1].eval()
    check_teacher(teacher, student, (torch.zeros(2, 3),))
    assert [part.training for part in teacher.modules()] == [True] * 3
    assert [part.training for part in student.modules()] == [True, True, False]
