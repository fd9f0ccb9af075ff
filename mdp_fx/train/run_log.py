"""What a run tells of itself: a JSONL file, and TensorBoard's."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from mdp_fx.errors import InputError, OutputError
from mdp_fx.files import atomic_write, finite, reason

FILE = "log.jsonl"


class RunLog:
    """Appends one JSON object a line; numbers go to TensorBoard too.

    Args:
        folder: of the run.
        step: where the run begins or goes on.
        lines: how many lines it had logged by then: what an interrupted run logged beyond them is taken back.

    Attributes:
        lines: how many there are.
        tensorboard: whether to log for TensorBoard.

    Raises:
        InputError: TensorBoard is not installed.
        OutputError: the log cannot be written.
    """

    def __init__(self, folder: Path, step: int, lines: int, *, tensorboard: bool) -> None:
        self._path = folder / FILE
        kept = _lines(self._path)[:lines]
        self.lines = len(kept)
        atomic_write(self._path, lambda file: file.write("".join(kept).encode()))
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                msg = "logging for TensorBoard needs it: pip install 'mdp-fx[train]', or set log.tensorboard to false"
                raise InputError(msg) from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, step: int, **facts: Any) -> None:
        """Logs facts of a step.

        Args:
            kind: of the line, such as "train", "evaluate" or "prune".
            step: steps done.
            facts: JSON data; numbers that are not finite become null.

        Raises:
            OutputError: the log cannot be written.
        """
        line = json.dumps(finite({"kind": kind, "step": step, **facts}), allow_nan=False) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            msg = f"cannot write {self._path}: {reason(error)}"
            raise OutputError(msg) from error
        self.lines += 1
        if self._board is not None:
            for name, value in facts.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
