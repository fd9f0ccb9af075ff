"""Networks, ONNX files and TensorRT engines timed against each other: `bench`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mdp_fx.detectors.subject import Subject, subject_of
from mdp_fx.errors import InputError, ModelError, TargetError
from mdp_fx.files import reading
from mdp_fx.graph.trace import detached_copy
from mdp_fx.latency.measuring import time_in_turn, timings_of
from mdp_fx.latency.peak_memory import peak_memory
from mdp_fx.latency.ratio import FEWEST_ROUNDS, ratio_of
from mdp_fx.latency.targets import Runner, RunsEngines, RunsOnnx, Target, get_target, is_engine, is_onnx, runs_nothing
from mdp_fx.onnx_inputs import onnx_inputs
from mdp_fx.passes.arguments import check_time_limit
from mdp_fx.pipeline import as_inputs
from mdp_fx.report.facts import BenchRow


def bench(
    models: Mapping[str, nn.Module | str | os.PathLike[str]],
    example_inputs: Any,
    *,
    target: str = "onnxruntime:cpu",
    threads: int | None = None,
    dtype: str = "float32",
    memory: bool = False,
    time_limit: float = 20.0,
) -> tuple[BenchRow, ...]:
    """Times networks in turn on a target; ratios are over the first one.

    Args:
        models: networks (of detectors their tensor part: backbone and heads), ONNX files (`.onnx`) and TensorRT
            engines (`.engine`, `.plan`), by the names to show.
        example_inputs: a tensor, or the positional arguments of the networks' forward. An ONNX file gets inputs of its
            own shapes and types; what it leaves open is as in `example_inputs`.
        target: where to time them.
        threads: CPU threads of the target, None for one per physical core.
        dtype: number format that networks run in; ONNX files and engines have their own.
        memory: also measure the peak memory of each, in a process of its own; on targets on the processor.
        time_limit: seconds after which no further round starts, 20 rounds granted; most are steady before that.

    Raises:
        InputError: the target does not run such a file, memory is asked for on another device, or the time limit is no
            number above 0.
        ModelError: a network or file cannot be brought to the target.
        TargetError: there is no such target.
    """
    check_time_limit(time_limit)
    inputs = as_inputs(example_inputs)
    device = get_target(target, threads, dtype)
    check_runnable(models, device, memory)
    models, own = _networks_and_inputs(models, inputs)
    runners: dict[str, Runner] = {}
    try:
        for name, model in models.items():
            runners[name] = _prepare(model, own[name], device)
        rounds = time_in_turn(runners, max_time_s=time_limit, min_runs=FEWEST_ROUNDS)
    finally:
        for runner in runners.values():
            runner.close()
    first = next(iter(rounds), "")
    rows: list[BenchRow] = []
    timings = timings_of(rounds)
    for name, runs in rounds.items():
        timing = timings[name]
        ratio = ratio_of(runs, rounds[first]) if name != first else None
        peak, failure = _peak(device, models[name], own[name]) if memory else (None, None)
        rows.append(
            BenchRow(
                name=name,
                median_ms=1e3 * timing.median_s,
                p90_ms=1e3 * timing.p90_s,
                runs=timing.runs,
                per_second=_batch(own[name]) / timing.median_s,
                ratio=ratio.value if ratio is not None else 1.0,
                interval=(ratio.low, ratio.high) if ratio is not None else None,
                inputs=tuple(tuple(value.shape) for value in own[name]),
                disturbed=timing.disturbed,
                memory_bytes=peak,
                memory_failure=failure,
            )
        )
    return tuple(rows)


def check_runnable(models: Mapping[str, object], device: Target, memory: bool = False) -> None:
    """Checks, before the work starts, that a target runs what is to be timed on it; files are not read yet.

    Args:
        models: files and others by name.
        device: the target.
        memory: whether the peak memory is to be measured as well.

    Raises:
        InputError: it does not.
        TargetError: it is a table.
        ModelError: a file is missing.
    """
    if not device.can_run:
        raise runs_nothing(device.name)
    for model in models.values():
        if not isinstance(model, str | os.PathLike):
            continue
        path = Path(model)
        if is_onnx(path):
            if not isinstance(device, RunsOnnx):
                hint = "use --target onnxruntime:cpu"
                raise InputError(f"{path} is an ONNX file, which {device.name} does not run: {hint}")
        elif not is_engine(path):
            raise InputError(f"{path} is neither an ONNX file (.onnx) nor a TensorRT engine (.engine, .plan)")
        elif not isinstance(device, RunsEngines):
            raise InputError(f"{path} is a TensorRT engine, which {device.name} does not run: use --target tensorrt")
        if not path.is_file():
            raise ModelError(f"{path} is a folder; name a file in it" if path.is_dir() else f"there is no file {path}")
    if memory and not device.name.endswith(":cpu"):
        raise InputError(f"peak memory is measured on the processor: {device.name} has a device of its own")


def _networks_and_inputs(
    models: Mapping[str, nn.Module | str | os.PathLike[str]], inputs: tuple[Any, ...]
) -> tuple[dict[str, nn.Module | str | os.PathLike[str]], dict[str, tuple[Any, ...]]]:
    """What is timed by name, and on which inputs: copies in eval mode, for networks stay the user's as they are.

    Detectors get the same boxes, however many each finds.
    """
    made: dict[str, nn.Module | str | os.PathLike[str]] = {}
    own: dict[str, tuple[Any, ...]] = {}
    first: Subject | None = None
    for name, model in models.items():
        subject = subject_of(model, inputs) if isinstance(model, nn.Module) else None
        if subject is None or not subject.is_part:
            made[name] = detached_copy(model).eval() if isinstance(model, nn.Module) else model
            own[name] = _own_inputs(model, inputs)
            continue
        first = first or subject
        alike = [value.shape[2:] for value in first.inputs] == [value.shape[2:] for value in subject.inputs]
        made[name], own[name] = subject.runnable(), first.inputs if alike else subject.inputs
    return made, own


def _own_inputs(model: nn.Module | str | os.PathLike[str], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(model, nn.Module) or not is_onnx(Path(model)):
        return inputs
    return onnx_inputs(Path(model), [value for value in inputs if isinstance(value, Tensor)])


def _prepare(model: nn.Module | str | os.PathLike[str], inputs: tuple[Any, ...], device: Target) -> Runner:
    if isinstance(model, nn.Module):
        return device.prepare(model, inputs)
    path = Path(model)
    if is_onnx(path):
        assert isinstance(device, RunsOnnx)
        return device.prepare_onnx(path, inputs)
    assert isinstance(device, RunsEngines)
    with reading(path, ModelError):
        data = path.read_bytes()
    return device.prepare_engine(data, inputs)


def _batch(inputs: tuple[Any, ...]) -> int:
    """Size of axis 0 of the first input; 1 where it has none."""
    return int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1


def _peak(
    device: Target, model: nn.Module | str | os.PathLike[str], inputs: tuple[Any, ...]
) -> tuple[int | None, str | None]:
    """(bytes, why there are none)."""
    try:
        return peak_memory(device, model if isinstance(model, nn.Module) else Path(model), inputs), None
    except (ModelError, TargetError) as error:
        return None, str(error)
