"""Pruning inside of a training loop: importance gathered batch by batch, structures chosen on a schedule, then slim."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mdp_fx.api import PruneResult
from mdp_fx.budgets import Budget, parse_budget
from mdp_fx.checkpoint import check_savable
from mdp_fx.errors import InputError
from mdp_fx.graph.trace import detached_copy
from mdp_fx.latency.table_target import Fill
from mdp_fx.latency.targets import get_target
from mdp_fx.model_source import check_finite
from mdp_fx.outcome import Outcome, SolverOptions
from mdp_fx.passes.arguments import check_limits, check_restrictions
from mdp_fx.passes.base import Stage, batch_of, silent
from mdp_fx.passes.choices import Analysis, choose
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import ImportanceAccumulator, observe, score, taken
from mdp_fx.passes.search_space import importance as kept_importance
from mdp_fx.passes.space_blocks import unused
from mdp_fx.pipeline import Stopwatch, analyse, as_inputs, rewrite
from mdp_fx.recipe import fingerprint
from mdp_fx.run_report import prune_recipe, prune_report
from mdp_fx.train.masks import MaskKind, Masks, check_masks, check_trained
from mdp_fx.train.outcome_state import outcome_of, outcome_state
from mdp_fx.train.processes import from_all, on_first, place
from mdp_fx.train.schedule import Schedule
from mdp_fx.train.step_search import StepSearch

VERSION = 2
"""Of the form of `Pruner.state_dict`."""


@dataclass(frozen=True)
class PruneStep:
    """One step of the schedule that was taken: a new structure is in force.

    Attributes:
        number: 1 for the first step, and `steps` of them in all.
        steps: steps of the schedule.
        iteration: how many iterations were done.
        asked_s: the latency asked for in seconds; None without a latency budget.
        predicted_s: what the structure is predicted to take; None without a latency budget.
        importance: share of the importance that is kept, of what the step could still keep.
        kept: number of units that each channel group keeps.
        removed_blocks: names of the removed blocks.
        returned: units that were masked before and are not any more (soft masks).
        seconds: what deciding took.
    """

    number: int
    steps: int
    iteration: int
    asked_s: float | None
    predicted_s: float | None
    importance: float
    kept: dict[str, int]
    removed_blocks: tuple[str, ...]
    returned: int
    seconds: float


class Pruner:
    """Prunes a network while a loop of the caller's trains it.

    The network to train is `module`: a GraphModule with parameters of its own that computes, in both modes, what the
    network computes with everything that is masked cut out. Whoever trains owns the optimizer, the loss and
    the loop:

        pruner = Pruner(model, images, latency="50%", schedule=Schedule(start=0, gather=1200))
        network, optimizer = accelerator.prepare(pruner.module, optimizer)   # over pruner.module.parameters()
        for inputs, targets in loader:
            accelerator.backward(loss(network(inputs), targets))
            pruner.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            if (taken := pruner.step()) is not None:
                log(taken)
        result = pruner.finish()
        mdp_fx.save(result, "slim.pt")

    In several processes every one makes the same calls; the first decides and the others are told. Clip gradients, if
    at all, after `after_backward`.

    Args:
        model: the trained dense network; left unchanged. `module` is on its device and in its mode.
        example_inputs: a tensor, or the positional arguments of its forward; axis 0 is the batch that latency counts.
        latency: as in `mdp_fx.prune`, for the end of the schedule; 50 % where no budget is given.
        params: budget of parameters, likewise; held at the last step, and before it followed on the same curve.
        macs: budget of multiply-accumulates, likewise.
        target: where latency counts.
        threads: CPU threads of the target.
        dtype: number format that the target runs in.
        fill: "analytic" estimates convolutions that a table does not have.
        method: "mdp", "mgp", "mdlm", "halp" or "uniform".
        importance: what channels are worth, one of `mdp_fx.passes.importance.KINDS`; by default "taylor" with hard and
            "taylor-input" with soft masks.
        schedule: when to decide, and for which share of the way.
        masks: "hard": what is pruned is zero and never comes back; "soft": it goes on learning by straight-through
            gradients and may come back at the next step.
        step: channel step.
        keep: patterns of module names to leave alone.
        only: patterns of module names to prune.
        min_keep: share of its units that every channel group keeps at least.
        fixed: channel groups held at a size.
        keep_blocks: names of blocks that must stay.
        max_removed: most blocks to remove, in all.
        front_end: what makes the graph.
        seed: of everything random.
        gap: relative optimality gap the solver may stop at.
        time_limit: seconds for each call of the solver.
        name: of the model, for the report.
        pretrained: False adds a warning that the weights were random at the beginning.
        stage: called with the name of each stage as it starts.
        progress: called with (done, total, text) while measuring.

    Attributes:
        module: the network to train.
        done: whether the schedule is over: from then on the structure does not change any more.
        iteration: calls of `step` so far.

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        latency: str | float | Budget | None = None,
        params: str | float | Budget | None = None,
        macs: str | float | Budget | None = None,
        target: str = "onnxruntime:cpu",
        threads: int | None = None,
        dtype: str = "float32",
        fill: Fill | None = None,
        method: str = "mdp",
        importance: str | None = None,
        schedule: Schedule | None = None,
        masks: MaskKind = "hard",
        step: int = 8,
        keep: Sequence[str] = (),
        only: Sequence[str] = (),
        min_keep: float | None = None,
        fixed: Mapping[str, int] | None = None,
        keep_blocks: Collection[str] = (),
        max_removed: int | None = None,
        front_end: Choice = "auto",
        seed: int = 0,
        gap: float = 1e-3,
        time_limit: float = 20.0,
        name: str | None = None,
        pretrained: bool = True,
        stage: Stage = silent,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        check_restrictions(min_keep, fixed, keep_blocks)
        check_limits(gap, time_limit, threads, seed, max_removed)
        self._schedule = schedule if schedule is not None else Schedule()
        self._kind = importance or ("taylor-input" if masks == "soft" else "taylor")
        check_masks(masks, self._kind, self._schedule.steps)
        check_trained(self._kind, model)
        given = {"latency": latency, "params": params, "macs": macs}
        if all(value is None for value in given.values()):
            given["latency"] = "50%"
        self._budgets = {what: parse_budget(value, what) for what, value in given.items() if value is not None}
        inputs = pytree.tree_map(_on_cpu, as_inputs(example_inputs))
        self._batch = batch_of(inputs)
        self._target = get_target(target, threads, dtype, fill=fill, batch=self._batch)
        self._watch = Stopwatch(stage)
        check_finite(model)
        self._fingerprint = fingerprint(model)
        own = detached_copy(model).cpu().eval()
        self._analysis = analyse(
            own, inputs, front_end=front_end, all_examples=self._target.can_run, step=step, stage=self._watch
        )
        check_savable(rewrite(self._analysis, {group.name: range(group.size) for group in self._analysis.groups}, ()))
        self._inputs = inputs if self._target.can_run else self._analysis.graph.example_inputs
        self._choices = choose(self._analysis, keep, only)
        self._options = SolverOptions(
            method, gap, time_limit, seed, min_keep, dict(fixed or {}), tuple(keep_blocks), max_removed
        )
        self._name, self._pretrained = name or type(model).__name__, pretrained
        self._masks = Masks(self._analysis, masks)
        self.module = self._masks.module.train(model.training)
        self._gathered = ImportanceAccumulator(self._analysis.graph, self._analysis.groups, self._kind, seed=seed)
        self._check_not_frozen()
        watching = self._gathered.needs == "activations"
        self._observers = observe(self._analysis.graph, self.module, in_training=True) if watching else {}
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.module.to(device)
        self.iteration = 0
        self._taken = 0
        self._outcome: Outcome | None = None
        self._settings = self._described(masks)
        # What no structure reaches is said before anything is trained.
        weights = score(self._analysis.graph, self._analysis.groups, "l2")
        self._search = StepSearch(
            *(self._analysis, self._choices, self._target, self._inputs, self._batch, self._options),
            *(self._budgets, self._schedule, self._watch, progress),
        )
        on_first(lambda: self._search.check_reach(weights, self._masks))
        self._watch("")

    def _check_not_frozen(self) -> None:
        """Checks that what has no gradients is not scored by them."""
        if self._gathered.needs != "gradients":
            return
        free = {group.name for group in self._analysis.groups} - self._choices.held
        for name in self._gathered.tensors_of(free):
            if not self._masks.network.tensor(name).requires_grad:
                raise InputError(
                    f"{name} is frozen, and {self._kind} importance goes by its gradients: let it train, keep its "
                    "layer as it is (keep), or take an importance without gradients, such as l2"
                )

    @property
    def analysis(self) -> Analysis:
        """What pruning knows of the dense network."""
        return self._analysis

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self._taken == self._schedule.steps

    def after_backward(self, scale: float = 1.0) -> None:
        """Gathers importance from the gradients of one batch; call it after every backward, before the optimizer.

        With gradients that are accumulated over several batches, call it when they are whole. Outside of the iterations
        that the schedule gathers in it does nothing.

        Args:
            scale: what the loss was multiplied by (the gradient scaler's scale in float16). Batches whose gradients are
                not finite are not counted.
        """
        seen = taken(self._observers)
        if not self._schedule.gathers(self.iteration, self._taken + 1) or self._gathered.needs == "nothing":
            return
        if self._observers:
            self._gathered.accumulate_activations(seen)
            return
        values = {name: self._masks.network.tensor(name) for name in self._gathered.tensors}
        gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad / scale
            for name, value in values.items()
        }
        self._gathered.accumulate(values, gradients)

    def step(self) -> PruneStep | None:
        """Counts an iteration, after the optimizer's step; where the schedule says so, decides and masks anew.

        Returns:
            What was decided, None at all other iterations.

        Raises:
            BudgetError: the schedule asks for what no structure reaches; the message says at which step.
            DataError: no batch had finite gradients since the last step.
            ParityError: the masked network is not the slim network that its structure stands for.
        """
        self.iteration += 1
        if self.done or self.iteration < self._schedule.ends(self._taken + 1):
            return None
        begin = time.perf_counter()
        number = self._taken + 1
        values = {name: self._masks.network.tensor(name) for name in self._gathered.tensors}
        device = next(iter(values.values())).device if values else "cpu"
        self._gathered.all_reduce(device)
        scores = self._masks.standing(self._gathered.scores(values), self._kind)
        with torch.random.fork_rng(devices=[]):
            last = number == self._schedule.steps
            state = on_first(lambda: outcome_state(self._search.choose(scores, number, self._masks)))
            outcome = outcome_of(state)
            removed = outcome.selection.removed_blocks
            returned = self._masks.choose(outcome.kept, removed, unused(outcome.space, removed))
            self._watch("compare masked and sliced")
            on_first(lambda: bool(self._masks.slim()))
        self._watch("")
        self._gathered.reset()
        self._taken = number
        self._outcome = outcome if last else None
        dense = kept_importance(outcome.space, outcome.space.unpruned())
        return PruneStep(
            number=number,
            steps=self._schedule.steps,
            iteration=self.iteration,
            asked_s=outcome.asked_s,
            predicted_s=outcome.predicted_s,
            importance=outcome.certificate.objective / dense if dense else 1.0,
            kept={name: len(units) for name, units in self._masks.kept.items()},
            removed_blocks=self._masks.removed,
            returned=returned,
            seconds=time.perf_counter() - begin,
        )

    def finish(self) -> PruneResult:
        """Slices: the network that the masks describe, with the weights as they are now, on the CPU in eval mode.

        It has parameters of its own: fine-tune it with a new optimizer. Its latency in the report is the one measured
        at the last step.

        Raises:
            InputError: the schedule is not over.
            ParityError: the masked network is not the slim network.
        """
        if self._outcome is None:
            ends = self._schedule.iterations
            raise InputError(
                f"the schedule is not over: {self._taken} of its {self._schedule.steps} steps were taken in "
                f"{self.iteration} iterations, and the last one comes after {ends}"
            )
        self._watch("slice")
        outcome = replace(self._outcome, module=self._masks.slim())
        self._watch("")
        recipe = prune_recipe(
            *(self._analysis.graph.module, self._analysis, outcome, self._kind, self._inputs),
            self._target.name,
        )
        report = prune_report(
            self._name,
            self._analysis,
            outcome,
            self._target,
            importance=self._kind,
            batch=self._batch,
            has_data=self._gathered.needs != "nothing",
            pretrained=self._pretrained,
            seconds=self._watch.seconds,
        )
        return PruneResult(outcome.module, replace(recipe, fingerprint=self._fingerprint), report, outcome.space)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, beside `module.state_dict()`: what was gathered, decided and counted.

        Tensors, numbers, strings, lists and dictionaries only: `torch.load(weights_only=True)` reads it. In several
        processes every one makes this call; each has gathered on its own batches, and the state holds all.
        """
        return {
            "version": VERSION,
            "settings": self._settings,
            "iteration": self.iteration,
            "taken": self._taken,
            "kept": {name: list(units) for name, units in self._masks.kept.items()},
            "removed": list(self._masks.removed),
            "importance": from_all(self._gathered.state_dict()),
            "outcome": None if self._outcome is None else outcome_state(self._outcome),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, other_budgets: bool = False) -> None:
        """Goes on where `state_dict` was taken; `module.load_state_dict` is the caller's.

        Args:
            state: of a pruner with the same arguments, in as many processes.
            other_budgets: whether the budgets may be others from here on.

        Raises:
            InputError: it belongs to another network, or to other settings; the message names the first difference.
        """
        if state.get("version") != VERSION:
            raise InputError(f"the state of pruning has version {state.get('version')!r}, this mdp-fx reads {VERSION}")
        for name, mine in self._settings.items():
            theirs = state["settings"].get(name)
            if theirs != mine and not (other_budgets and name == "budgets"):
                raise InputError(
                    f"the state of pruning is of another run: its {name} is {theirs!r}, here it is {mine!r}"
                )
        (rank, processes), before = place(), len(state["importance"])
        if before != processes:
            raise InputError(f"the state of pruning is of {before} processes, here are {processes}: start as many")
        self._gathered.load_state_dict(state["importance"][rank])
        self._masks.restore(state["kept"], state["removed"])
        self.iteration, self._taken = state["iteration"], state["taken"]
        self._outcome = None if state["outcome"] is None else outcome_of(state["outcome"])

    def _described(self, masks: str) -> dict[str, Any]:
        """What a state must agree on, as plain data."""
        options = self._options
        return {
            "network": self._fingerprint,
            "importance": self._kind,
            "masks": masks,
            "schedule": asdict(self._schedule),
            "budgets": {what: [budget.share, budget.amount] for what, budget in self._budgets.items()},
            "target": self._target.name,
            "method": options.method,
            "step": self._analysis.step,
            "seed": options.seed,
            "min_keep": options.min_keep,
            "fixed": dict(options.fixed),
            "keep_blocks": list(options.keep_blocks),
            "max_removed": options.max_removed,
            "groups": {each.name: list(each.sizes) for each in self._choices.dimensions},
            "blocks": sorted(self._choices.blocks),
        }


def _on_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf
