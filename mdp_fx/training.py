"""A training run: gather importance, prune, fine-tune, with checkpoints on the way that it goes on from exactly."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import fx, nn

from mdp_fx import checkpoint
from mdp_fx.files import atomic_write
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.slice_channels import dense_network
from mdp_fx.pipeline import analyse
from mdp_fx.recipe import Recipe, fingerprint
from mdp_fx.report.training import Accuracy, TrainReport
from mdp_fx.train.batch_norm import recalibrate_batch_norm
from mdp_fx.train.collapse import Collapse
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import to_data, to_yaml
from mdp_fx.train.distillation import Correspondence, Teacher, correspondences
from mdp_fx.train.objective import not_finite
from mdp_fx.train.processes import from_all, on_first
from mdp_fx.train.pruning import Pruner, PruneStep
from mdp_fx.train.run_log import RunLog
from mdp_fx.train.run_state import FILE, mixed_seed, random_kept, random_state, restore_random_state, save_run, seed_all
from mdp_fx.train.trainer import Trainer, make_accelerator, precision_of
from mdp_fx.training_checks import Checks, fallen
from mdp_fx.training_data import Shard
from mdp_fx.training_folder import (
    SETTINGS,
    begin_anew,
    changes,
    check_origin,
    check_paths,
    find_run,
    folder_of,
    held,
    output_of,
)
from mdp_fx.training_setup import make_pruner, prepare

Progress = Callable[[int, int, str], None]

_log = logging.getLogger(__name__)


def run(
    config: TrainConfig,
    *,
    prune: bool,
    resume: bool = False,
    force: bool = False,
    sources: Sequence[str | Path] = (),
    trust_pickle: bool = False,
    stage: Stage = silent,
    progress: Progress | None = None,
) -> TrainReport:
    """Trains a network and writes a slim.pt.

    In several processes (`accelerate launch`, `torchrun`) every one makes the same call, and the first one writes.

    Args:
        config: the settings.
        prune: whether the network is pruned first; without it, it is a slim network already.
        resume: go on from the checkpoint in the run's folder; where there is none yet, begin.
        force: overwrite the output and a run that is in the folder; with `resume`, go on although settings that
            concern the steps to come are others (see `training_folder`).
        sources: files that the settings were read from, which must not be overwritten.
        trust_pickle: unpickle model files fully.
        stage: called with the name of each stage as it starts.
        progress: called with (steps done, steps in all, text).

    Raises:
        MdpFxError: one line that says what, where and what to do; the last checkpoint is kept.
    """
    config.check()
    check_paths(config, sources)
    accelerator = make_accelerator(config.device, config.precision)
    folder = folder_of(config)
    with ExitStack() as hold:
        on_first(lambda: hold.enter_context(held(folder)))
        state = find_run(config, resume, force)
        changed = {} if state is None else changes(state, config, folder, force)
        return _Run(config, accelerator, state, changed, prune, trust_pickle, stage, progress).finish()


class _Run:
    """One run, from the network to the slim.pt."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        state: dict[str, Any] | None,
        changed: dict[str, list[Any]],
        prune: bool,
        trust_pickle: bool,
        stage: Stage,
        progress: Progress | None,
    ) -> None:
        self._config, self._folder, self._prune, self._changed = config, folder_of(config), prune, changed
        self._begun, self._warnings, self._lines = time.perf_counter(), list[str](), 0
        self._losses: list[float] = []  # since the last line of the log
        self._accelerator, self._state = accelerator, state
        self._main = self._accelerator.is_main_process
        self._stage: Stage = stage if self._main else silent
        self._progress = progress if self._main else None
        shard = Shard(self._accelerator.process_index, self._accelerator.num_processes)
        self._setup = prepare(config, shard, prune=prune, trust_pickle=trust_pickle, stage=self._stage)
        loaded = self._setup.loaded
        self._total = config.tune.epochs * self._setup.epoch_steps
        self._facts: dict[str, Any] = {"dense": None, "pruned": None, "best": None, "seconds": 0.0}
        self._fingerprint = fingerprint(loaded.module)
        self._packed: dict[str, Any] | None = None
        self._recipe, self._report = loaded.recipe, dict[str, Any]()
        self._pruner: Pruner | None = None
        self._teacher: Teacher | None = None
        self._taught: Analysis | None = None
        self._random: list[dict[str, Any]] = []
        self._checks = Checks(self._accelerator, self._setup)
        self._final: Accuracy | None = None
        if state is not None:
            mine = {
                "prune": prune,
                "fingerprint": self._fingerprint,
                "precision": precision_of(self._accelerator),
                "processes": shard.world,
            }
            check_origin(state, mine, self._folder, config.model or "")
            self._packed, self._random = state["slim"], state["random"]
            self._warnings, self._lines = list(state["warnings"]), state["lines"]
            self._losses = list(state.get("losses", ()))
            self._facts = {k: Accuracy(*v) if isinstance(v, list) else v for k, v in state["facts"].items()}
        slim: nn.Module = loaded.module
        if self._packed is not None:
            unpacked = checkpoint.unpack(self._packed, str(self._folder / FILE))
            # A copy: the tensors of the file are the trainer's as well, perhaps those of its moving average.
            slim, self._recipe, self._report = copy.deepcopy(unpacked.module), unpacked.recipe, unpacked.report
        elif prune:
            self._pruner = make_pruner(config, self._setup, self._stage, self._progress)
            slim = self._pruner.module
            if state is not None:
                self._pruner.load_state_dict(state["pruner"], other_budgets=True)
        else:
            assert isinstance(slim, fx.GraphModule)
            assert config.model is not None
            self._report = checkpoint.load_slim(config.model).report
            self._packed = checkpoint.pack(slim, self._known_recipe, self._report)
        self._trainer = self._make_trainer(slim, 0)
        if state is not None:
            self._trainer.load_state_dict(state["trainer"])
        self._resumed = self._trainer.step
        self._teach()

    @property
    def _known_recipe(self) -> Recipe:
        assert self._recipe is not None
        return self._recipe

    def _make_trainer(self, network: nn.Module, step: int) -> Trainer:
        trainer = Trainer(
            self._accelerator,
            network,
            self._config.tune,
            epoch_steps=self._setup.epoch_steps,
            shape=self._setup.shape,
            classes=self._setup.classes,
            loss=self._setup.loss,
            average=self._pruner is None,
            step=step,
        )
        if self._pruner is not None:
            trainer.after_backward = self._pruner.after_backward
        return trainer

    def _teach(self) -> None:
        """Sets the teacher on the network that is trained now; features are taught once it is sliced."""
        if self._setup.teacher is None:
            return
        if self._teacher is not None:
            self._teacher.close()
        distill, network = self._config.distill, self._setup.teacher
        pairs: tuple[Correspondence, ...] = ()
        if distill.features:
            self._stage("compare the teacher's features")
            if self._taught is None:
                front_end = (
                    self._known_recipe.front_end if self._pruner is None else self._pruner.analysis.graph.front_end
                )
                self._taught = analyse(network.cpu(), self._setup.inputs, front_end=front_end)
            network = dense_network(self._taught.graph)
            if self._pruner is None:
                recipe = self._known_recipe
                pairs = correspondences(self._taught, self._trainer.module, recipe.kept, recipe.group_sizes)
            else:  # What does not fit is told before anything is trained.
                dense = self._pruner.analysis
                sizes = {group.name: group.size for group in dense.groups}
                correspondences(self._taught, dense.graph.module, {g: range(n) for g, n in sizes.items()}, sizes)
        self._teacher = Teacher(
            network.to(self._accelerator.device),
            self._trainer.module,
            logits=distill.logits,
            temperature=distill.temperature,
            features=distill.features,
            pairs=pairs,
            autocast=self._accelerator.autocast,
        )
        self._trainer.teaching = self._teacher

    def finish(self) -> TrainReport:
        """Trains to the end and writes the slim network."""
        if self._main:
            if self._state is None:
                begin_anew(self._folder)
            text = to_yaml(self._config)
            atomic_write(self._folder / SETTINGS, lambda file: file.write(text.encode()))
        try:
            with self._logging() as log:
                if log is not None and self._changed:
                    log.write("settings", self._trainer.step, **self._changed)
                if self._pruner is not None and not self._trainer.step and self._config.log.estimate:
                    self._stage("estimate the accuracy")
                    self._facts["dense"] = self._checks.accuracy(self._trainer.module, self._config.log.estimate)
                    self._note(log, "dense", self._facts["dense"])
                self._stage("prune and train" if self._pruner is not None else "fine-tune")
                self._steps(log)
                return self._write()
        except KeyboardInterrupt as stop:
            if not (self._folder / FILE).exists():
                raise KeyboardInterrupt("no checkpoint was due yet, see log.checkpoint") from stop
            raise KeyboardInterrupt("go on with --resume") from stop

    def _steps(self, log: RunLog | None) -> None:
        """All steps that are left."""
        batches: Iterator[Any] | None = None
        since, first = time.perf_counter(), self._trainer.step
        # A checkpoint comes before the validation, which may fail: a run that is taken up in between has it ahead.
        while not self._validate(log):
            epoch, done = divmod(self._trainer.step, self._setup.epoch_steps)
            if batches is None or not done:
                batches = self._begin(epoch, done)
            rate = self._trainer.rate
            value = self._trainer.train_step(batches)
            self._check_loss(value)
            sliced = False
            if self._pruner is not None and (taken := self._pruner.step()) is not None:
                sliced = self._pruned(taken, log)
            step = self._trainer.step
            if self._progress is not None:
                self._progress(step, self._total, f"loss {value:.3g}")
            if log is not None:
                self._losses.append(value)
            if log is not None and (step % self._config.log.every == 0 or step == self._total):
                now, mean = time.perf_counter(), sum(self._losses) / len(self._losses)
                speed, epochs = (step - first) / (now - since), step / self._setup.epoch_steps
                log.write("train", step, epoch=epochs, loss=mean, rate=rate, speed=speed)
                since, first, self._losses = now, step, []
            every = self._config.log.checkpoint or self._setup.epoch_steps
            if sliced or step % every == 0:
                self._save(log)

    def _begin(self, epoch: int, done: int) -> Iterator[Any]:
        """The batches of an epoch, some steps of which are done, with the random numbers that come after these."""
        rank = 0 if self._setup.train.in_step else self._accelerator.process_index
        seed_all(mixed_seed(self._config.seed, epoch, rank))
        batches = self._setup.train.epoch(epoch, done * self._config.tune.accumulate)
        if done:
            restore_random_state(self._random[self._accelerator.process_index])
        return batches

    def _check_loss(self, value: float) -> None:
        if not math.isfinite(value):
            found = self._checks.collapse(self._trainer.module)
            layer = None if found is None or found.finite else found.layer
            raise not_finite(value, self._trainer.step + 1, layer)

    def _pruned(self, taken: PruneStep, log: RunLog | None) -> bool:
        """A pruning step was taken; after the last one the network is sliced.

        Returns:
            Whether it was the last one.
        """
        assert self._pruner is not None
        with random_kept():
            if log is not None:
                log.write("prune", self._trainer.step, **asdict(taken))
            last = self._pruner.done
            if last:
                self._slice()
            if self._config.log.estimate:
                self._facts["pruned"] = self._checks.accuracy(self._trainer.module, self._config.log.estimate)
                self._note(log, "pruned", self._facts["pruned"])
        if last:
            self._warn(fallen(self._facts["dense"], self._facts["pruned"]))
            self._stage("fine-tune")
        return last

    def _slice(self) -> None:
        assert self._pruner is not None
        self._stage("slice")
        result = self._pruner.finish()
        self._recipe, self._report, self._pruner = result.recipe, result.report.to_json(), None
        self._packed = checkpoint.pack(result.module, result.recipe, self._report)
        self._trainer = self._make_trainer(result.module, self._trainer.step)
        if count := self._config.prune.recalibrate:
            recalibrate_batch_norm(result.module, self._setup.train.all(), count)
        self._teach()
        self._warn(self._checks.collapse(self._trainer.module))

    def _warn(self, found: Collapse | str | None) -> None:
        """Tells what the user should know, once."""
        if found is not None and str(found) not in self._warnings:
            self._warnings.append(str(found))
            if self._main:
                _log.warning("warning: %s", found)

    def _validate(self, log: RunLog | None) -> bool:
        """Validates where that is due.

        Returns:
            Whether all steps are done.
        """
        step, over = self._trainer.step, self._trainer.step >= self._total
        epochs, rest = divmod(step, self._setup.epoch_steps)
        if over or (step and not rest and epochs % self._config.log.evaluate == 0):
            self._final = self._checks.accuracy(self._trainer.evaluated)
            self._warn(self._checks.collapse(self._trainer.module))
            self._note(log, "evaluate", self._final)
            if self._final is not None:
                self._facts["best"] = max(self._final.top1, self._facts["best"] or 0.0)
        return over

    def _note(self, log: RunLog | None, kind: str, found: Accuracy | None) -> None:
        if log is not None and found is not None:
            log.write(kind, self._trainer.step, top1=found.top1, top5=found.top5, examples=found.examples)

    def _save(self, log: RunLog | None) -> None:
        """Writes the checkpoint."""
        self._trainer.check_finite()
        self._random = from_all(random_state())
        pruner = None if self._pruner is None else self._pruner.state_dict()
        if log is None:
            return
        now = time.perf_counter()
        self._facts["seconds"], self._begun = self._facts["seconds"] + now - self._begun, now
        facts = {k: v if isinstance(v, float | None) else [v.top1, v.top5, v.examples] for k, v in self._facts.items()}
        save_run(
            self._folder,
            {
                "config": to_data(self._config),
                "output": output_of(self._config),
                "prune": self._prune,
                "processes": self._accelerator.num_processes,
                "fingerprint": self._fingerprint,
                "precision": precision_of(self._accelerator),
                "slim": self._slim_now(),
                "pruner": pruner,
                "trainer": self._trainer.state_dict(),
                "random": self._random,
                "facts": facts,
                "warnings": self._warnings,
                "lines": log.lines,
                "losses": self._losses,
            },
        )

    def _slim_now(self) -> dict[str, Any] | None:
        """The content of a slim.pt with the weights as they are, whose tensors are those of the trainer's state."""
        if self._packed is None:
            return None
        weights = self._trainer.evaluated.state_dict()
        return self._packed | {"state_dict": {name: weights[name].detach() for name in self._packed["state_dict"]}}

    @contextmanager
    def _logging(self) -> Iterator[RunLog | None]:
        if not self._main:
            yield None
            return
        with RunLog(self._folder, self._trainer.step, self._lines, tensorboard=self._config.log.tensorboard) as log:
            yield log

    def _write(self) -> TrainReport:
        self._stage("write")
        if self._teacher is not None:
            self._teacher.close()
        self._trainer.check_finite()
        report = TrainReport(
            model=self._setup.loaded.name,
            output=self._config.output or "",
            folder=str(self._folder),
            dense=self._facts["dense"],
            pruned=self._facts["pruned"],
            final=self._final,
            best=self._facts["best"],
            epochs=self._config.tune.epochs,
            steps=self._trainer.step,
            processes=self._accelerator.num_processes,
            device=str(self._accelerator.device),
            precision=precision_of(self._accelerator),
            latency=self._report.get("latency"),
            resumed=self._resumed,
            seed=self._config.seed,
            seconds=self._facts["seconds"] + time.perf_counter() - self._begun,
            warnings=tuple(self._warnings),
        )
        if self._main:
            network = self._trainer.bare().eval()
            assert isinstance(network, fx.GraphModule)
            checkpoint.save_slim(
                report.output, network, self._known_recipe, self._report | {"training": report.to_json()}
            )
        self._accelerator.wait_for_everyone()
        return report
