"""The folder of a training run: what it may not overwrite, who is at work in it, and what a run goes on from.

There is one rule. Nothing that is there is replaced without --force, and nothing that is read is replaced at all.
--resume goes on from the checkpoint with the settings that it was made with; --resume --force also with other ones, of
those that concern only the steps to come. --force without --resume starts anew.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mdp_fx.errors import InputError, OutputError, TrainingError
from mdp_fx.files import check_output, reason, same_file
from mdp_fx.train import run_log, run_state
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import differing, from_data
from mdp_fx.train.processes import place

SETTINGS = "settings.yaml"
"""What a run was told, with every key."""

LOCK = "lock"

_log = logging.getLogger(__name__)

_FREE = ("log.", "data.workers", "folder", "output", "device")
"""Keys that may always change: they do not change what a run computes. A dot at the end stands for a whole section."""

_AHEAD = (
    *("tune.epochs", "tune.rate", "tune.schedule", "tune.points", "tune.final_rate", "tune.warmup", "tune.clip"),
    *("tune.momentum", "tune.nesterov", "tune.weight_decay", "tune.norm_weight_decay"),
    *("tune.label_smoothing", "tune.mixup", "tune.cutmix", "distill.", "data.val", "data.val_batches"),
)
"""Keys that concern only the steps to come."""

_BUDGETS = ("prune.latency", "prune.params", "prune.macs")
"""Such keys until the network is sliced."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def folder_of(config: TrainConfig) -> Path:
    """The folder of a run with these settings."""
    assert config.output is not None
    if config.folder is not None:
        return Path(config.folder)
    output = Path(config.output)
    return output.with_name(f"{output.stem}-run")


def output_of(config: TrainConfig) -> str:
    """The output of a run with these settings, whatever the working directory."""
    return str(Path(config.output or "").resolve())


def check_paths(config: TrainConfig, sources: Sequence[str | Path] = ()) -> None:
    """Checks that the run does not write over what it reads, or over itself.

    Args:
        config: the settings.
        sources: further files that are read.

    Raises:
        OutputError: the output, or a file of the run, is one that is read, or cannot be written.
        InputError: the folder is none.
    """
    output = Path(config.output or ".")
    check_output(output, force=True)
    folder = folder_of(config)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file, not the folder of a run: name another one with --folder"
        raise InputError(msg)
    own = [folder / name for name in (run_state.FILE, run_log.FILE, SETTINGS, LOCK)]
    for path in (*sources, config.model, config.distill.teacher):
        if path is not None and same_file(output, path):
            msg = f"the output {output} is what is read; name another output file"
            raise OutputError(msg)
        if path is not None and any(same_file(each, path) for each in own[:2]):
            msg = f"{path} is what is read, and the run in {folder} would replace it: name another --folder"
            raise OutputError(msg)
    if output.resolve() in [each.resolve() for each in own]:
        msg = f"the output {output} is a file of the run itself; name another output file"
        raise OutputError(msg)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; where nothing is written into it, it is gone again.

    Raises:
        TrainingError: another run is at work there.
        OutputError: the folder cannot be made or written to.
    """
    made = not folder.exists()
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        msg = f"cannot write into {folder}, the folder of the run: {reason(error)}; name another one with --folder"
        raise OutputError(msg) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(path, file):
                raise BlockingIOError  # Its last holder took it away meanwhile.
        except BlockingIOError as error:
            msg = f"another run is at work in {folder}: wait for its end, or name another --folder"
            raise TrainingError(msg) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # A file system without locks: whoever starts two runs there is not told.
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # There is something in it.
                    folder.rmdir()


def find_run(config: TrainConfig, resume: bool, force: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; a run that goes on may replace the output that it was begun with.

    Raises:
        TrainingError: the folder holds a run, and what is to become of it was not said.
        OutputError: the output is there already.
    """
    folder = folder_of(config)
    state = run_state.load_run(folder) if resume and folder.exists() else None
    own = state is not None and state.get("output") == output_of(config)
    check_output(config.output or "", force or own)
    if resume and state is None and place()[0] == 0:
        _log.warning("warning: %s holds no run to go on with: a new one begins", folder)
    if not resume and (folder / run_state.FILE).exists() and not force:
        msg = f"{folder} holds a run already: go on with it (--resume), start anew (--force), or name another --folder"
        raise TrainingError(msg)
    return state


def changes(state: Mapping[str, Any], new: TrainConfig, folder: Path, force: bool) -> dict[str, list[Any]]:
    """The settings in which a run goes on otherwise than it was begun: [before, after] by key.

    Args:
        state: its checkpoint.
        new: the settings now.
        folder: of the run.
        force: whether settings may differ at all.

    Raises:
        TrainingError: one differs that may not.
    """
    ahead = _AHEAD if state["slim"] is not None else (*_AHEAD, *_BUDGETS)
    found: dict[str, list[Any]] = {}
    for name, before, after in differing(from_data(state["config"], str(folder / run_state.FILE)), new):
        if _among(name, _FREE):
            continue
        begun = f"the run in {folder} was begun with {name} {before}, not {after}"
        if not _among(name, ahead):
            msg = f"{begun}, and it cannot change on the way: set it back, or start anew (--force without --resume)"
            raise TrainingError(msg)
        if not force:
            msg = f"{begun}: set it back, or go on with the new value (--resume --force)"
            raise TrainingError(msg)
        found[name] = [before, after]
    return found


def check_origin(state: Mapping[str, Any], mine: Mapping[str, Any], folder: Path, model: str) -> None:
    """Checks that a checkpoint is of the same command, network, number format and number of processes.

    Args:
        state: the checkpoint.
        mine: what this run has under "prune", "fingerprint", "precision" and "processes".
        folder: of the run.
        model: name of the network.

    Raises:
        TrainingError: it is not.
    """
    odd = next((name for name, value in mine.items() if state[name] != value), None)
    if odd is None:
        return
    told = {
        "prune": f"was begun by mdp-fx {'train' if state['prune'] else 'finetune'}: use that",
        "fingerprint": f"began when {model} had other weights: bring those back",
        "precision": f"was begun in {state['precision']}, not {mine['precision']}: set precision to that",
        "processes": f"was made by {state['processes']} processes, this one has {mine['processes']}: start as many",
    }
    msg = f"the run in {folder} {told[odd]}"
    raise TrainingError(msg)


def begin_anew(folder: Path) -> None:
    """Takes the checkpoint of an earlier run away: what comes now is another run."""
    (folder / run_state.FILE).unlink(missing_ok=True)


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _among(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or (key.endswith(".") and name.startswith(key)) for key in keys)
