"""What comes from Python is looked at before it is used: one clear line for every wrong type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import mdp_fx
from mdp_fx.api import prune, search_space
from mdp_fx.errors import InputError
from mdp_fx.passes.arguments import check_limits, check_restrictions
from tests.passes.spaces import chain_space

RESTRICTIONS = [
    ({"min_keep": "10%"}, "min_keep is '10%'; it must be a share between 0 and 1, such as 0.1 for 10 %"),
    ({"min_keep": True}, "min_keep is True"),
    ({"min_keep": 1.5}, "min_keep is 1.5; it must be a share between 0 and 1"),
    ({"min_keep": math.nan}, "min_keep is nan"),
    ({"fixed": {"a": 1.0}}, "fixed holds 'a' at 1.0; it must be a size as an int"),
    ({"fixed": {0: 1}}, "fixed holds 0 at 1"),
    ({"fixed": ["a"]}, r"fixed is \['a'\]; it must be sizes by dimension, such as {'conv1': 32}"),
    ({"keep_blocks": "12"}, r"keep_blocks is the string '12'; it must be a list of names: \['12'\]"),
    ({"keep_blocks": [1]}, r"keep_blocks is \[1\]; it must be a list of names of blocks"),
    ({"keep_blocks": None}, "keep_blocks is None"),
]
LIMITS = [
    ({"gap": "0.01%"}, "gap is '0.01%'; it must be a number of at least 0, such as 0.001 for 0.1 %"),
    ({"gap": -1.0}, "gap is -1.0"),
    ({"time_limit": None}, "the time limit is None; it must be a number of seconds above 0"),
    ({"time_limit": math.nan}, "the time limit is nan"),
    ({"time_limit": 10**400}, "the time limit is 1000"),
    ({"time_limit": 0}, "the time limit is 0"),
    ({"threads": -1}, "threads is -1; it must be an int of at least 1"),
    ({"seed": -1}, "seed is -1; it must be an int of at least 0 and at most 4294967295"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"max_removed": "1"}, "max_removed is '1'; it must be an int of at least 0"),
    ({"max_removed": 1.5}, "max_removed is 1.5"),
    ({"max_removed": np.int64(1)}, r"max_removed is np.int64\(1\)"),
]


@pytest.mark.parametrize(("options", "message"), RESTRICTIONS + LIMITS)
def test_a_decision_refuses_what_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        mdp_fx.solve(chain_space(), {"latency": "60%"}, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [*RESTRICTIONS, ({"max_removed": 1.5}, "max_removed is 1.5")])
def test_pruning_refuses_it_before_it_looks_at_the_network(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(None, None, **options)  # type: ignore[arg-type]


def test_a_search_space_is_not_measured_for_what_cannot_be_used() -> None:
    with pytest.raises(InputError, match="keep_blocks is the string 'block'"):
        search_space(None, None, keep_blocks="block")  # type: ignore[arg-type]


def test_what_can_be_used_passes() -> None:
    check_restrictions(np.float64(0.5), {"a": 1}, {"b"})
    check_restrictions(None, None, ())
    check_limits(0, np.float32(2.0), None, 2**32 - 1, 0)


@pytest.mark.parametrize("space", ["space.json", None])
def test_a_file_is_no_search_space(space: Any) -> None:
    message = r"expected a SearchSpace, found a \w+; read a file with mdp_fx.SearchSpace.load\(path\)"
    with pytest.raises(InputError, match=message):
        mdp_fx.solve(space, {"latency": "60%"})
    with pytest.raises(InputError, match=message):
        mdp_fx.frontier(space)


@pytest.mark.parametrize("budgets", ["30%", 0.3, [("latency", "30%")]])
def test_budgets_are_by_cost(budgets: Any) -> None:
    with pytest.raises(InputError, match=r"budgets are .*; they must be by cost, such as {'latency': '30%'}"):
        mdp_fx.solve(chain_space(), budgets)


def test_points_are_counted() -> None:
    with pytest.raises(InputError, match=r"the number of points is 2\.5; it must be an int of at least 2"):
        mdp_fx.frontier(chain_space(), most=2.5)  # type: ignore[arg-type]


def test_names_are_strings() -> None:
    with pytest.raises(InputError, match="budget for an unknown cost 1; the search space has latency"):
        mdp_fx.solve(chain_space(), {1: "30%"})  # type: ignore[dict-item]
