"""How good, how fast and how sure are the solvers? `python bench/solver.py [--solvers exact,lagrangian,mindtpy,scip]`

On the MINLPs that MDP's authors solved (../shared/data/minlp): objective, proven bound, gap and seconds of every solver
at shares of the dense latency and at the recorded budget, beside MindtPy (the papers' route) and SCIP (an independent
check of the optimum); seconds and memory against the granularity of the options; and what the four methods keep at
equal true latency. One thread; ratios are of one run. `--parts` and `--networks` select, `--shares 30,15` are percent.
What is not run keeps its last results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import solver_granularity, solver_methods
from bench.common import SHARED, load, save, write
from bench.solver_runs import GAP, REPEATS, SOLVERS, mindtpy_back_ends, run, warm_up
from mdp_fx.passes.search_space import SearchSpace, evaluate

NETWORKS = ("resnet50", "resnet101")

SHARES = (0.9, 0.7, 0.5, 0.3, 0.15, 0.1)

PARTS = ("instances", "granularity", "methods")


def path_of(network: str) -> Path:
    """The file of a MINLP."""
    path = SHARED / "minlp" / f"{network}_titan_v.json"
    if not path.exists():
        sys.exit(f"bench/solver.py needs the MINLP of {network}, which is not in ../shared/data/minlp")
    return path


def instances(
    networks: Sequence[str], shares: Sequence[float], solvers: Sequence[str], limit: float
) -> list[dict[str, Any]]:
    """One row for each network, budget and solver."""
    for solver in solvers:
        warm_up(solver)
    rows = []
    for network in networks:
        data = json.loads(path_of(network).read_text(encoding="utf-8"))
        space = SearchSpace.load(path_of(network))
        dense = evaluate(space, space.dense())["latency"]
        budgets = {f"{share:.0%}": share * dense for share in shares} | {"recorded": float(data["budget_us"])}
        for name, budget in budgets.items():
            for solver in solvers:
                found = run(solver, space, {"latency": budget}, limit)
                row = {"network": network, "budget": name, "budget_us": budget} | found.to_json()
                rows.append(row)
                print(row, flush=True)
    return rows


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios and agreements over the instances."""
    at = {(row["network"], row["budget"], row["solver"]): row for row in rows}
    places = sorted({key[:2] for key in at})
    found: dict[str, Any] = {}
    ours_named, theirs_named = ("lagrangian", "lagrangian at 0.1 %", "exact"), ("mindtpy", "mindtpy at 0.1 %")
    for solver, rival in itertools.product(ours_named, theirs_named):
        pairs = [(at[*p, rival], at[*p, solver]) for p in places if {(*p, rival), (*p, solver)} <= at.keys()]
        if pairs:
            ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
            losses = [1 - ours["objective"] / theirs["objective"] for theirs, ours in pairs if "objective" in theirs]
            found[f"{solver} against {rival}"] = {
                "times_faster_median": median(ratios),
                "times_faster_minimum": min(ratios),
                "largest_loss": max(losses, default=0.0),
                "rival_found_nothing": len(pairs) - len(losses),
            }
    for solver in ("lagrangian", "exact"):
        gaps = [row.get("gap", float("inf")) for row in rows if row["solver"] == solver]
        if gaps:
            found[f"{solver}: largest gap"] = max(gaps)
        checks = [(at[*p, "scip"], at[*p, solver]) for p in places if {(*p, "scip"), (*p, solver)} <= at.keys()]
        if checks:
            done = [(scip, ours) for scip, ours in checks if scip.get("gap", 1.0) <= 1.001 * GAP]
            found[f"{solver}: agrees with scip"] = {"of": len(done), "same": sum(agree(*pair) for pair in done)}
            found["scip: did not finish"] = len(checks) - len(done)
    return found


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether neither objective exceeds the other's bound, and both are within the gap of one another."""
    slack = 1 + 1e-6
    sound = one["objective"] <= other["bound"] * slack and other["objective"] <= one["bound"] * slack
    return sound and abs(one["objective"] / other["objective"] - 1) <= GAP * slack


def granularity(
    networks: Sequence[str], solvers: Sequence[str], splits: Sequence[int], limit: float
) -> list[dict[str, Any]]:
    """One row for each network, split and solver, at 30 % of the dense latency; a solver that gave up is not asked for
    finer options."""
    rows = []
    for network in networks:
        for solver in solvers:
            for parts in splits:
                row = solver_granularity.measure(path_of(network), solver, parts, 0.3, limit)
                rows.append(row)
                print(row, flush=True)
                if row["status"] in ("stopped", "time limit", "nothing found"):
                    break
    return rows


def main() -> None:
    """Runs what is asked and writes bench/results/solver.json and solver_granularity.svg."""
    parser = argparse.ArgumentParser(description="How good, how fast and how sure are the solvers?")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--shares", default=",".join(f"{100 * share:g}" for share in SHARES))
    parser.add_argument("--splits", default=",".join(map(str, solver_granularity.SPLITS)))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for one solve")
    asked = parser.parse_args()
    solvers, networks, parts = (text.split(",") for text in (asked.solvers, asked.networks, asked.parts))
    for kind, names, known in (("solver", solvers, SOLVERS), ("network", networks, NETWORKS), ("part", parts, PARTS)):
        if unknown := set(names) - set(known):
            parser.error(f"unknown {kind} {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    results = {key: value for key, value in load("solver").items() if key in {*PARTS, "verdict"}}
    if "instances" in parts:
        shares = [float(share) / 100 for share in asked.shares.split(",")]
        rows = instances(networks, shares, solvers, asked.time_limit)
        results |= {"instances": rows, "verdict": verdict(rows)}
        print(json.dumps(results["verdict"], indent=1))
    if "granularity" in parts:
        which = [solver for solver in solvers if solver in solver_granularity.SOLVER_NAMES]
        rows = granularity(networks, which, [int(n) for n in asked.splits.split(",")], asked.time_limit)
        results["granularity"] = rows
        write("solver_granularity.svg", solver_granularity.plot(rows))
    if "methods" in parts:
        best = "lagrangian" if "lagrangian" in solvers else "exact"
        results["methods"] = [
            row for name in networks for row in solver_methods.compare(SearchSpace.load(path_of(name)), name, best)
        ]
    about = {"gap": GAP, "time_limit_s": asked.time_limit, "threads": 1}
    save("solver", about | {"repeats": REPEATS, "mindtpy": mindtpy_back_ends()} | results)


if __name__ == "__main__":
    main()
