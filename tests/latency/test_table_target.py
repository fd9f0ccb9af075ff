"""Tables as targets: what they predict, what they refuse, and what a fill estimates."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import InputError, TargetError
from mdp_fx.latency import Effort, LatencyTable, get_target, target_names
from mdp_fx.latency.convolution_csv import write_convolutions
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.network import exact_sum
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.latency.targets import SHIPPED_TABLES, target_class
from mdp_fx.pipeline import analyse
from tests.latency.convolutions import entry, grid_table, linear_seconds
from tests.zoo import image


class Two(nn.Module):
    """Two convolutions of one geometry, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


@pytest.fixture(scope="module")
def two() -> Any:
    """`Two` analysed at batch 4."""
    return analyse(Two().eval(), image(8, batch=4))


def on(table: ConvolutionTable, **options: Any) -> TableTarget:
    return TableTarget(table, 1, name="table:t.csv", **options)


def test_a_region_takes_its_convolutions_and_nothing_else(two: Any) -> None:
    target = on(grid_table((8, 16), (8, 16, 32)))
    found = {region.name: target.look_up(region, region.dense_sizes) for region in two.regions}
    assert found["first"].seconds == linear_seconds(8, 16)
    assert found["second"].seconds == linear_seconds(16, 32)
    assert (found["head"].seconds, found["head"].convolutions) == (0.0, 0)
    assert all(each.estimated == 0 for each in found.values())
    second = next(region for region in two.regions if region.name == "second")
    assert second.roles == ("out", "in")
    assert target.look_up(second, (20, 12)).seconds == pytest.approx(linear_seconds(12, 20))
    assert target.time_region(second, (20, 12), Effort()).low_s == target.look_up(second, (20, 12)).seconds


def test_exact_sums_ask_the_table_and_store_nothing(two: Any, tmp_path: Path) -> None:
    target = on(grid_table((8, 16), (8, 16, 32)))
    with LatencyTable(tmp_path / "t.sqlite") as table:
        found = exact_sum(two.regions, lambda dim: dim.size, target, table)
        assert table.summaries() == []
    assert sum(found.values()) == pytest.approx(linear_seconds(8, 16) + linear_seconds(16, 32))


def test_what_lies_outside_is_named(two: Any) -> None:
    target = on(grid_table((8, 16), (8, 16)))
    second = next(region for region in two.regions if region.name == "second")
    assert not target.has(second, second.dense_sizes)
    with pytest.raises(TargetError) as caught:
        target.look_up(second, second.dense_sizes)
    assert str(caught.value) == (
        "outside of the table of table:t.csv: second: 16 -> 32 channels, input 8x8, kernel 3x3, stride 1x1, groups 1, "
        "batch 4; --fill analytic estimates what a table lacks"
    )


def test_a_fill_estimates_what_lies_outside_alone(two: Any) -> None:
    table = grid_table((8, 12, 16), (8, 16))
    target = on(table, fill="analytic")
    assert target.roofline is not None
    found = {region.name: target.look_up(region, region.dense_sizes) for region in two.regions}
    assert (found["first"].seconds, found["first"].estimated) == (linear_seconds(8, 16), 0)
    assert found["second"].estimated == 1
    # The data are bilinear, as the estimate nearly is.
    assert found["second"].seconds == pytest.approx(linear_seconds(16, 32), rel=0.2)
    assert "filled by a fit" in target.fingerprint()
    assert target.fingerprint() != on(table).fingerprint()


def test_a_table_runs_nothing() -> None:
    target = on(grid_table((8,), (8,)))
    assert not target.can_run
    assert all(target_class(name).can_run for name in target_names())
    with pytest.raises(TargetError, match=r"table:t\.csv is a table: it predicts latency and runs no network"):
        target.prepare(nn.Identity(), ())


@pytest.mark.parametrize(
    ("batches", "says"),
    [((4,), "the table of table:t.csv has batch 4, not 7: pass --batch 4"), ((1, 4), "has the batches 1, 4, not 7")],
)
def test_another_batch_is_refused(batches: tuple[int, ...], says: str) -> None:
    table = ConvolutionTable("t", [entry(8, 8 * i, 1e-3 * i, batch=batch) for batch in batches for i in (1, 2, 3)])
    on(table).check_batch(4)
    with pytest.raises(TargetError) as caught:
        on(table).check_batch(7)
    assert says in str(caught.value)
    on(table, fill="analytic").check_batch(7)


def test_the_shipped_table(two: Any) -> None:
    target = get_target("titan-v", threads=1, batch=256)
    assert isinstance(target, TableTarget)
    assert (target.name, len(target.table), target.table.batches) == ("titan-v", 1393, (256,))
    assert target.fingerprint().startswith("titan-v table of 1,393 convolutions, batch 256 (")
    assert target.alignment == 2
    assert get_target("titan-v").threads >= 1
    with pytest.raises(TargetError, match="has batch 256, not 1: pass --batch 256"):
        get_target("titan-v", batch=1)


def test_its_estimate_is_as_good_as_it_says() -> None:
    target = get_target("titan-v", fill="analytic", batch=1)
    assert isinstance(target, TableTarget)
    assert target.roofline is not None
    assert target.roofline.error == pytest.approx(0.16, abs=0.02)
    assert (target.roofline.coefficients > 0).all()


def test_the_shipped_table_has_its_source_beside_it() -> None:
    folder = Path(SHIPPED_TABLES["titan-v"])
    notes = (Path(__file__).parents[2] / "mdp_fx/latency/data/README.md").read_text(encoding="utf-8")
    assert str(folder) in notes
    assert "Apache-2.0" in notes


def test_a_file_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    write_convolutions(grid_table((8, 16), (8, 24)), path)
    target = get_target(f"table:{path}", batch=4)
    assert target.name == f"table:{path}"
    assert target.alignment == 8


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.csv").write_text(
        "in_channels,out_channels,input_size,kernel,stride,groups,batch,latency_us\n1,2\n"
    )
    with LatencyTable(tmp_path / "measured.sqlite"):
        pass
    (tmp_path / "pickle").write_bytes(pickle.dumps({}))
    for name, says in (
        ("pickle", r"is a pickle, which does not say its unit: mdp-fx table import .*pickle makes a CSV file"),
        ("absent.csv", "cannot read .*: no such file"),
        ("other.csv", "is no table of convolutions: the target table:PATH takes CSV with the columns in_channels,"),
        ("bad.csv", "line 2: 2 fields instead of 8"),
        ("x.pkl", r"is a pickle, which does not say its unit: mdp-fx table import .*x\.pkl makes a CSV file of it"),
    ):
        with pytest.raises(InputError, match=says):
            get_target(f"table:{tmp_path / name}")


def test_names_that_are_no_paths_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^table: names no file: the target is table:PATH"):
        get_target("table:")
    with pytest.raises(InputError, match=r"there is no file titan-v; did you mean --target titan-v,"):
        get_target("table:titan-v")
    write_convolutions(grid_table((8, 16), (8, 24)), Path("titan-v"))
    assert len(get_target("table:titan-v").table) == 4  # type: ignore[attr-defined]


def test_only_tables_are_filled() -> None:
    with pytest.raises(TargetError, match=r"--fill is for targets that are tables \(titan-v, table:PATH\); torch:cpu"):
        get_target("torch:cpu", fill="analytic")
    with pytest.raises(TargetError, match="unknown target 'titanv': did you mean titan-v"):
        get_target("titanv")
