"""Tables as HALP and MDP publish them: keys, units, and that nothing in a pickle is run."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_pickle import is_pickle, read_pickled_convolutions
from mdp_fx.latency.convolution_rates import fastest_rate
from tests.latency.convolutions import convolution

KEY = "256_64_128_56_3_1"
SHAPE: dict[str, Any] = {"batch": 256, "input_size": (56, 56), "output_size": (56, 56)}


def pickled(folder: Path, content: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path = folder / "table.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_keys_are_batch_in_out_size_kernel_stride_groups(tmp_path: Path) -> None:
    content = {KEY: 9.5, "256_32_32_28_3_2_32": 1, "1_8_16_28_1_1_1": 0.5}
    table = read_pickled_convolutions(pickled(tmp_path, content))
    assert table.seconds(convolution(64, 128, **SHAPE)) == 9.5e-3
    deep = {"batch": 256, "input_size": (28, 28), "stride": (2, 2), "groups": 32}
    assert table.seconds(convolution(32, 32, **deep)) == 1e-3
    assert table.batches == (1, 256)


@pytest.mark.parametrize(("unit", "seconds"), [("us", 9.5e-6), ("ms", 9.5e-3), ("s", 9.5)])
def test_the_unit_is_the_one_that_is_said(tmp_path: Path, unit: str, seconds: float) -> None:
    small = {"1_64_128_56_3_1": 9.5}
    table = read_pickled_convolutions(pickled(tmp_path, small), unit)
    assert table.seconds(convolution(64, 128, **{**SHAPE, "batch": 1})) == seconds
    assert fastest_rate(table) == pytest.approx(56 * 56 * 64 * 128 * 9 / seconds)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("number", [np.float64(9.5), np.float32(9.5), np.int64(9), np.dtype(">f8").type(9.5)])
def test_numbers_of_numpy_are_numbers(tmp_path: Path, number: Any, protocol: int) -> None:
    table = read_pickled_convolutions(pickled(tmp_path, {KEY: number}, protocol))
    assert table.seconds(convolution(64, 128, **SHAPE)) == pytest.approx(float(number) / 1000)


class Payload:
    """Runs code when it is unpickled by pickle itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "owned"))


def test_nothing_is_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = pickled(tmp_path, {KEY: Payload(victim)})
    with pytest.raises(InputError, match=r"needs the class .*; a latency table holds"):
        read_pickled_convolutions(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (collections.OrderedDict({KEY: 1.0}), "needs the class collections.OrderedDict; a latency table holds a dict"),
        ({KEY: np.ones(3)}, "needs the class numpy._core.multiarray._reconstruct"),
        ([1, 2], "holds a list, not a dict of latencies"),
        ({KEY: [1.0]}, f"the latency of '{KEY}' is a list, not a number"),
        ({KEY: True}, "is a bool, not a number"),
        ({KEY: "9"}, "is a str, not a number"),
        ({KEY: -1.0}, f"the entry '{KEY}': a latency must be a number above 0"),
        ({KEY: float("nan")}, "a latency must be a number above 0"),
        ({KEY: float("inf")}, "a latency must be a number above 0"),
        ({"256_64_128_56_3": 1.0}, "the key '256_64_128_56_3' is not of the form batch_cin_cout_fmap_k_stride"),
        ({"a_b_c_d_e_f": 1.0}, "the key 'a_b_c_d_e_f' is not of the form"),
        ({("tuple",): 1.0}, "is not of the form"),
        ({"256_64_128_56_3_1_" + "9" * 5000: 1.0}, "is not of the form"),
        ({"256_64_128_56_3_1_3": 1.0}, "3 groups do not divide"),
        ({"0_64_128_56_3_1": 1.0}, "batch is 0"),
        ({KEY: 1.0, KEY + "_1": 2.0}, "give one convolution two latencies"),
        ({KEY: 10**5000}, f"the entry '{KEY}'"),
        ({}, "holds no convolutions"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: object, says: str) -> None:
    path = pickled(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_pickled_convolutions(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_spellings_of_one_key_may_agree(tmp_path: Path) -> None:
    assert len(read_pickled_convolutions(pickled(tmp_path, {KEY: 1.0, KEY + "_1": 1.0}))) == 1


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04\x95", pickle.dumps({KEY: 1.0})[:-3]])
def test_damaged_files_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "table.pkl"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"table\.pkl is damaged or no pickle"):
        read_pickled_convolutions(path)
    with pytest.raises(InputError, match=r"cannot read .*absent\.pkl: no such file"):
        read_pickled_convolutions(tmp_path / "absent.pkl")


@pytest.mark.parametrize(
    ("latency", "unit", "says"),
    [
        (4948e3, "s", "in s the fastest convolution would do 1.2e+04 multiply-accumulates a second, which is too slow"),
        (4.9e-5, "us", "too fast for any device: give --unit ms or --unit s"),
    ],
)
def test_a_unit_that_cannot_be_is_refused(tmp_path: Path, latency: float, unit: str, says: str) -> None:
    path = pickled(tmp_path, {KEY: latency})
    with pytest.raises(InputError) as caught:
        read_pickled_convolutions(path, unit)
    assert says in str(caught.value)


def test_pickles_are_known_by_their_name_or_beginning(tmp_path: Path) -> None:
    unnamed = pickled(tmp_path, {KEY: 1.0}).rename(tmp_path / "latency_lut")
    (tmp_path / "text").write_text("a,b\n")
    (tmp_path / "empty").touch()
    assert is_pickle(unnamed)
    assert is_pickle(tmp_path / "absent.PKL")
    assert not is_pickle(tmp_path / "text")
    assert not is_pickle(tmp_path / "empty")
    with pytest.raises(InputError, match=r"cannot read .*absent: no such file"):
        is_pickle(tmp_path / "absent")


def test_a_pickle_cannot_change_the_stand_ins(tmp_path: Path) -> None:
    # BUILD with a state for what numpy's scalar stands for: it must fail, not set anything.
    path = tmp_path / "table.pkl"
    path.write_bytes(b"\x80\x04cnumpy.core.multiarray\nscalar\n}\x8c\x08__call__K\x01sb.")
    with pytest.raises(InputError, match="damaged or no pickle"):
        read_pickled_convolutions(path)
    assert read_pickled_convolutions(pickled(tmp_path, {KEY: np.float64(1.0)})) is not None
