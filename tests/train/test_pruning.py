"""Pruning inside of a training loop: schedules, masks that hold or give back, slicing, resuming, what is refused."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mdp_fx
from mdp_fx import whole_network
from mdp_fx.budget_search import BudgetSearch
from mdp_fx.errors import BudgetError, DataError, InputError, ModelError, ParityError
from mdp_fx.passes.importance import KINDS
from mdp_fx.recipe import fingerprint
from mdp_fx.train.pruning import Pruner
from mdp_fx.train.schedule import Schedule
from tests.gloo import in_two_processes
from tests.train.networks import PREDICTED, batch, images, optimizer_of, small, train

STEPPED = Schedule(steps=3, curve="exp2", start=1, gather=2, every=3)


def pruner(**options: Any) -> Pruner:
    return Pruner(small(), images(), **{"latency": "40%", **PREDICTED, **options})


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_shot_prunes_once_and_slices() -> None:
    model = small()
    before = weights(model)
    found = Pruner(model, images(), latency="40%", **PREDICTED, schedule=Schedule(gather=3))
    assert train(found, optimizer_of(found), 2) == []
    (step,) = train(found, optimizer_of(found), 1)
    assert (step.number, step.steps, step.iteration) == (1, 1, 3)
    assert found.done
    assert step.predicted_s is not None
    assert step.asked_s is not None
    assert 0 < step.predicted_s <= step.asked_s * 1.001
    train(found, optimizer_of(found), 2)
    result = found.finish()
    found.module.eval()
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(found.module(x), result.module(x), atol=1e-5)
    assert result.recipe.fingerprint == fingerprint(model)
    assert result.recipe.importance == "taylor"
    assert {name: len(units) for name, units in result.recipe.kept.items()} == step.kept
    assert equal(weights(model), before), "the model itself is left as it was"
    slim = sum(parameter.numel() for parameter in result.module.parameters())
    assert slim < 0.8 * sum(parameter.numel() for parameter in model.parameters())


def test_the_result_saves_and_loads(tmp_path: Any) -> None:
    found = pruner(schedule=Schedule(gather=1))
    train(found, optimizer_of(found), 1)
    result = found.finish()
    mdp_fx.save(result, tmp_path / "slim.pt")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(mdp_fx.load(tmp_path / "slim.pt")(x), result.module(x))
    applied = mdp_fx.apply(small(), result.recipe)
    assert [p.shape for p in applied.parameters()] == [p.shape for p in result.module.parameters()]


def test_each_step_of_a_schedule_asks_for_less() -> None:
    found = pruner(schedule=STEPPED)
    steps = train(found, optimizer_of(found), STEPPED.iterations)
    assert [step.iteration for step in steps] == [3, 6, 9]
    asked = [step.asked_s for step in steps]
    dense = asked[-1] / 0.4
    assert asked == pytest.approx([dense * 0.4 ** (k / 3) for k in (1, 2, 3)])
    assert all(step.predicted_s <= step.asked_s * 1.001 for step in steps)


def test_hard_masks_hold_and_never_come_back() -> None:
    found = pruner(schedule=STEPPED)
    optimizer = optimizer_of(found)
    kept, removed = None, set[str]()
    for _ in range(STEPPED.iterations):
        for step in train(found, optimizer, 1):
            now = {name: set(units) for name, units in found.state_dict()["kept"].items()}
            assert step.returned == 0
            assert removed <= set(step.removed_blocks)
            assert kept is None or all(now[name] <= kept[name] for name in now)
            kept, removed = now, set(step.removed_blocks)
    assert kept is not None
    assert any(len(units) < 16 for units in kept.values())


def test_what_is_masked_hard_has_no_gradient_and_no_effect() -> None:
    found = pruner(schedule=Schedule(gather=1), fixed={"one.first.0": 8})
    train(found, optimizer_of(found), 1)
    kept = found.state_dict()["kept"]["one.first.0"]
    gone = [unit for unit in range(24) if unit not in kept]
    assert gone
    layer = found.module.get_submodule("one.first.0.layer")
    assert isinstance(layer.weight, Tensor)
    assert not layer.weight[gone].any()
    found.module.eval()
    x = torch.randn(2, 3, 8, 8)
    before = found.module(x)
    before.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[gone].any()
    with torch.no_grad():
        layer.weight[gone] = 7.0
        assert torch.equal(found.module(x), before)


def test_soft_masks_go_on_learning_and_may_come_back() -> None:
    schedule = Schedule(steps=6, curve="linear", gather=2)
    # Without removed blocks, whose units are not masked one by one.
    found = pruner(schedule=schedule, masks="soft", latency=None, macs="50%", max_removed=0)
    optimizer = optimizer_of(found)
    first = schedule.ends(1)
    train(found, optimizer, first)
    kept = found.state_dict()["kept"]
    masked = {name: [unit for unit in range(24) if unit not in kept[f"{name}.first.0"]] for name in ("one", "two")}
    name, gone = max(masked.items(), key=lambda each: len(each[1]))
    reader = found.module.get_submodule(f"{name}.second.0.layer")
    assert isinstance(reader.weight, Tensor)
    before = reader.weight.detach().clone()
    steps = train(found, optimizer, 1)
    assert gone
    assert not steps
    assert bool((reader.weight[:, gone] != before[:, gone]).any())
    with torch.no_grad():
        reader.weight[:, gone] *= 100  # and so their scores
    assert sum(step.returned for step in train(found, optimizer, schedule.iterations - first - 1)) > 0
    found.finish()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "taylor-filter"])
@pytest.mark.parametrize("masks", ["hard", "soft"])
def test_every_kind_of_importance_prunes(kind: str, masks: Any) -> None:
    found = pruner(importance=kind, masks=masks, schedule=Schedule(gather=2))
    train(found, optimizer_of(found), 2)
    result = found.finish()
    assert result.recipe.importance == kind
    assert result.report.latency.predicted_ms <= result.report.latency.asked_ms * 1.001


@pytest.mark.parametrize("masks", ["hard", "soft"])
@pytest.mark.parametrize("killed_after", [2, 4, 8, 9])
def test_a_resumed_run_ends_like_one_that_was_not_killed(masks: Any, killed_after: int) -> None:
    whole = pruner(schedule=STEPPED, masks=masks)
    train(whole, optimizer_of(whole), STEPPED.iterations + 2)

    killed = pruner(schedule=STEPPED, masks=masks)
    optimizer = optimizer_of(killed)
    train(killed, optimizer, killed_after)
    file = io.BytesIO()
    torch.save([killed.state_dict(), killed.module.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    state, module, of_optimizer = torch.load(file, weights_only=True)

    resumed = pruner(schedule=STEPPED, masks=masks)
    resumed.load_state_dict(state)
    resumed.module.load_state_dict(module)
    optimizer = optimizer_of(resumed)
    optimizer.load_state_dict(of_optimizer)
    train(resumed, optimizer, STEPPED.iterations + 2 - killed_after)
    assert equal(weights(whole.module), weights(resumed.module))
    a, b = whole.finish(), resumed.finish()
    assert equal(weights(a.module), weights(b.module))
    assert a.recipe.kept == b.recipe.kept
    assert a.recipe.removed_blocks == b.recipe.removed_blocks


def test_a_state_of_another_run_is_refused() -> None:
    state = pruner(schedule=STEPPED, importance="l2").state_dict()
    with pytest.raises(InputError, match=r"is of another run: its masks is 'hard', here it is 'soft'$"):
        pruner(schedule=STEPPED, masks="soft", importance="l2").load_state_dict(state)
    other = Pruner(small(1), images(), latency="40%", **PREDICTED, schedule=STEPPED)
    with pytest.raises(InputError, match="another run: its network is "):
        other.load_state_dict(state)
    with pytest.raises(InputError, match="has version 1, this mdp-fx reads 2"):
        other.load_state_dict({**state, "version": 1})


def test_an_importance_that_batch_norms_hide_is_refused() -> None:
    with pytest.raises(InputError, match=r"^taylor-filter importance says nothing while batch norms train"):
        pruner(importance="taylor-filter")


def test_what_is_frozen_is_not_scored_by_gradients() -> None:
    network = small()
    network.get_submodule("one").requires_grad_(False)
    with pytest.raises(InputError, match=r"^one\.\S+ is frozen, and taylor importance goes by its gradients: let it"):
        Pruner(network, images(), latency="60%", **PREDICTED)
    assert not Pruner(network, images(), latency="60%", **PREDICTED, importance="l2").done
    network.requires_grad_(True).get_submodule("head").requires_grad_(False)
    assert not Pruner(network, images(), latency="60%", **PREDICTED).done  # Nothing is pruned by it.


def test_activations_of_all_accumulated_batches_count() -> None:
    scores = []
    for batches in ((1,), (2,), (1, 2)):
        found = pruner(importance="activation")
        found.module.eval()
        for number in batches:
            found.module(batch(number)[0])
        with torch.no_grad():
            found.module(batch(7)[0])  # What is only evaluated does not count.
        found.after_backward()
        scores.append(torch.from_numpy(found._gathered.scores()[0].values))
    one, two, both = scores
    assert torch.allclose(both, (one + two) / 2)
    assert not torch.allclose(one, two)


def decided(network: nn.Module, found: Pruner, part: slice) -> list[Any]:
    """The step that is taken after three parts of batches, with norms in eval mode, as plain data."""
    found.module.eval()
    for number in range(3):
        x, y = (each[part] for each in batch(number))
        found.module.zero_grad()
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        found.after_backward()
        step = found.step()
    assert step is not None
    return [step.importance, step.kept, list(step.removed_blocks)]


def _of_halves(rank: int) -> list[list[Any]]:
    result = []
    for kind in ("taylor", "fisher"):
        found = pruner(schedule=Schedule(gather=3), importance=kind, latency=None, macs="50%")
        result.append(decided(nn.parallel.DistributedDataParallel(found.module), found, slice(rank, None, 2)))
    return result


def test_two_processes_decide_what_one_decides(tmp_path: Path) -> None:
    """Gradients averaged over the processes are those of the whole batch."""
    halves = in_two_processes(_of_halves, tmp_path)
    assert halves[0] == halves[1]
    for kind, (importance, kept, removed) in zip(("taylor", "fisher"), halves[0], strict=True):
        found = pruner(schedule=Schedule(gather=3), importance=kind, latency=None, macs="50%")
        assert [kept, removed] == (one := decided(found.module, found, slice(None)))[1:]
        assert importance == pytest.approx(one[0], rel=1e-6)
        assert 0 < importance < 1


def test_gradients_that_are_not_finite_are_not_counted() -> None:
    found = pruner(schedule=Schedule(gather=2))
    optimizer = optimizer_of(found)
    first = next(iter(found.module.parameters()))
    for value in (torch.inf, torch.nan):
        for parameter in found.module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        found.after_backward()
        if value == torch.inf:
            assert found.step() is None
    assert first.grad is not None
    optimizer.zero_grad()
    with pytest.raises(DataError, match=r"^taylor importance has seen no batch with finite gradients$"):
        found.step()


def test_a_scaled_loss_scores_the_same() -> None:
    plain, scaled = pruner(schedule=Schedule(gather=1)), pruner(schedule=Schedule(gather=1))
    for found, scale in ((plain, 1.0), (scaled, 1024.0)):
        found.module.eval()
        (found.module(torch.ones(2, 3, 8, 8)).square().sum() * scale).backward()
        found.after_backward(scale)
    one, other = (found.state_dict()["importance"][0]["sums"] for found in (plain, scaled))
    assert torch.allclose(one, other, rtol=1e-5)
    assert one.sum() > 0


def test_a_target_out_of_reach_is_told_before_training() -> None:
    with pytest.raises(BudgetError, match=r"^the latency budget of .* cannot be met: the smallest reachable is "):
        pruner(latency="1%")
    with pytest.raises(BudgetError, match=r"^step 3 of 3 of the schedule cannot be taken: the latency budget of "):
        pruner(latency="1%", schedule=STEPPED)


def test_a_network_that_no_file_holds_is_told_before_training() -> None:
    model = small()
    model.get_submodule("drop").extra = object()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="its attribute 'extra' is or holds a value of type object"):
        Pruner(model, images(), latency="40%", **PREDICTED)


def test_finishing_too_early_is_refused() -> None:
    found = pruner(schedule=STEPPED)
    train(found, optimizer_of(found), 4)
    with pytest.raises(
        InputError,
        match=r"^the schedule is not over: 1 of its 3 steps .* in 4 iterations, .* comes after 9$",
    ):
        found.finish()


def test_soft_masks_need_an_importance_that_masked_channels_have() -> None:
    with pytest.raises(InputError, match=r"^taylor importance says nothing of softly masked channels"):
        pruner(schedule=STEPPED, masks="soft", importance="taylor")
    with pytest.raises(InputError, match=r"^unknown masks 'sotf'; did you mean 'soft'"):
        pruner(masks="sotf")


def test_a_slim_network_that_is_not_the_masked_one_is_an_error() -> None:
    found = pruner(schedule=Schedule(gather=1), fixed={"one.first.0": 8}, keep_blocks=["one"], latency="80%")
    train(found, optimizer_of(found), 1)
    for name, buffer in found.module.named_buffers():
        if ".masks." in name:
            buffer.fill_(True)
    nn.init.ones_(found.module.get_submodule("one.second.0.layer").weight)  # type: ignore[arg-type]
    for module in found.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
    with pytest.raises(ParityError, match=r"^output 0 of the slim network, beside the masked one, is off by "):
        found.finish()


def test_the_masked_network_can_be_copied() -> None:
    """An average of weights is made from a copy."""
    found = pruner(schedule=Schedule(gather=1))
    train(found, optimizer_of(found), 1)
    found.module.eval()
    copied = copy.deepcopy(found.module)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(copied(x), found.module(x))
    assert copied.state_dict().keys() == found.module.state_dict().keys()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_may_wrap_the_network(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    found = pruner(schedule=Schedule(steps=2, gather=2), masks="soft")
    network, optimizer = accelerator.prepare(found.module, optimizer_of(found))
    network.train()
    while not found.done:
        x, y = batch(found.iteration)
        accelerator.backward(F.cross_entropy(network(x).float(), y))
        found.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        found.step()
    assert found.finish().report.latency.predicted_ms > 0


def test_a_measured_target_is_timed_once_at_the_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path))
    asked: list[str] = []
    for owner, name in ((BudgetSearch, "plan"), (BudgetSearch, "run"), (whole_network, "measure_network")):
        way = getattr(owner, name)

        def noted(*args: Any, name: str = name, way: Any = way, **options: Any) -> Any:
            asked.append(name)
            return way(*args, **options)

        monkeypatch.setattr(owner, name, noted)
    measured = {"target": "torch:cpu", "threads": 1, "step": 8}
    found = Pruner(small(), torch.randn(1, 3, 16, 16), latency="70%", **measured, schedule=Schedule(3, "exp2", 0, 1))
    assert asked == ["measure_network", "plan"]
    asked.clear()
    train(found, optimizer_of(found), 3)
    # The dense network is measured at the beginning, and once more in turn with the slim one.
    assert asked == ["plan", "plan", "run", "measure_network"]
    assert found.finish().report.latency.measured_ms is not None
