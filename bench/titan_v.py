"""ResNet-50 on the Titan V's table: what each method makes of a budget, beside what the papers measured.

Nothing is run on a Titan V. A network's latency is the sum of its convolutions in the shipped table (batch 256), and
importance is the l2 norm of random weights: the structures are those that these two ask for, not the papers' own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent.parent))

import mdp_fx
from bench.common import save, write
from bench.solver_methods import BATCH, METHODS, SHARES, Method, in_order
from bench.solver_runs import GAP, THREADS
from mdp_fx.graph.axes import Dim
from mdp_fx.latency.network import exact_sum
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.latency.tables import table_for
from mdp_fx.passes import minlp
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.search_space import SearchSpace, cut_dimensions, evaluate, importance
from mdp_fx.pipeline import analyse

TARGET = "titan-v"

PAPER_DENSE = 1019
"""Images per second of the dense ResNet-50 on a Titan V at batch 256, measured as a whole (MDP, arXiv 2504.02168)."""

PAPER = {
    ("halp", 0.3): {"images_per_s": 2610, "top1": 74.41, "source": "HALP, arXiv 2110.10811: 30 % of the latency kept"},
    ("halp", 0.15): {"images_per_s": 4101, "top1": 68.6, "source": "HALP at 85 % removed, as MDP reports it"},
    ("mdp", 0.3): {"images_per_s": 3052, "top1": 75.0, "source": "MDP, arXiv 2504.02168"},
    ("mdp", 0.2): {"images_per_s": 4210, "top1": 72.8, "source": "MDP, arXiv 2504.02168"},
    ("mdp", 0.15): {"images_per_s": 5262, "top1": 70.0, "source": "MDP, arXiv 2504.02168"},
}
"""Measured by the authors, for the method and share of the latency that they name or that comes closest."""

MINLP_WIDTHS = {
    "layer1.0.conv3": 192,
    "layer2.0.conv1": 64,
    "layer2.0.conv3": 384,
    **{f"layer1.{i}.conv2": 32 for i in range(3)},
    "layer2.1.conv2": 96,
    "layer4.1.conv1": 480,
    "layer4.2.conv1": 480,
}
"""Channels of the groups that the largest structure of MDP's published MINLP keeps less than all of."""

NOTE = (
    "predicted from the shipped table, nothing run; l2 importance of random weights (the papers score trained weights "
    "by Taylor expansion on ImageNet), so structures and accuracies are not theirs"
)


def dense_rows(target: TableTarget) -> dict[str, Any]:
    """What the table says of dense networks, and of the largest structure that MDP's authors gave their solver."""
    images = torch.zeros(BATCH, 3, 224, 224)
    rows: dict[str, Any] = {}
    for name in ("resnet50", "resnet101"):
        analysis = analyse(torchvision.models.get_model(name, weights=None).eval(), images, all_examples=False)
        rows[name] = facts(seconds_of(analysis, target, {}))
        if name == "resnet50":
            rows["resnet50, largest structure of the published MINLP"] = facts(
                seconds_of(analysis, target, MINLP_WIDTHS)
            )
    rows["resnet50, whole, measured by the authors"] = {"images_per_s": PAPER_DENSE}
    return rows


def seconds_of(analysis: Analysis, target: TableTarget, widths: dict[str, int]) -> float:
    """Predicted seconds with some groups at other widths."""
    sizes = {group.dim: widths.get(group.name, group.size) for group in analysis.groups}

    def size_of(dim: Dim) -> int:
        return sizes.get(dim, dim.size)

    with table_for(target) as unused:
        return sum(exact_sum(analysis.regions, size_of, target, unused).values())


def facts(seconds: float) -> dict[str, float]:
    """A latency and its rate."""
    return {"latency_ms": 1e3 * seconds, "images_per_s": BATCH / seconds}


def structures(space: SearchSpace, solver: str) -> list[dict[str, Any]]:
    """One row for each share of the dense latency and method."""
    dense, whole = evaluate(space, space.unpruned())["latency"], importance(space, space.unpruned())
    methods = [Method(space, name, solver) for name in METHODS]
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        for method in methods:
            row: dict[str, Any] = {"share": share, "method": method.name}
            found = method.within(share * dense)
            if found is None:
                row["fault"] = "nothing that its model offers is as fast"
            else:
                latency = found.costs["latency"]
                again = {"solver": solver, "gap": GAP, "threads": THREADS, "time_limit": 120}
                selection = minlp.solve(space, found.budgets, method=method.name, **again)[0]
                row |= {
                    "latency_ms": latency / 1000,
                    "speed_up": dense / latency,
                    "images_per_s": BATCH / latency * 1e6,
                    "importance_kept": found.objective / whole,
                    "gap": found.gap,
                    "removed_blocks": list(selection.removed_blocks),
                    "kept": {d.name: selection.sizes[d.name] for d in cut_dimensions(space, selection)},
                }
            if (method.name, share) in PAPER:
                paper = PAPER[method.name, share]
                row["paper"] = paper | {"speed_up": paper["images_per_s"] / PAPER_DENSE}
            rows.append(row)
            print(row, flush=True)
    return rows


def table(dense: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# ResNet-50 on a Titan V, batch 256, by the shipped table",
        "",
        f"{NOTE[0].upper()}{NOTE[1:]}.",
        "",
        "| network | latency | images/s |",
        "|---|---|---|",
    ]
    for name, row in dense.items():
        latency = f"{row['latency_ms']:.1f} ms" if "latency_ms" in row else "-"
        lines.append(f"| {name} | {latency} | {row['images_per_s']:.0f} |")
    lines += [
        "",
        "| budget | method | predicted latency | predicted images/s | predicted speed-up | importance kept "
        "| blocks removed | groups cut | paper: measured images/s | paper: measured speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = row.get("paper")
        measured = f"{paper['images_per_s']} | {paper['speed_up']:.2f}" if paper else "- | -"
        found = f"{row.get('fault')} | - | - | - | - | -"
        if "fault" not in row:
            found = (
                f"{row['latency_ms']:.1f} ms | {row['images_per_s']:.0f} | {row['speed_up']:.2f} "
                f"| {row['importance_kept']:.1%} | {len(row['removed_blocks'])} | {len(row['kept'])}"
            )
        lines.append(f"| {row['share']:.0%} | {row['method']} | {found} | {measured} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs everything and writes bench/results/titan_v.json and titan_v.md."""
    torch.manual_seed(0)
    target = TableTarget.named(TARGET)
    dense = dense_rows(target)
    print(dense, flush=True)
    network = torchvision.models.resnet50(weights=None).eval()
    space = mdp_fx.search_space(network, torch.zeros(BATCH, 3, 224, 224), target=TARGET, importance="l2")
    rows = structures(space, "auto")
    orders = {
        f"{share:.0%}": in_order(
            {r["method"]: r["importance_kept"] for r in rows if r["share"] == share and "fault" not in r}
        )
        for share in SHARES
    }
    save("titan_v", {"note": NOTE, "dense": dense, "structures": rows, "order_of_the_paper_holds": orders})
    write("titan_v.md", table(dense, rows))


if __name__ == "__main__":
    main()
