"""ONNX export of any model: a detector's tensor part (raw maps), or the whole of it with its boxes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import InputError, ModelError, ParityError, first_line
from mdp_fx.exporters.onnx_export import export_onnx as export_network
from mdp_fx.exporters.onnx_model import quiet
from mdp_fx.exporters.parity import ParityReport, max_relative_error
from mdp_fx.files import atomic_write, check_output
from mdp_fx.graph.modes import eval_mode
from mdp_fx.graph.trace import detached_copy
from mdp_fx.pipeline import as_inputs

OPSET = 18

_EQUAL = 1e-6
"""Difference of two scores that rounding can turn around."""


def export_onnx(
    model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], force: bool = False, *, whole: bool = False
) -> ParityReport:
    """Writes a model as ONNX, with its weights inside the file, checked in ONNX Runtime against torch.

    Of a detector it is the tensor part: from normalised images (and boxes, where it pools them) to the raw maps of its
    heads, with a dynamic batch. Other models are exported whole, with a dynamic batch where they can have one.

    Args:
        model: exported in eval mode, left in the mode it was in.
        example_inputs: a tensor, or the positional arguments of its forward; a detector gets a batch of images.
        path: file to write.
        force: overwrite an existing file.
        whole: export a detector from one image to its boxes; the image's size is fixed.

    Raises:
        InputError: `whole` with several images, or with a model that is no detector.
        ModelError: the model cannot be exported, or is larger than the 2 GB one ONNX file holds.
        ParityError: ONNX Runtime computes something else.
        OutputError: the file cannot be written, or exists (without `force`).
    """
    check_output(path, force)
    inputs = as_inputs(example_inputs)
    subject = subject_of(model, inputs)
    if not whole:
        return export_network(subject.runnable(), subject.inputs, path, force)
    if not subject.is_part:
        raise InputError(f"--whole is for detectors: {type(model).__name__} is exported whole without it")
    if len(inputs[0]) != 1:
        raise InputError(f"a whole detector is exported for one image, not a batch of {len(inputs[0])}: leave --batch")
    with eval_mode(model), torch.no_grad():
        data, report = _whole(model, inputs[0][0])
    atomic_write(Path(path), lambda file: file.write(data))
    return report


def _whole(model: nn.Module, image: Tensor) -> tuple[bytes, ParityReport]:
    data, expected, found = _exported(model, image)
    report = _compare_detections(expected, found)
    if len(expected["boxes"]):
        return data, report
    # Nothing was found, so nothing was compared: without thresholds there is something.
    eager = detached_copy(model).eval()
    for module in eager.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0  # type: ignore[assignment]
    return data, _compare_detections(*_exported(eager, image)[1:])


def _exported(model: nn.Module, image: Tensor) -> tuple[bytes, dict[str, Tensor], dict[str, Tensor]]:
    """(ONNX, what the model finds, what the ONNX finds)."""
    import onnxruntime

    buffer = io.BytesIO()
    try:
        (expected,) = model([image])
        names = list(expected)
        if not {"boxes", "scores", "labels"} <= set(names):
            msg = f"it gives {', '.join(names)} for an image, not boxes, scores and labels"
            raise TypeError(msg)
        with quiet():
            # torchvision's detectors are written for the tracing exporter; the newer one refuses their post-processing.
            torch.onnx.export(
                model,
                ([image],),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={name: {0: "detections"} for name in names},
            )
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        values = session.run(None, {"image": image.cpu().numpy()})
    except Exception as error:  # the exporter and the runtime raise errors of many kinds
        what = f"cannot export the whole of {type(model).__name__}: {first_line(error)}"
        raise ModelError(f"{what}; without --whole its backbone and heads are exported") from error
    return buffer.getvalue(), expected, dict(zip(names, map(torch.from_numpy, values), strict=True))


def _compare_detections(expected: dict[str, Tensor], found: dict[str, Tensor]) -> ParityReport:
    """Compares scores in order, and detections one by one.

    Where scores are equal, chance says which detection suppresses which: only those with a score of their own count.

    Raises:
        ParityError: there is a detection on one side that the other does not have.
    """
    ours, theirs = _rows(expected), _rows(found)
    if len(ours) != len(theirs):
        raise ParityError(f"the exported model finds {len(theirs)} objects instead of {len(ours)}")
    if not len(ours):
        return ParityReport(0.0, 0.0, dynamic_batch=False)
    scale = ours.abs().amax(0).clamp(min=1.0)
    scores, others = ours[:, 4].sort().values, theirs[:, 4].sort().values
    worst = float((scores - others).abs().max())
    single = ((ours[:, None, 4] - ours[None, :, 4]).abs() <= _EQUAL).sum(1) == 1
    if single.any():
        apart, rows = ((ours[single][:, None] - theirs[None]) / scale).abs().amax(-1).min(1)
        worst = max(worst, float(apart.max()))
        for name in expected.keys() - {"boxes", "scores", "labels"}:  # Masks, keypoints
            one, other = expected[name].double().cpu()[single], found[name].double()[rows]
            worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1.0)))
    if not worst <= max_relative_error(expected["boxes"].dtype):
        raise ParityError(f"a detection of the exported model is off by {worst:.3g} of the largest value")
    return ParityReport(worst * float(scale.max()), worst, dynamic_batch=False)


def _rows(detections: dict[str, Tensor]) -> Tensor:
    """Box, score and label of each detection as one row; shape (detections, 6)."""
    columns = [detections["boxes"], detections["scores"][:, None], detections["labels"][:, None]]
    return torch.cat([column.double().cpu() for column in columns], 1)
