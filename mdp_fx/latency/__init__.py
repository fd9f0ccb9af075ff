"""Latency of regions and networks, measured on the user's own device and runtime."""

from __future__ import annotations

from mdp_fx.latency.interpolation import interpolate, resample
from mdp_fx.latency.measuring import compare, measure_regions
from mdp_fx.latency.tables import LatencyTable, cache_dir
from mdp_fx.latency.targets import RegionSpec, Runner, Target, get_target, target_names
from mdp_fx.latency.timing import Effort, Timing

__all__ = [
    "Effort",
    "LatencyTable",
    "RegionSpec",
    "Runner",
    "Target",
    "Timing",
    "cache_dir",
    "compare",
    "get_target",
    "interpolate",
    "measure_regions",
    "resample",
    "target_names",
]
