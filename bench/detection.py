"""Does every detector of torchvision come out slim, of its own class? `python bench/detection.py [DETECTOR ...]`

Per detector: a full prune at 50 % of its latency on the processor, losses in train mode, boxes in eval mode, raw maps
against the zeroed dense detector in float64, slim.pt there and back, ONNX of the tensor part and of the whole. Beside
it Torch-Pruning on the same detector: whether what it leaves detects and trains, whether the heads shrank, and seconds.
The weights are random and the images small: this is about structure and latency, not about accuracy.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn
from torchvision.models import detection

from bench.common import load, save
from bench.coverage_row import explain
from bench.peers import count, theirs
from mdp_fx.api import PruneResult, prune
from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.detectors.onnx import export_onnx
from mdp_fx.detectors.put_back import put_back
from mdp_fx.detectors.tensor_part import join
from mdp_fx.graph.axes import free_dims
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import randomise, reference, tensors

SIDES = {
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 128,
    "retinanet_resnet50_fpn": 128,
    "retinanet_resnet50_fpn_v2": 128,
    "fcos_resnet50_fpn": 128,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 128,
    "fasterrcnn_mobilenet_v3_large_fpn": 128,
    "fasterrcnn_resnet50_fpn": 128,
    "fasterrcnn_resnet50_fpn_v2": 128,
    "maskrcnn_resnet50_fpn": 128,
    "maskrcnn_resnet50_fpn_v2": 128,
    "keypointrcnn_resnet50_fpn": 128,
}
"""Side of the images for each detector."""

HEADS = ("head.", "rpn.", "roi_heads.")
SHARE = 0.5
STEP = 32
KEYPOINTS = 17


def make(name: str) -> nn.Module:
    """A detector with random weights, none of which are zero, that leaves images at their size."""
    torch.manual_seed(0)
    sizes = {} if name.startswith("ssd") else {"min_size": SIDES[name], "max_size": SIDES[name]}
    # Random weights are sure of nothing: whatever they find is to be seen.
    threshold = {"box_score_thresh" if "rcnn" in name else "score_thresh": 0.0}
    return randomise(getattr(detection, name)(weights=None, weights_backbone=None, **sizes, **threshold)).eval()


def images(name: str, count: int) -> Tensor:
    """Random images for a detector."""
    return torch.rand(count, 3, SIDES[name], SIDES[name], generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, name: str) -> float:
    """The sum of a detector's losses on two images, after a backward pass."""
    side = SIDES[name]
    target = {
        "boxes": torch.tensor([[0.1, 0.2, 0.7, 0.8]]) * side,
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "keypoints": torch.cat([torch.full((1, KEYPOINTS, 2), 0.5 * side), torch.ones(1, KEYPOINTS, 1)], 2),
    }
    model.train()
    losses = model(list(images(name, 2)), [dict(target) for _ in range(2)])
    total = torch.stack([value.sum() for value in losses.values()]).sum()
    total.backward()
    model.zero_grad()
    model.eval()
    if not torch.isfinite(total):
        msg = f"the loss is {float(total.detach())}"
        raise ValueError(msg)
    return float(total.detach())


def detect(model: nn.Module, name: str) -> list[dict[str, Tensor]]:
    """What a detector finds in two images of another size than it was pruned for."""
    side = SIDES[name]
    with torch.no_grad():
        found: list[dict[str, Tensor]] = model.eval()([images(name, 1)[0, :, :, : side - 9], images(name, 2)[1]])
    return found


def parity(model: nn.Module, result: PruneResult, name: str) -> float:
    """Largest error of the slim raw maps in float64 against the zeroed dense ones, over the largest value."""
    wide = copy.deepcopy(model).double()
    part, inputs = join(wide, (images(name, 1).double(),))
    analysis = analyse(part, inputs)
    kept, removed = result.recipe.kept, result.recipe.removed_blocks
    made = put_back(wide, part, analysis, rewrite(analysis, kept, removed))
    again, _ = join(made, (images(name, 1).double(),))
    with torch.no_grad():
        given = analysis.graph.example_inputs
        expected = tensors(reference(analysis, kept, removed).run(*given))
        found = tensors(again(*given))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def round_trip(slim: nn.Module, result: PruneResult, name: str, folder: Path) -> bool:
    """Whether a slim.pt gives a detector of the same class that finds the same."""
    save_slim(folder / "slim.pt", slim, result.recipe, result.report.to_json())
    loaded = load_slim(folder / "slim.pt").module
    pairs = zip(detect(slim, name), detect(loaded, name), strict=True)
    return type(loaded) is type(slim) and all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)


def heads(model: nn.Module) -> int:
    """Parameters outside of the backbone."""
    return sum(p.numel() for path, p in model.named_parameters() if path.startswith(HEADS))


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """What comes of work: its value, or the reason why there is none, and seconds."""
    begin = time.perf_counter()
    try:
        found: dict[str, Any] = {"ok": True, "value": work()}
    except Exception as failure:  # noqa: BLE001 - whatever fails is the result
        found = {"ok": False, "reason": explain(failure)}
    return found | {"seconds": round(time.perf_counter() - begin, 2)}


def last_layers(model: nn.Module, name: str) -> list[str]:
    """Layers whose channels are outputs, as our types say: Torch-Pruning has to be told."""
    part, inputs = join(model, (images(name, 1),))
    graph = analyse(part, inputs).graph
    frozen = [
        path.rpartition(".")[0] for path, tensor, types in graph.stored() if tensor.ndim > 1 and not free_dims(types[0])
    ]
    return list(dict.fromkeys(frozen))


def beside(model: nn.Module, name: str) -> dict[str, Any]:
    """Torch-Pruning on the same detector: half of every group."""
    dense, dense_heads = count(model), heads(model)
    run = attempt(lambda: theirs(model, (images(name, 1),), last_layers(model, name)).network)
    if not run["ok"]:
        return run
    pruned = run.pop("value")
    return run | {
        "parameters": count(pruned) / dense,
        "head_parameters": heads(pruned) / dense_heads,
        "detects": attempt(lambda: len(detect(pruned, name))),
        "trains": attempt(lambda: loss_of(pruned, name)),
    }


def row(name: str) -> dict[str, Any]:
    """All that is asked of one detector."""
    model = make(name)
    begin = time.perf_counter()
    result = prune(model, images(name, 1), latency=SHARE, threads=1, step=STEP, name=name)
    seconds = time.perf_counter() - begin
    slim, latency = result.module, result.report.latency
    with tempfile.TemporaryDirectory() as folder:
        return {
            "side": SIDES[name],
            "seconds": round(seconds, 1),
            "stages": {stage: round(value, 2) for stage, value in result.report.seconds.items()},
            "dense_ms": latency.dense_ms,
            "asked_ms": latency.asked_ms,
            "predicted_ms": latency.predicted_ms,
            "measured_ms": latency.measured_ms,
            "parameters": count(slim) / count(model),
            "head_parameters": heads(slim) / heads(model),
            "removed_blocks": list(result.recipe.removed_blocks),
            "same_class": type(slim) is type(model),
            "trains": attempt(lambda: loss_of(slim, name)),
            "detects": attempt(lambda: len(detect(slim, name))),
            "parity": attempt(lambda: parity(model, result, name)),
            "round_trip": attempt(lambda: round_trip(slim, result, name, Path(folder))),
            "onnx": attempt(lambda: export_onnx(slim, images(name, 1), Path(folder) / "part.onnx").max_rel_error),
            "whole_onnx": attempt(
                lambda: export_onnx(slim, images(name, 1), Path(folder) / "whole.onnx", whole=True).max_rel_error
            ),
            "torch_pruning": attempt(lambda: beside(model, name)),
        }


def main(names: list[str]) -> None:
    """Adds rows to bench/results/detection.json."""
    rows = load("detection").get("detectors", {})
    for name in names or SIDES:
        print(name, flush=True)
        rows[name] = attempt(lambda name=name: row(name))  # type: ignore[misc]
        save("detection", {"share": SHARE, "step": STEP, "detectors": rows}, quiet=True)
    print("wrote bench/results/detection.json")


if __name__ == "__main__":
    main(sys.argv[1:])
