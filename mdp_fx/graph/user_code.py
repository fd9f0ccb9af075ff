"""Lines of the model's code, to be named in messages."""

from __future__ import annotations

import linecache
import os
import sys
import textwrap
import traceback
from pathlib import Path
from types import FrameType

import torch

OWN = tuple(f"{Path(package).parent}{os.sep}" for package in (__file__, torch.__file__))
"""Where code lies that is not the model's."""


def user_line() -> str:
    """The line of the model's code that is running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    if frame is None:
        return "unknown line"
    file = frame.f_code.co_filename
    return spelled(file, frame.f_lineno, linecache.getline(file, frame.f_lineno))


def raised_at(error: BaseException) -> str:
    """The line of the model's code that an error comes from, in brackets; nothing where it comes from none."""
    # What Python generates, such as the code of a dataclass, is in no file.
    own = (*OWN, "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f" ({spelled(frames[-1].filename, frames[-1].lineno, frames[-1].line)})" if frames else ""


def is_fault_of_ours(error: BaseException) -> bool:
    """Whether an assertion in the code beside this file failed."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) and bool(frames) and frames[-1].filename.startswith(OWN[0])


def spelled(file: str, number: object, code: str | None) -> str:
    """A line in words: its file's name, its number, and what it says."""
    return f"{Path(file).name}, line {number}: {textwrap.shorten(code or '', 80)}"
