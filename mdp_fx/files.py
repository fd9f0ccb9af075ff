"""Writing results so that a file is either whole or absent."""

from __future__ import annotations

import codecs
import errno
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from mdp_fx.errors import MdpFxError, OutputError

_pending: ContextVar[list[tuple[Path, Path]]] = ContextVar("_pending")
"""(temporary file, its place) of what is being written together."""


def check_output(path: str | os.PathLike[str], force: bool = False) -> None:
    """Checks, before the work starts, that `path` can be written at its end.

    Args:
        path: file to be written later.
        force: allow it to exist.

    Raises:
        OutputError: it exists (without `force`), is no regular file, or its folder is missing or not writable.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is not a regular file; name another output file")
    if target.exists() and not force:
        raise OutputError(f"{path} exists; pass --force to overwrite it or name another output file")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {Path(path).parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {Path(path).parent} is not writable")


def atomic_write(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Writes a file through a temporary one in the same folder, which replaces `path` only when it is complete.

    Args:
        path: file to write; overwritten if it exists (`check_output` guards against that).
        writer: gets the open binary file and writes the content.

    Raises:
        OutputError: the file cannot be written; `path` is as it was before.
    """
    with together():
        target = Path(os.path.realpath(path))
        check_output(target, force=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        _pending.get().append((temporary, target))
        try:
            with temporary.open("xb") as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from error


@contextmanager
def together() -> Iterator[None]:
    """Within it, no file that `atomic_write` writes appears before all are complete; where one fails, none does.

    Raises:
        OutputError: a complete file cannot be put in its place.
    """
    if _pending.get(None) is not None:
        yield
        return
    written: list[tuple[Path, Path]] = []
    token = _pending.set(written)
    try:
        yield
        for temporary, target in written:
            try:
                temporary.replace(target)
            except OSError as error:
                raise OutputError(f"cannot write {target}: {reason(error)}") from error
    finally:
        _pending.reset(token)
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Why a file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk full; free some space or name a file on another disk"
    return (error.strerror or type(error).__name__).lower()


@contextmanager
def reading(path: str | os.PathLike[str], kind: type[MdpFxError]) -> Iterator[None]:
    """Says in one line why a file cannot be read.

    Raises:
        MdpFxError: of that kind, where the body meets an error of the system.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot read {path}: {(error.strerror or 'error').lower()}") from error


def same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both name one file that is there, by whatever path or link."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # One of them is no file, such as torchvision:resnet18.
        return False


def holds_json(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a JSON object does: no network's file, not even a pickle in text, begins with a brace.

    False for what cannot be read.
    """
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    except OSError:  # Whoever reads all of it says why that cannot be done.
        return False


def finite(data: Any) -> Any:
    """JSON data in which infinite and undefined numbers are null."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
