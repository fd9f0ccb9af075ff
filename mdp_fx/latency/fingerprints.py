"""Fingerprints of targets, read again: what was measured on, and whether that can still be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from mdp_fx.errors import TargetError
from mdp_fx.exporters.nvidia import gpu_libraries, gpu_model, missing_gpu
from mdp_fx.latency.targets import target_class

_PACKAGES = {
    "torch": ("torch",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13",),
}
"""Packages that bring a library, by its name in fingerprints."""
_FURTHER = "|".join([*_PACKAGES, "nvinfer", "driver", "CUDA", "cuDNN"])
_FORM = re.compile(
    rf"(?P<target>\S+) (?P<runtime>\S+) (?P<version>\S+)(?P<further>(?: (?:{_FURTHER}) \S+)*) (?P<device>.+?)"
    r"(?: threads (?P<threads>\d+))? (?P<dtype>\w+) m(?P<method>\d+)"
)


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint and its parts; those that it does not have are None.

    Attributes:
        text: all of it.
        target: name of the target.
        runtime: what ran there, and `version` which.
        device: the processor, or the GPU with the processor that it was launched from, and their settings.
        threads: of the processor.
        dtype: number format.
        method: number of the way of measuring.
        libraries: versions by name, the runtime's among them.
    """

    text: str
    target: str | None = None
    runtime: str | None = None
    version: str | None = None
    device: str | None = None
    threads: int | None = None
    dtype: str | None = None
    method: int | None = None
    libraries: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Takes a fingerprint apart; another form than that of the targets is left whole."""
        found = _FORM.fullmatch(text)
        if found is None:
            return cls(text)
        parts = found.groupdict()
        threads, method, further = parts.pop("threads"), int(parts.pop("method")), parts.pop("further").split()
        libraries = {parts["runtime"]: parts["version"], **dict(zip(further[::2], further[1::2], strict=True))}
        return cls(
            text,
            **parts,
            threads=int(threads) if threads is not None else None,
            method=method,
            libraries=libraries,
        )

    @property
    def is_stale(self) -> bool:
        """Whether nothing here writes or reads it any more.

        That is so where mdp-fx measures in a newer way now, or another version of one of its libraries is installed
        here. The driver and CUDA's libraries count for this machine's own GPU: another machine may have others.
        """
        return self._is_of_older_method() or any(
            here and not any(_same(version, each) for each in here)
            for name, version in self.libraries.items()
            for here in [self._installed(name)]
        )

    def _is_of_older_method(self) -> bool:
        if self.target is None or self.method is None:
            return False
        try:
            now = target_class(self.target).method
        except TargetError:  # a target of another version of mdp-fx, or one whose package is not here
            return False
        return now is not None and self.method < now

    def _installed(self, library: str) -> list[str]:
        """The versions of a library that are here."""
        versions = []
        for package in _PACKAGES.get(library, ()):
            try:
                versions.append(metadata.version(package))
            except metadata.PackageNotFoundError:
                continue
        if not missing_gpu() and (self.device or "").startswith(f"{gpu_model()} "):
            versions += [version for name, version in gpu_libraries().items() if name == library]
        return versions


def _same(version: str, installed: str) -> bool:
    """A package need not say the build ("+cu130") that its runtime names."""
    return version == installed or ("+" not in installed and version.partition("+")[0] == installed)
