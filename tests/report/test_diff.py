"""Diffs of two networks: shapes, parameters, multiply-accumulates, what was removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import InputError
from mdp_fx.report.diff import Diff, DiffRow, diff

INPUTS = (torch.zeros(2, 3, 8, 8),)


class Block(nn.Module):
    """A residual block that may be missing its branch."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        if inner:
            self.conv1 = nn.Conv2d(16, inner, 3, padding=1)
            self.conv2 = nn.Conv2d(inner, 16, 3, padding=1)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x)) if self.inner else x


class Net(nn.Module):
    """A parameter of its own, a stem with a norm, two blocks, a grouped and a transposed convolution, a classifier."""

    def __init__(self, first: int = 8, second: int = 8) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 3, 8, 8))
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(first), Block(second))
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.stem(x + self.shift)))
        found: Tensor = self.head(self.up(self.grouped(x)).mean((2, 3)))
        return found


def by_name(found: Diff) -> dict[str, DiffRow]:
    """Rows by module."""
    return {row.module: row for row in found.rows}


def test_multiply_accumulates_are_those_of_the_formulas() -> None:
    rows = by_name(diff(Net(), Net(), INPUTS))
    batch, small, large = 2, 4 * 4, 8 * 8
    expected = {
        "(root)": 0,
        "stem": batch * small * 16 * 3 * 9,
        "norm": 0,
        "blocks.0.conv1": batch * small * 8 * 16 * 9,
        "blocks.0.conv2": batch * small * 16 * 8 * 9,
        "blocks.1.conv1": batch * small * 8 * 16 * 9,
        "blocks.1.conv2": batch * small * 16 * 8 * 9,
        "grouped": batch * small * 32 * (16 // 4) * 9,
        "up": batch * large * 32 * 4,  # stride 2, kernel 2: every output position meets one kernel entry
        "head": batch * 10 * 4,
    }
    assert {name: row.macs_before for name, row in rows.items()} == expected
    assert {name: row.macs_after for name, row in rows.items()} == expected


def test_a_shared_module_counts_every_call() -> None:
    conv = nn.Conv2d(3, 3, 1)
    found = diff(nn.Sequential(conv, conv), nn.Sequential(conv, conv), INPUTS)
    assert found.macs == (2 * 2 * 64 * 9, 2 * 2 * 64 * 9)


def test_shapes_parameters_and_totals() -> None:
    a, b = Net(), Net(first=4)
    found = diff(a, b, INPUTS)
    row = by_name(found)["blocks.0.conv1"]
    assert (row.op, row.before, row.after) == ("Conv2d", (8, 16, 3, 3), (4, 16, 3, 3))
    assert (row.params_before, row.params_after) == (8 * 16 * 9 + 8, 4 * 16 * 9 + 4)
    assert row.changed
    assert not row.removed
    assert not by_name(found)["stem"].changed
    assert found.params == tuple(sum(p.numel() for p in net.parameters()) for net in (a, b))
    assert sum(row.params_before for row in found.rows) == found.params[0]
    assert found.removed == ()
    assert found.ms is None


def test_a_removed_block_is_named_once() -> None:
    found = diff(Net(), Net(second=0), INPUTS)
    assert found.removed == ("blocks.1",)
    row = by_name(found)["blocks.1.conv2"]
    assert row.removed
    assert (row.params_after, row.macs_after) == (0, 0)


def test_an_added_module_is_not_lost() -> None:
    row = by_name(diff(Net(second=0), Net(), INPUTS))["blocks.1.conv1"]
    assert row.before is None
    assert row.after == (8, 16, 3, 3)
    assert (row.macs_before, row.removed) == (0, False)


def test_latencies_are_milliseconds_by_module() -> None:
    found = diff(Net(), Net(second=0), INPUTS, latency=({"stem": 0.002, "mean": 0.001}, {"stem": 0.001}))
    row = by_name(found)["stem"]
    assert (row.ms_before, row.ms_after) == (2.0, 1.0)
    assert by_name(found)["head"].ms_before is None
    assert found.ms == pytest.approx((3.0, 1.0))


def test_json_names_what_changed() -> None:
    data = diff(Net(), Net(first=4, second=0), INPUTS).to_json()
    rows = {row["module"]: row for row in data["rows"]}
    assert (rows["blocks.0.conv1"]["changed"], rows["blocks.0.conv1"]["removed"]) == (True, False)
    assert (rows["blocks.1.conv1"]["changed"], rows["blocks.1.conv1"]["removed"]) == (True, True)
    assert rows["stem"]["changed"] is False
    assert data["removed"] == ("blocks.1",)


def test_modes_and_statistics_stay_as_they_are() -> None:
    net = Net().train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.norm.named_buffers()}
    diff(net, Net(), (torch.ones(2, 3, 8, 8),))
    assert net.training
    assert not net.norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.norm.named_buffers())
    assert not net.stem._forward_hooks


def test_networks_without_a_common_name_are_refused() -> None:
    with pytest.raises(InputError, match="share no module name"):
        diff(Net().head, nn.Sequential(nn.Linear(4, 2)), (torch.zeros(1, 4),))


def test_inputs_that_do_not_fit_are_refused() -> None:
    net = Net().train()
    with pytest.raises(InputError, match=r"rejects an input of shape 1x5x8x8: .*; set the shape with --input CxHxW"):
        diff(net, net, (torch.zeros(1, 5, 8, 8),))
    assert net.training
    assert not net.stem._forward_hooks
