"""What every decision on a network starts from: the network analysed and scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mdp_fx.detectors.subject import Subject, subject_of
from mdp_fx.errors import InputError
from mdp_fx.latency.measuring import Progress
from mdp_fx.model_source import check_finite
from mdp_fx.passes.arguments import check_whole
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.choices import Analysis, Choices, choose
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import NEEDS, LayerImportance, Loss, check_kind
from mdp_fx.passes.importance import score as score_units
from mdp_fx.pipeline import as_inputs, rewrite
from mdp_fx.recipe import fingerprint
from mdp_fx.run_report import versions
from mdp_fx.scores import Scores


def importance_kind(importance: str | None, data: Iterable[Any] | None, scores: Scores | None = None) -> str:
    """The importance asked for, or the default; that of scores that were made before.

    Raises:
        InputError: both scores and what they would be made of.
    """
    if scores is None:
        return importance or ("taylor" if data is not None else "l2")
    if importance is not None or data is not None:
        raise InputError("scores take the place of scoring: leave out importance and data, or the scores")
    return scores.importance


def score(
    model: nn.Module,
    example_inputs: Any,
    *,
    importance: str | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    batches: int = 50,
    front_end: Choice = "auto",
    seed: int = 0,
    stage: Stage = silent,
    progress: Progress | None = None,
) -> Scores:
    """What the channels of a network are worth, for `prune` and `search_space` on the same network.

    Args:
        model: the trained dense network; left unchanged.
        example_inputs: a tensor, or the positional arguments of its forward.
        importance: the kind, see `mdp_fx.passes.importance.score`; "taylor" with data, else "l2".
        data: batches of (inputs, targets).
        loss: of (outputs, targets), cross-entropy by default.
        batches: at most this many batches are read.
        front_end: what makes the graph.
        seed: of "random".
        stage: called with the name of each stage as it starts.
        progress: called with (done, total, text).

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    kind = importance_kind(importance, data)
    check_kind(kind)
    check_whole("batches", batches, 1)
    subject = subject_of(model, as_inputs(example_inputs))
    _check_scoring(subject, kind, loss)
    analysis = subject.analyse(front_end, stage=stage)
    check_finite(model)
    stage("score importance")
    scored, loss = subject.scored(loss)
    read = 0

    def counted(done: int, total: int, text: str) -> None:
        nonlocal read
        read = done
        if progress is not None:
            progress(done, total, text)

    layers = score_units(
        *(analysis.graph, analysis.groups, kind),
        model=scored,
        data=data,
        loss=loss,
        seed=seed,
        batches=batches,
        progress=counted,
    )
    return Scores(kind, fingerprint(model), layers, read, versions())


def analyse_and_score(
    subject: Subject,
    importance: str,
    data: Iterable[Any] | None,
    loss: Loss | None,
    step: int,
    keep: Sequence[str],
    only: Sequence[str],
    front_end: Choice,
    seed: int,
    stage: Stage,
    progress: Progress | None,
    *,
    all_examples: bool = True,
    scores: Scores | None = None,
) -> tuple[Analysis, Choices, tuple[LayerImportance, ...]]:
    """The network analysed, what may be chosen of it, and what that is worth.

    `subject` is the network with its inputs; the other arguments are those of `prune`, and `all_examples` is that of
    `analyse`. `scores` that were made before take the place of scoring.

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    if scores is None:
        _check_scoring(subject, importance, loss)
    analysis = subject.analyse(front_end, all_examples=all_examples, step=step, stage=stage)
    check_finite(subject.model)
    choices = choose(analysis, keep, only)
    if subject.is_part:
        stage("try the smallest sizes")
        _check_widths(subject, analysis, choices)
    if scores is not None:
        return analysis, choices, scores.of(fingerprint(subject.model), analysis.graph, analysis.groups)
    stage("score importance")
    model, loss = subject.scored(loss)
    found = score_units(
        analysis.graph, analysis.groups, importance, model=model, data=data, loss=loss, seed=seed, progress=progress
    )
    return analysis, choices, found


def _check_scoring(subject: Subject, importance: str, loss: Loss | None) -> None:
    """Refuses what a detector cannot be scored by: its losses come from its own forward, of images and targets.

    Raises:
        InputError: activations, or a loss of one's own.
    """
    if not subject.is_part:
        return
    name = type(subject.model).__name__
    if loss is not None:
        raise InputError(f"{name} is a detector, which is scored by its own losses: leave out the loss (--loss)")
    if NEEDS.get(importance) == "activations":
        what = f"{importance} importance needs a network that can be traced whole, and {name} is a detector"
        raise InputError(f"{what}: score it by its losses (--importance taylor) or by its weights (--importance l2)")


def _check_widths(subject: Subject, analysis: Analysis, choices: Choices) -> None:
    """Makes the slim detector of the smallest sizes, before anything is measured.

    Raises:
        ModelError: it counts on a number of channels; the message says where.
    """
    sizes = {
        each.name: each.sizes[-1] if each.name in choices.held else next(filter(None, each.sizes))
        for each in choices.dimensions
    }
    kept = {name: list(range(size)) for name, size in sizes.items()}
    subject.returned(analysis, rewrite(analysis, kept, ()))
