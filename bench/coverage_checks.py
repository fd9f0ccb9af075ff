"""What one network must pass to count.

First in float32: seconds and memory, slim.pt. Then in float64: parity with the zeroed dense network, with every group
halved and, separately, with every removable block removed. ONNX, again in float32, is last: it takes the longest.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bench.coverage_row import CheckError, Emit, Inputs, Row, halved, run
from bench.coverage_speed import repeat_in_turn, time_ours, time_theirs
from bench.peers import count
from bench.zoo_networks import Network, build
from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.exporters.onnx_export import export_onnx
from mdp_fx.graph.verify import check_types
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.residual_blocks import Blocks
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.recipe import Recipe, fingerprint
from mdp_fx.run_report import inspection
from tests.pruning import error, randomise, reference, tensors

PARTS = ("runs", "shapes", "smaller", "parity", "changed")
COUNTED = (
    "build",
    "types",
    "slim.pt",
    "trace",
    *(f"{how} {part}" for how in ("halved", "blocks") for part in PARTS),
    "onnx",
)
"""The stages that a network must pass to count."""

TOLERANCE = 1e-6


def examine(network: Network, emit: Emit, *, peer: bool = True) -> None:
    """Runs every stage on one network.

    Args:
        network: the network.
        emit: called with all that is known, after every stage.
        peer: whether Torch-Pruning is timed too.
    """
    row = Row(network, emit)
    built = row.attempt("build", lambda: _built(network))
    if built is None:
        return
    model, inputs = built
    row.data["parameters"] = count(model)
    row.data["inputs"] = ["x".join(map(str, value.shape)) for value in tensors(inputs)]
    slim = _in_float32(row, model, inputs, peer)
    with _in_wide_numbers():
        wide = pytree.tree_map(lambda leaf: leaf.double() if _is_floating(leaf) else leaf, inputs)
        _in_float64(row, model.double(), wide)
    del model, built
    row.attempt("onnx", lambda network: _export(row, network, inputs), slim)


def _built(network: Network) -> tuple[nn.Module, Inputs]:
    model, inputs = build(network)
    _enliven(model)
    run(model, inputs)
    return model, inputs


def _enliven(model: nn.Module) -> None:
    """Gives random values to what starts as a constant: a layer scale of 1e-6 would hide every error behind it."""
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        flat = parameter.data.flatten()
        if parameter.is_floating_point() and flat.numel() > 1 and bool((flat == flat[0]).all()):
            parameter.data.copy_(0.6 + 0.8 * torch.rand(parameter.shape, generator=generator))


def _in_float32(row: Row, model: nn.Module, inputs: Inputs, peer: bool) -> fx.GraphModule | None:
    """Time, memory, types and slim.pt; returns the halved network."""
    gc.collect()
    gc.freeze()  # looking for garbage in what was imported is not part of anybody's time
    # First of all, since the peak of memory never falls.
    mine = row.attempt("speed", lambda: time_ours(row, model, inputs))
    analysis = row.attempt("types", lambda: _analyse(row, model, inputs))
    other = row.attempt("torch-pruning", lambda: time_theirs(row, model, inputs)) if peer else None
    row.attempt("repeats", lambda: repeat_in_turn(mine, other))
    slim = row.attempt("slim", lambda found: rewrite(found, halved(found.groups), []), analysis)
    row.attempt("slim.pt", lambda found, network: _round_trip(found, network, inputs), analysis, slim)
    return slim


def _in_float64(row: Row, model: nn.Module, inputs: Inputs) -> None:
    """Parity, pruned in two ways."""
    analysis = row.attempt("types in float64", analyse, model, inputs)
    if analysis is not None:
        inputs = analysis.graph.example_inputs  # what the trace may have baked in
    dense = row.attempt("trace", lambda found: _traced_output(row, model, found, inputs), analysis)

    def kept(found: Analysis) -> dict[str, list[int]]:
        if not found.groups:
            raise CheckError("no dimension is free")
        return halved(found.groups)

    check_pruned(row, "halved", analysis, dense, inputs, kept, lambda _: [])
    if analysis is not None and not analysis.blocks.removable:
        row.skip([f"blocks {part}" for part in PARTS], "no block is removable")
        return
    check_pruned(row, "blocks", analysis, dense, inputs, lambda _: {}, lambda found: removed(found.blocks))


def check_pruned(
    row: Row,
    how: str,
    analysis: Analysis | None,
    dense: list[Tensor] | None,
    inputs: Inputs,
    kept: Callable[[Analysis], dict[str, list[int]]],
    gone: Callable[[Analysis], list[str]],
) -> None:
    """The checks of a network that was pruned in one way."""

    def prune(found: Analysis) -> tuple[list[Tensor], int]:
        slim = rewrite(found, kept(found), gone(found))
        return run(slim, inputs), count(slim)

    def same_shapes(before: list[Tensor], after: tuple[list[Tensor], int]) -> None:
        shapes = [[tuple(value.shape) for value in values] for values in (before, after[0])]
        if shapes[0] != shapes[1]:
            raise CheckError(f"outputs of shapes {shapes[1]} instead of {shapes[0]}"[:200])

    def smaller(found: Analysis, after: tuple[list[Tensor], int]) -> None:
        row.data[f"{how} parameters"] = share = after[1] / max(1, count(found.graph.module))
        if share >= 1:
            raise CheckError("not one parameter fewer")

    def parity(found: Analysis, after: tuple[list[Tensor], int]) -> None:
        expected = run(reference(found, kept(found), gone(found)).run, inputs)
        row.data[f"{how} error"] = worst = relative(expected, after[0])
        if not worst <= TOLERANCE:
            raise CheckError(f"off by {worst:.2g} of the largest value")

    def changed(before: list[Tensor], after: tuple[list[Tensor], int]) -> None:
        row.data[f"{how} change"] = change = relative(before, after[0])
        if not all(bool(value.count_nonzero()) for value in after[0]):
            raise CheckError("an output is zero")
        if not change > TOLERANCE:
            raise CheckError("the output is that of the dense network: parity proves nothing")

    pruned = row.attempt(f"{how} runs", prune, analysis)
    row.attempt(f"{how} shapes", same_shapes, dense, pruned)
    row.attempt(f"{how} smaller", smaller, analysis, pruned)
    row.attempt(f"{how} parity", parity, analysis, pruned)
    row.attempt(f"{how} changed", changed, dense, pruned)


def removed(blocks: Blocks) -> list[str]:
    """Every removable block, except one of each set that adds to one another."""
    names = [block.name for block in blocks.removable]
    for together in blocks.exclusive:
        if set(together) <= set(names):
            names.remove(together[0])
    return names


def relative(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference over the largest expected value of the same output, however small that is."""
    if not all(bool(value.isfinite().all()) for value in actual):
        raise CheckError("the output is not finite")
    scales = [float(value.abs().max()) or 1.0 for value in (value.double() for value in expected)]
    return error(
        [value.double() / scale for value, scale in zip(expected, scales, strict=True)],
        [value.double() / scale for value, scale in zip(actual, scales, strict=True)],
    )


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


@contextlib.contextmanager
def _in_wide_numbers() -> Iterator[None]:
    """Makes float64 of what a forward creates and of what it asks to be float32."""
    narrow = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = narrow  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def _analyse(row: Row, model: nn.Module, inputs: Inputs) -> Analysis:
    analysis = analyse(model, inputs)
    found = inspection(analysis, row.data["model"])
    frozen: Counter[str] = Counter()
    for part in found.frozen:
        frozen[part.reason] += part.size
    row.data |= {
        "front_end": found.front_end,
        "front_end_why": found.front_end_why,
        "groups": len(analysis.groups),
        "blocks": len(analysis.blocks.removable),
        "prunable_macs": found.prunable_macs_share,
        "prunable_parameters": found.prunable_params_share,
        "frozen": frozen.most_common(5),
        "baked_in": found.baked_in[:5],
        "classifiers": sorted({part.where for part in found.frozen if part.reason.startswith("output of the network")}),
    }
    check_types(analysis.graph)
    return analysis


def _traced_output(row: Row, model: nn.Module, analysis: Analysis, inputs: Inputs) -> list[Tensor]:
    """The dense output, which the traced and normalised graph must give too."""
    dense = run(model, inputs)
    row.data["trace error"] = worst = relative(dense, run(analysis.graph.module, inputs))
    if not worst <= TOLERANCE:
        raise CheckError(f"the graph is another network: off by {worst:.2g} of the largest value")
    return dense


def _round_trip(analysis: Analysis, slim: fx.GraphModule, inputs: Inputs) -> None:
    kept = halved(analysis.groups)
    recipe = Recipe(
        kept=kept,
        removed_blocks=[],
        group_sizes={group.name: group.size for group in analysis.groups},
        method="random",
        target="none",
        budgets={},
        predicted={},
        certificate={},
        importance="random",
        step=1,
        input_shapes=[list(value.shape) for value in tensors(inputs)],
        input_dtypes=[str(value.dtype).removeprefix("torch.") for value in tensors(inputs)],
        fingerprint=fingerprint(analysis.graph.module),
        front_end=analysis.graph.front_end,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_slim(f"{folder}/slim.pt", slim, recipe, {})
        loaded = load_slim(f"{folder}/slim.pt")
    worst = relative(run(slim, inputs), run(loaded.module, inputs))
    if not worst <= TOLERANCE:
        raise CheckError(f"what was loaded is off by {worst:.2g} of the largest value")
    if loaded.recipe.kept != kept or count(loaded.module) != count(slim):
        raise CheckError("what was loaded is another network")


def _export(row: Row, slim: fx.GraphModule, inputs: Inputs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(slim, inputs, f"{folder}/slim.onnx")
    row.data["onnx error"] = report.max_rel_error
    row.data["onnx dynamic batch"] = report.dynamic_batch
