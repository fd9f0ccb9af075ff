"""Tables: every fact is there, at 80 columns and at 120, in a pipe and on a terminal."""

from __future__ import annotations

import dataclasses

import pytest

from mdp_fx.exporters.parity import ParityReport
from mdp_fx.report import cells, tables
from mdp_fx.report.facts import (
    BenchRow,
    BlockRow,
    Change,
    FrozenRow,
    GroupRow,
    Inspection,
    LatencyFacts,
    MaskReport,
    Prediction,
    Profile,
    PruneReport,
    RegionRow,
)
from tests.report.rendering import has_row, lines

GROUPS = tuple(
    GroupRow(f"layer{stage}.{block}.conv{conv}", 64 * stage, 64 * stage - 8 * conv * (block % 2), (f"layer{stage}",))
    for stage in range(1, 5)
    for block in range(6)
    for conv in (1, 2)
)
REPORT = PruneReport(
    model="resnet50",
    method="mdp",
    importance="l2",
    target="onnxruntime:cpu",
    device="onnxruntime:cpu onnxruntime 1.31.1 AMD EPYC threads 1",
    threads=1,
    batch=1,
    latency=LatencyFacts(
        measured_ms=25.1,
        dense_ms=50.0,
        asked_ms=25.0,
        asked_share=0.5,
        predicted_ms=24.9,
        dense_sum_ms=49.0,
        calibration=1.0204,
        rounds=2,
        regions_measured=120,
        regions_cached=30,
    ),
    params=Change(25_557_032, 12_300_000),
    macs=Change(4_089_184_256, 1_700_000_000),
    blocks=(BlockRow("layer3.4", True), BlockRow("layer3.5", False), BlockRow("stem", False, "it changes the shape")),
    groups=GROUPS,
    frozen=(FrozenRow("fc", 1000, "output of the network"),),
    solver={
        "solver": "exact",
        "status": "gap reached",
        "gap": 0.00091,
        "seconds": 1.52,
        "budgets": {"latency": 25000.0, "params": 15e6},
    },
    warnings=(
        "layer4.2.conv1 keeps 48 of 512 channels: accuracy may collapse there",
        "accuracy is unknown: l2 importance uses no data; pass --data for taylor, and fine-tune the result afterwards",
    ),
    seconds={"solve": 1.5, "measure [cost] regions": 2.5},
)
WRITTEN = {"slim": "resnet50-slim.pt", "onnx": "r.onnx"}
PARITY = ParityReport(2.5e-7, 5e-7)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("verbose", [False, True])
def test_prune_tables_fit_and_tell_everything(width: int, terminal: bool, verbose: bool) -> None:
    found = lines(tables.prune_tables(REPORT, WRITTEN, PARITY, verbose=verbose), width, terminal)
    notes = ("warning", "wrote", "decision", "latencies")
    # In a pipe a note is one line, for grep; everything else fits.
    assert all(len(line) <= width for line in found if terminal or not line.startswith(notes))
    assert found[0] == "resnet50: 1.99 times as fast"
    assert has_row(found, "latency", "50.00 ms", "25.00 ms", "24.90 ms", "25.10 ms", "50.2 %")
    assert has_row(found, "parameters", "25.6M", "15.0M", "12.3M", "48.1 %")
    assert has_row(found, "MACs", "4.09G", "-", "1.70G", "41.6 %")
    text = " ".join(" ".join(found).split())
    for fact in (
        "mdp, l2 importance; exact solver: gap reached, gap 0.091 %, 1.5 s, 2 rounds",
        "120 measured now, 30 known; dense regions add up to 49.00 ms, calibration 1.020",
        "1 of 2 removed: layer3.4",
        "24 of 48 channel groups cut",
        "layer4.2.conv1 keeps 48 of 512 channels",
        "fine-tune the result afterwards",
        "resnet50-slim.pt",
        "r.onnx (dynamic batch, max abs error 2.5e-07, relative 5.0e-07)",
        'fine-tune mdp_fx.load("resnet50-slim.pt") as any torch module',
    ):
        assert fact in text


def test_long_lists_are_cut_unless_verbose() -> None:
    short = lines(tables.prune_tables(REPORT, WRITTEN, PARITY, verbose=False))
    full = lines(tables.prune_tables(REPORT, WRITTEN, PARITY, verbose=True))
    assert sum(line.startswith("layer") for line in short) == cells.SHOWN
    assert f"... and {24 - cells.SHOWN} more (-v shows all)" in short
    assert sum(line.startswith("layer") for line in full) == len(GROUPS)
    assert has_row(full, "solve", "1.50")
    assert has_row(full, "measure [cost] regions", "2.50")


def test_many_removed_blocks_are_cut_unless_verbose() -> None:
    names = [f"stage.{number}" for number in range(40)]
    many = dataclasses.replace(REPORT, blocks=tuple(BlockRow(name, True) for name in names))
    short, full = (" ".join(lines(tables.prune_tables(many, WRITTEN, None, verbose=v), 999)) for v in (False, True))
    assert f"40 of 40 removed: {', '.join(names[: cells.SHOWN])} and {40 - cells.SHOWN} more (-v shows all)" in short
    assert f"40 of 40 removed: {', '.join(names)}" in full


def test_next_step_names_the_export_only_where_it_is_left() -> None:
    found = lines(tables.prune_tables(REPORT, {"slim": "a.pt"}, None, verbose=False), 120)
    assert found[-1].endswith("then mdp-fx export a.pt -o a.onnx")


def test_prune_without_a_latency_budget() -> None:
    free = dataclasses.replace(REPORT, latency=LatencyFacts(measured_ms=1200.0, dense_ms=2400.0), blocks=())
    found = lines(tables.prune_tables(free, {"slim": "a.pt"}, None, verbose=False), 120)
    assert has_row(found, "latency", "2.40 s", "-", "-", "1.20 s", "50.0 %")
    assert not any(line.startswith("latencies") for line in found)
    assert any("the network has no removable blocks" in line for line in found)


PREDICTION = Prediction(
    table="titan-v table of 1,393 convolutions, batch 256 (1bc01fae)",
    batch=256,
    dense_per_s=840.06,
    slim_per_s=2803.4,
    points=900,
    estimated_points=12,
    estimated=("features.0", "features.3"),
    fit="87 us + MACs / 3.48 T/s, median error 16 % on the table's own points",
    not_counted=("maxpool", "fc"),
    counted_macs=0.9985,
    held=("layer1.0.conv1",),
)
PREDICTED = dataclasses.replace(
    REPORT,
    target="titan-v",
    device="titan-v table",
    batch=256,
    latency=LatencyFacts(measured_ms=None, dense_ms=304.74, asked_ms=91.42, asked_share=0.3, predicted_ms=91.32),
    prediction=PREDICTION,
)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_predicted_is_called_so(width: int, terminal: bool) -> None:
    found = lines(tables.prune_tables(PREDICTED, WRITTEN, PARITY, verbose=False), width, terminal)
    notes = ("warning", "wrote", "decision", "predicted", "estimated", "not counted")
    assert all(len(line) <= width for line in found if terminal or not line.startswith(notes))
    assert found[0] == "resnet50: predicted to be 3.34 times as fast"
    assert has_row(found, "latency", "304.74 ms", "91.42 ms", "91.32 ms", "30.0 %")
    assert has_row(found, "images/s", "840", "-", "2803", "333.7 %")
    assert has_row(found, "parameters", "25.6M", "15.0M", "12.3M", "48.1 %")
    text = " ".join(" ".join(found).split())
    assert "measured" not in text.replace("measured now", "")
    for fact in (
        "by titan-v table of 1,393 convolutions, batch 256 (1bc01fae): nothing was run",
        "12 of 900 points, which the table does not have: features.0, features.3; by 87 us + MACs / 3.48 T/s",
        "maxpool, fc: no convolutions, so no table has them; 0.15 % of the MACs",
        "layer1.0.conv1: the table has no smaller size",
    ):
        assert fact in text


def test_long_lists_of_a_prediction_are_cut_unless_verbose() -> None:
    many = dataclasses.replace(PREDICTION, not_counted=tuple(f"cat_{i}" for i in range(20)))
    short, full = ({k: t for k, t, _ in tables.prediction_notes(many, verbose=v)} for v in (False, True))
    assert "cat_15 and 4 more (-v shows all): no convolutions" in short["not counted"]
    assert "cat_19: no convolutions" in full["not counted"]


def test_a_full_table_has_nothing_to_add() -> None:
    plain = dataclasses.replace(PREDICTION, estimated=(), estimated_points=0, fit=None, not_counted=(), held=())
    found = lines(
        tables.prune_tables(dataclasses.replace(PREDICTED, prediction=plain), {"slim": "a"}, None, verbose=False)
    )
    assert has_row(found, "predicted", "by titan-v table")
    assert not any(line.startswith(("estimated", "not counted", "held")) for line in found)


def test_a_predicted_profile() -> None:
    region = RegionRow("conv1", "Conv2d", 8.302, 0.027, 30_000)
    found = Profile("net", "titan-v", "titan-v table", 304.74, 304.74, 1.0, (region,), 0, 0, "titan-v", PREDICTION)
    shown = lines(tables.profile_tables(found, verbose=False), 120)
    assert shown[0] == "net: 304.74 ms predicted, 840 images/s"
    assert has_row(shown, "not counted", "maxpool, fc: no convolutions, so no table has them;")
    assert not any(line.startswith(("sum", "points")) for line in shown)


def test_prune_without_a_bound() -> None:
    solver = REPORT.solver | {"solver": "uniform", "status": "no bound", "gap": None}
    found = lines(tables.prune_tables(dataclasses.replace(REPORT, solver=solver), WRITTEN, PARITY, verbose=False))
    assert any("uniform solver: no bound, no bound is known" in line for line in found)


@pytest.mark.parametrize("width", [80, 120])
def test_inspect_tables(width: int) -> None:
    members = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.bn2")
    found = Inspection(
        model="resnet18",
        groups=(GroupRow("conv1", 64, 64, members), *GROUPS),
        blocks=REPORT.blocks,
        frozen=(FrozenRow("fc", 1000, "output of the network"), FrozenRow("q", 8, "indexed [0]")),
        prunable_params_share=0.98,
        prunable_macs_share=1.0,
    )
    short = lines(tables.inspect_tables(found, verbose=False), width)
    assert all(len(line) <= width for line in short)
    assert has_row(short, "conv1", "64", "conv1, bn1, layer1.0.conv1 and 2 more")
    assert f"... and {49 - 2 * cells.SHOWN} more (-v shows all)" in short
    assert has_row(short, "layer3.4", "removable")
    assert has_row(short, "stem", "must stay: it changes the shape")
    assert has_row(short, "q", "8", "indexed [0]")
    full = lines(tables.inspect_tables(found, verbose=True), width)
    assert not any("more" in line for line in full)
    assert "layer1.0.bn2" in " ".join(full)


def test_inspect_of_a_plain_network() -> None:
    found = Inspection("plain", (), (), (), 0.0, 0.0)
    text = "\n".join(lines(tables.inspect_tables(found, verbose=False)))
    assert "0 channel groups" in text
    assert "0 residual blocks" in text


@pytest.mark.parametrize("width", [80, 120])
def test_profile_tables_start_with_the_slowest_region(width: int) -> None:
    regions = tuple(RegionRow(f"layer{i}.conv", "Conv2d", 0.1 * i, 0.01 * i, 1000 * i) for i in range(20))
    found = Profile("net", "torch:cpu", "torch:cpu torch 2.14", 9.0, 8.0, 1.125, regions, 5, 7, "/cache/latency.sqlite")
    found = dataclasses.replace(found, expected_error=0.013)
    shown = lines(tables.profile_tables(found, verbose=False), width)
    assert all(len(line) <= width for line in shown)
    assert [line.split()[0] for line in shown if line.startswith("layer")] == [
        f"layer{i}.conv" for i in range(19, 3, -1)
    ]
    assert "... and 4 more (-v shows all)" in shown
    assert has_row(shown, "sum", "8.00 ms, each region as a part; calibration 1.125")
    assert has_row(shown, "residual", "+1.000 ms (11.1 %) that no region has: calls, layouts")
    assert has_row(shown, "points", "5 measured now, 7 known; table error about 1.3 %")
    assert found.to_json()["residual_ms"] == 1.0


IMAGE = ((1, 3, 8, 8),)


def test_bench_tables() -> None:
    rows = [
        BenchRow("dense", 10.0, 11.0, 50, 100.0, 1.0, None, IMAGE),
        BenchRow("slim.pt", 5.0, 5.5, 50, 200.0, 0.5, (0.491, 0.512), IMAGE),
        BenchRow("dense (2)", 10.1, 11.0, 50, 99.0, 1.01, (0.995, 1.02), IMAGE),
    ]
    shown = lines(tables.bench_tables(rows, "torch:cpu", 1))
    assert all(len(line) <= 80 for line in shown)
    assert has_row(shown, "network", "p50", "p90", "images/s", "of first", "95 % interval", "runs")
    assert has_row(shown, "dense", "10.000 ms", "11.000 ms", "100.0", "100.0 %", "50")
    assert has_row(shown, "slim.pt", "5.000 ms", "5.500 ms", "200.0", "50.0 %", "49.1 to 51.2 %", "50")
    assert has_row(shown, "input", "1x3x8x8")
    proofs = [line for line in shown if line.startswith("not proven")]
    assert proofs == ["not proven  that dense (2) and dense differ: two loadings may, by 2 %"]
    assert not any("memory" in line or "warning" in line for line in shown)
    rows[1] = dataclasses.replace(rows[1], disturbed=0.95)
    shown = lines(tables.bench_tables(rows, "torch:cpu", 1), 120)
    assert has_row(shown, "warning", "the processor was shared or slowed down in 95 % of the runs: a quiet machine")


def test_bench_tables_with_memory_and_inputs_that_differ() -> None:
    rows = [
        BenchRow("net", 1.0, 1.0, 20, 1.0, 1.0, None, IMAGE, 0.0, 100 * 2**20),
        BenchRow(
            "a.onnx", 1.0, 1.0, 20, 1.0, 2.0, (1.9, 2.1), ((2, 3), (2,)), 0.0, None, "its process failed: no memory"
        ),
    ]
    shown = lines(tables.bench_tables(rows, "onnxruntime:cpu", 1, {"plot": "c.html"}), 120)
    assert has_row(shown, "net", "1.000 ms", "1.000 ms", "1.0", "100.0 %", "20", "100.0 MiB")
    assert next(line for line in shown if line.startswith("a.onnx")).endswith("failed")
    assert "input        1x3x8x8 for net" in shown
    assert "input        2x3, 2 for a.onnx" in shown
    assert has_row(shown, "peak memory", "resident peak of a process that loads and runs the network alone,")
    assert has_row(shown, "failed", "peak memory of a.onnx: its process failed: no memory")
    assert has_row(shown, "wrote", "c.html")


def test_many_blocks_that_masks_close_are_cut_unless_verbose() -> None:
    names = tuple(f"layer.{number}" for number in range(40))
    report = MaskReport("m.pkl", 40, Change(2000, 500), (), names, ())
    short, full = (" ".join(lines(tables.mask_tables(report, "slim.pt", verbose=v), 999)) for v in (False, True))
    assert f"{', '.join(names[: cells.SHOWN])} and {40 - cells.SHOWN} more (-v shows all)" in short
    assert ", ".join(names) in full


def test_mask_tables() -> None:
    groups = tuple(GroupRow(f"g{i}", 64, 32 if i % 2 else 64, ("conv",)) for i in range(4))
    report = MaskReport("m.pkl", 3, Change(2000, 500), groups, ("layer1.1",), ("what goes with it",))
    shown = lines(tables.mask_tables(report, "slim.pt", verbose=False))
    assert shown[0] == "m.pkl: 3 layers with masks"
    assert "2 of 4 channel groups cut" in shown
    assert has_row(shown, "g1", "64", "32")
    assert has_row(shown, "removed", "layer1.1")
    assert has_row(shown, "parameters", "2.00k -> 500 (25.0 %)")
    assert has_row(shown, "warning", "what goes with it")
    assert has_row(shown, "wrote", "slim.pt")
    plain = dataclasses.replace(report, removed_blocks=(), warnings=())
    assert has_row(lines(tables.mask_tables(plain, "slim.pt", verbose=True)), "removed", "no block")


def test_exports_and_applied_recipes() -> None:
    fixed = dataclasses.replace(PARITY, dynamic_batch=False)
    assert has_row(lines(tables.export_tables("a.onnx", fixed), 120), "checked", "fixed batch, max abs error 2.5e-07,")
    assert has_row(lines(tables.apply_tables({"dense": 200, "slim": 50}, "a.pt")), "parameters", "200 -> 50 (25.0 %)")


def test_demo_tables() -> None:
    facts = {"dense": 0.98, "pruned": 0.5, "tuned": 0.975, "dense_ms": 4.0, "slim_ms": 2.0}
    shown = lines(tables.demo_tables(facts, 61.2))
    assert has_row(shown, "dense", "98.0 %", "4.00 ms")
    assert has_row(shown, "pruned", "50.0 %", "2.00 ms")
    assert has_row(shown, "fine-tuned", "97.5 %", "2.00 ms")


def test_names_are_not_read_as_markup() -> None:
    row = BenchRow("net[bold]", 1.0, 1.0, 10, 1.0, 1.0)
    assert has_row(lines(tables.bench_tables([row], "torch:cpu", 1)), "net[bold]")
