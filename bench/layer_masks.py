"""A mask file of MDP applied to ResNet-50: is the slim network what the masks say, and how fast is it?

The file comes from the pruning runs published with MDP (NVlabs/MDP). The slim network must have exactly its channel
counts and equal, in float64, the dense network in which hooks zero the masked channels. Its latency is measured with
ONNX Runtime on the CPU in turn with the dense network, and stands beside what the table of the Titan V predicts for
both. The file removes no block: a copy in which one block has no channels left shows that. Weights are random: only
structure and latency are of interest here. Where other processes were in the way of most rounds, milliseconds are not
this machine's: the results say so, and the exit status is 1.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision
from torch import Tensor, nn

import mdp_fx
from bench.common import SHARED, save
from mdp_fx.mask_file import read_masks
from mdp_fx.report.facts import BUSY

MASKS = SHARED / "masks" / "resnet50_step15_mask.pkl"
THREADS = 1
PARITY = 1e-10
"""Largest difference to the masked network in float64, over the largest output."""
TARGET, TARGET_BATCH = "titan-v", 256
CLOSED = "layer3.4"
"""The block that loses all its channels in the copy."""


def dense_network() -> nn.Module:
    """ResNet-50 with random weights, and with statistics and scales that let no branch be zero."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.6, 1.5)
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.3, 0.3)
    return model.eval()


def masked_network(dense: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The dense network with the masked channels of every convolution, and of the norm after it, zeroed."""
    masked = copy.deepcopy(dense)
    for name, mask in masks.items():
        norm = f"{name[:-1]}1" if name.endswith("downsample.0") else name.replace("conv", "bn")
        for part in (name, norm):
            wide = mask.double()[:, None, None]
            masked.get_submodule(part).register_forward_hook(lambda _m, _i, out, wide=wide: out * wide)
    return masked


def structure(slim: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many channels every layer has beside how many its mask keeps; removed layers have none."""
    there = dict(slim.named_modules())
    rows = {
        name: {"mask": int(mask.sum()), "slim": there[name].out_channels if name in there else 0}
        for name, mask in masks.items()
    }
    wrong = [name for name, row in rows.items() if row["mask"] != row["slim"]]
    return {"layers": len(rows), "wrong": wrong, "channels": rows}


def parity(dense: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest difference to the masked dense network in float64, over the largest output; and that to the dense one."""
    dense = copy.deepcopy(dense).double()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double()
    slim = mdp_fx.apply_masks(dense, masks, images).module
    with torch.no_grad():
        expected, found, unmasked = masked_network(dense, masks)(images), slim(images), dense(images)
    largest = float(expected.abs().max())
    return {
        "largest_output": largest,
        "difference": float((expected - found).abs().max()) / largest,
        "difference_to_dense": float((unmasked - found).abs().max()) / largest,
    }


def reloaded(result: mdp_fx.MaskedResult, images: Tensor) -> float:
    """Largest difference of the slim network to the one that is read from its file."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "slim.pt"
        mdp_fx.save(result, path)
        return float((mdp_fx.load(path)(images) - result.module(images)).abs().max())


def predicted(networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What the table of the Titan V says."""
    images = torch.zeros(TARGET_BATCH, 3, 224, 224)
    found: dict[str, Any] = {"target": TARGET, "batch": TARGET_BATCH}
    for name, network in networks.items():
        latency_ms = mdp_fx.profile(network, images, target=TARGET).dense_ms
        found[name] = {"latency_ms": latency_ms, "images_per_s": 1e3 * TARGET_BATCH / latency_ms}
    return found | {"share": found["slim"]["latency_ms"] / found["dense"]["latency_ms"]}


def measured(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Any]:
    """ONNX Runtime on this CPU, in turn."""
    dense, slim = mdp_fx.bench(networks, images, threads=THREADS)
    return {
        "target": "onnxruntime:cpu",
        "threads": THREADS,
        "batch": len(images),
        "dense": {"latency_ms": dense.median_ms, "runs": dense.runs},
        "slim": {"latency_ms": slim.median_ms, "runs": slim.runs},
        "share": slim.ratio,
        "interval": slim.interval,
        "disturbed": slim.disturbed,
        "trusted": slim.disturbed <= BUSY,
    }


def judged(dense: nn.Module, masks: Mapping[str, Tensor], result: mdp_fx.MaskedResult) -> dict[str, Any]:
    """What must hold of every slim network."""
    return {
        "parity_float64": parity(dense, masks),
        "removed_blocks": list(result.report.removed_blocks),
        "warnings": list(result.report.warnings),
        "params_share": result.report.params.slim / result.report.params.dense,
        "structure": structure(result.module, masks),
    }


def closed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks with no channel left in one block."""
    return {name: mask & (not name.startswith(f"{CLOSED}.")) for name, mask in masks.items()}


def main() -> None:
    """Writes bench/results/layer_masks.json."""
    begin = time.perf_counter()
    masks = {name.removeprefix("module."): mask for name, mask in read_masks(MASKS).items()}
    dense = dense_network()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    result = mdp_fx.apply_masks(dense, MASKS, images)
    networks = {"dense": dense, "slim": result.module}
    without_block = closed(masks)
    facts: dict[str, Any] = {
        "masks": MASKS.name,
        "reloaded_difference": reloaded(result, images),
        "predicted": predicted(networks),
        "measured": measured(networks, images),
        **judged(dense, masks, result),
        "closed_block": judged(dense, without_block, mdp_fx.apply_masks(dense, without_block, images)),
    }
    facts["seconds"] = time.perf_counter() - begin
    shares = f"{facts['predicted']['share']:.3f} predicted for {TARGET}, {facts['measured']['share']:.3f} measured here"
    print(f"{len(masks)} layers, {len(facts['structure']['wrong'])} wrong; share of the latency: {shares}")
    save("layer_masks", facts)
    if failed := _misses(facts):
        sys.exit(f"does not hold: {'; '.join(failed)}")


def _misses(facts: Mapping[str, Any]) -> list[str]:
    """What does not hold, in words."""
    found = []
    for which, each in (("the file", facts), (f"no channels in {CLOSED}", facts["closed_block"])):
        if each["structure"]["wrong"]:
            found.append(f"{which}: {len(each['structure']['wrong'])} layers have other channels than their masks")
        if not each["parity_float64"]["difference"] <= PARITY:
            found.append(f"{which}: it differs from the masked network by {each['parity_float64']['difference']:.3g}")
    if facts["closed_block"]["removed_blocks"] != [CLOSED]:
        found.append(f"removed blocks are {facts['closed_block']['removed_blocks']} instead of {CLOSED}")
    if not facts["measured"]["trusted"]:
        found.append(f"the processor was shared or slowed down in {facts['measured']['disturbed']:.0%} of the rounds")
    return found


if __name__ == "__main__":
    main()
