"""What every decision on a network starts from: the network analysed and scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mdp_fx.detectors.subject import Subject
from mdp_fx.latency.measuring import Progress
from mdp_fx.model_source import check_finite
from mdp_fx.passes.base import Stage
from mdp_fx.passes.choices import Analysis, Choices, choose
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import LayerImportance, Loss, score
from mdp_fx.pipeline import analyse


def importance_kind(importance: str | None, data: Iterable[Any] | None) -> str:
    """The importance asked for, or the default."""
    return importance or ("taylor" if data is not None else "l2")


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
) -> tuple[Analysis, Choices, tuple[LayerImportance, ...]]:
    """The network analysed, what may be chosen of it, and what that is worth.

    `subject` is the network with its inputs; the other arguments are those of `prune`, and `all_examples` is that of
    `analyse`.

    Raises:
        MdpFxError: one line that says what, where and what to do.
    """
    analysis = analyse(subject.module, subject.inputs, front_end=front_end, all_examples=all_examples, stage=stage)
    check_finite(subject.model)
    choices = choose(analysis, step, keep, only)
    stage("score importance")
    model, loss = subject.scored(loss)
    scores = score(
        analysis.graph, analysis.groups, importance, model=model, data=data, loss=loss, seed=seed, progress=progress
    )
    return analysis, choices, scores
