"""Pruning inside of a training loop: importance gathered batch by batch, structures chosen on a schedule, then slim."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn

from mdp_fx.api import PruneResult
from mdp_fx.budgets import Budget
from mdp_fx.latency.table_target import Fill
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.front_end import Choice
from mdp_fx.train.schedule import Schedule

MaskKind = Literal["hard", "soft"]


@dataclass(frozen=True)
class PruneStep:
    """One step of the schedule that was taken: a new structure is in force.

    Attributes:
        number: 1 for the first step, and `steps` of them in all.
        steps: steps of the schedule.
        iteration: how many iterations were done.
        asked_s: the latency asked for in seconds; None without a latency budget.
        predicted_s: what the structure is predicted to take; None without a latency budget.
        importance: share of the dense network's importance that is kept.
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

    The network to train is `module`: a GraphModule that holds the model's own parameters and computes, in both modes,
    what the network computes with everything that is masked cut out. Whoever trains owns the optimizer, the loss and
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
        model: the trained dense network; its parameters become those of `module` and are trained. Hand it over on the
            CPU or on the device that it trains on.
        example_inputs: a tensor, or the positional arguments of its forward; axis 0 is the batch that latency counts.
        latency: as in `mdp_fx.prune`, for the end of the schedule; 50 % where no budget is given.
        params: budget of parameters, likewise; held at the last step, and before it followed on the same curve.
        macs: budget of multiply-accumulates, likewise.
        target: where latency counts.
        threads: CPU threads of the target.
        dtype: number format that the target runs in.
        fill: "analytic" estimates convolutions that a table does not have.
        method: "mdp", "mgp", "mdlm", "halp" or "uniform".
        importance: what channels are worth, one of `mdp_fx.passes.importance.KINDS`.
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
        module: the network to train; in the mode that `model` was in.
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
        importance: str = "taylor",
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
    ) -> None: ...

    module: fx.GraphModule
    done: bool
    iteration: int

    def after_backward(self, scale: float = 1.0) -> None:
        """Gathers importance from the gradients of one batch; call it after every backward, before the optimizer.

        Outside of the iterations that the schedule gathers in it does nothing.

        Args:
            scale: what the loss was multiplied by (the gradient scaler's scale in float16). Batches whose gradients are
                not finite are not counted.
        """
        ...

    def step(self) -> PruneStep | None:
        """Counts an iteration, after the optimizer's step; where the schedule says so, decides and masks anew.

        Returns:
            What was decided, None at all other iterations.

        Raises:
            BudgetError: the schedule asks for what no structure reaches; the message says at which step.
            ParityError: the masked network is not the slim network that its structure stands for.
        """
        ...

    def finish(self) -> PruneResult:
        """Slices: the network that the masks describe, with the weights as they are now, timed beside the dense one.

        The module of the result is in eval mode and has parameters of its own: fine-tune it with a new optimizer.

        Raises:
            InputError: the schedule is not over.
            ParityError: the masked network is not the slim network.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, beside `module.state_dict()`: what was gathered, decided and counted.

        Tensors, numbers, strings, lists and dictionaries only: `torch.load(weights_only=True)` reads it.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; `module.load_state_dict` is the caller's.

        Raises:
            InputError: it belongs to another network, or to other settings; the message names the first difference.
        """
        ...
