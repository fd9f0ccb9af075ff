"""Peak memory of one network alone: a process of its own loads and runs it."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdp_fx.errors import TargetError, first_line
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.targets import RunsOnnx, Target, get_target, is_onnx

_RUNS = 3
_TIMEOUT_S = 600.0


def peak_memory(target: Target, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that a process needs to load a network and to run it, beyond what runtime and libraries take.

    Where the target runs ONNX files, the process reads one; else a pickle of the module.

    Args:
        target: a target on the processor.
        network: a module in eval mode, or an ONNX file.
        inputs: what to run it on.

    Raises:
        ModelError: the network cannot be exported.
        TargetError: the process failed, or this system does not tell its peak; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="mdp-fx-") as name:
        folder = Path(name)
        if isinstance(network, nn.Module):
            network, inputs = cast_network(network, inputs, target.dtype)
        torch.save(inputs, folder / "inputs.pt")
        answer = folder / "answer"
        file = network if isinstance(network, Path) else _written(target, network, inputs, folder)
        job = {
            "target": target.name,
            "threads": target.threads,
            "dtype": target.dtype,
            "network": str(file.resolve()),
            "inputs": str(folder / "inputs.pt"),
            "imports": [] if is_onnx(file) else _sources(network),
            "answer": str(answer),
        }
        # -P: a file of the working folder must not come in place of one that Python or torch imports
        command = [sys.executable, "-P", "-m", "mdp_fx.latency.peak_memory", json.dumps(job)]
        try:
            done = subprocess.run(command, env=_environment(), capture_output=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"its process was stopped after {_TIMEOUT_S:.0f} s") from error
        if not answer.exists():
            raise TargetError(f"its process failed: {_reason(done)}")
        return int(answer.read_text(encoding="ascii"))


def _written(target: Target, module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    if isinstance(target, RunsOnnx):
        path = folder / "network.onnx"
        path.write_bytes(to_onnx_bytes(module, inputs))
        return path
    path = folder / "network.pt"
    try:
        torch.save(module, path)
    except Exception as error:  # pickling runs code of the network's own classes
        raise TargetError(f"it cannot be handed to another process: {first_line(error)}") from error
    return path


def _sources(network: nn.Module | Path) -> list[str]:
    """The Python modules that a network's classes are from: importing them is not its own memory."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return sorted({type(module).__module__ for module in modules} - {"__main__"})


def _environment() -> dict[str, str]:
    """That of this process, with its import path: the network's classes may come from there or the working folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(Path.cwd())])}


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"it was ended by {name}" + (", as if memory had run out" if name == "SIGKILL" else "")
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].removeprefix("mdp_fx.errors.")[:200]


def _resident_peak() -> int:
    """Bytes of physical memory that this process had at most.

    Linux counts for a new process what its parent had (`ru_maxrss` outlives exec), so there the kernel's own record
    of the address space is read.
    """
    if sys.platform == "linux":
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        if found is None:
            raise TargetError("this Linux does not tell the peak memory of a process (VmHWM)")
        return 1024 * int(found[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raise TargetError("peak memory is measured on Linux and macOS only")


def _measure(job: Mapping[str, Any]) -> int:
    target = get_target(job["target"], job["threads"], job["dtype"])
    for name in job["imports"]:
        importlib.import_module(name)
    inputs = torch.load(job["inputs"], weights_only=True)
    network = Path(job["network"])
    before = _resident_peak()
    if is_onnx(network):
        runner = cast("RunsOnnx", target).prepare_onnx(network, inputs)
    else:
        runner = target.prepare(torch.load(network, weights_only=False), inputs)  # our own file, written just before
    for _ in range(_RUNS):
        runner()
    return _resident_peak() - before


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    Path(work["answer"]).write_text(str(_measure(work)), encoding="ascii")
