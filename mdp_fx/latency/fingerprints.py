"""Fingerprints of targets, read again: what was measured on, and whether that can still be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

_FORM = re.compile(
    r"(?P<target>\S+) (?P<runtime>\S+) (?P<version>\S+) (?P<device>.+?)"
    r"(?: threads (?P<threads>\d+))? (?P<dtype>\w+) m\d+"
)
_PACKAGES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
"""Packages that bring a runtime, where it is not called as they are."""


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint and its parts; those that it does not have are None.

    Attributes:
        text: all of it.
        target: name of the target.
        runtime: what ran there, and `version` which.
        device: the processor.
        threads: of the processor.
        dtype: number format.
    """

    text: str
    target: str | None = None
    runtime: str | None = None
    version: str | None = None
    device: str | None = None
    threads: int | None = None
    dtype: str | None = None

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Takes a fingerprint apart; another form than that of the targets is left whole."""
        found = _FORM.fullmatch(text)
        if found is None:
            return cls(text)
        parts = found.groupdict()
        threads = parts.pop("threads")
        return cls(text, **parts, threads=int(threads) if threads is not None else None)

    @property
    def is_stale(self) -> bool:
        """Whether its runtime is installed here in another version: this one measures nothing any more."""
        if self.runtime is None or self.version is None:
            return False
        installed = _installed(self.runtime)
        return bool(installed) and not any(_same(self.version, each) for each in installed)


def _installed(runtime: str) -> list[str]:
    versions = []
    for package in _PACKAGES.get(runtime, (runtime,)):
        try:
            versions.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return versions


def _same(version: str, installed: str) -> bool:
    """A package need not say the build ("+cu130") that its runtime names."""
    return version == installed or ("+" not in installed and version.partition("+")[0] == installed)
