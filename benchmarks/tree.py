"""The balanced tree: seconds, balance and coherence at a million items, beside plain k-means.

    ./build.sh bench tree [--quick]

Large: simulated vectors under Zipf traffic into a tree; ours, ours without balance (plain spherical
k-means of the same shape, the same code), and a tree of faiss's k-means. Small: flat and
balanced by count, in turns with k-means-constrained, at every n that it can do in minutes.
``--quick`` is the same on fewer items.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common.timing import clocks, shown
from common.vectors import vectors_and_traffic
from peers import environment
from rich.console import Console
from rich.table import Table

from serendip.config import TreeConfig
from serendip.progress import progress
from serendip.tree.balance import balance_weights, cluster_leaves
from serendip.tree.report import level_figures

DIMENSIONS = 64
CHILDREN = 16  # of the flat clusterings

wide = Console(stderr=True, highlight=False, width=160)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    items: int
    tree: TreeConfig
    small: dict[int, int]  # repetitions by n
    limit_s: float


FULL = Plan(
    items=1_000_000,
    tree=TreeConfig(branching=(16, 16, 16, 4), tolerance=0.02, balance_alpha=0.5, restarts=1),
    small={1_000: 7, 4_000: 5, 16_000: 3, 32_000: 1},
    limit_s=900,
)
QUICK = Plan(
    items=60_000,
    tree=TreeConfig(branching=(4, 8, 8, 4), tolerance=0.02, balance_alpha=0.5, restarts=1),
    small={1_000: 3, 4_000: 1},
    limit_s=60,
)


def main() -> None:
    """Measures both parts, and prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    environment.make()
    large = measure_large(plan)
    show_large(plan, large)
    small = {
        n: environment.run(
            "clustering", "constrained", n, DIMENSIONS, CHILDREN, plan.tree.tolerance, repetitions,
            limit_s=plan.limit_s,
        )
        for n, repetitions in plan.small.items()
    }  # fmt: skip
    show_small(small)
    figures, ratios = summarise(plan.items, large, small)
    conditions = {
        "quick": options.quick,
        "vectors": "simulated",
        "items": plan.items,
        "dimensions": DIMENSIONS,
        "tree": plan.tree.model_dump(
            include={"branching", "tolerance", "balance_alpha", "balance_clip", "restarts"}
        ),
        "repetitions": plan.small,
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"numpy": version("numpy")}
        | dict(package.split("==") for package in environment.PACKAGES),
    }
    print(json.dumps({
        "bench": "tree", "conditions": conditions, "figures": figures, "ratios": ratios
    }))  # fmt: skip


def measure_large(plan: Plan) -> dict[str, dict[str, Any]]:
    """Wall and CPU seconds and the figures of each level: ours, plain, faiss."""
    x, traffic = vectors_and_traffic(plan.items, DIMENSIONS)
    tree, found = plan.tree, {}
    leaves = int(np.prod(tree.branching))
    weights = balance_weights(traffic, tree.balance_alpha, leaves, tree.balance_clip)
    splits = sum(int(np.prod(tree.branching[:level])) for level in range(len(tree.branching)))
    for way, tolerance in (("ours", tree.tolerance), ("plain", 1e9)):
        with progress(way, splits) as tick:
            wall_s, cpu_s, leaf = clocks(
                lambda tolerance=tolerance, tick=tick: cluster_leaves(
                    x, weights, tree.branching, tolerance=tolerance, restarts=tree.restarts,
                    rng=np.random.default_rng(0), tick=tick,
                )
            )  # fmt: skip
        levels = [vars(level) for level in level_figures(tree.branching, leaf, weights, x)]
        found[way] = {"wall_s": wall_s, "cpu_s": cpu_s, "levels": levels}
    found["faiss"] = environment.run(
        "clustering", "faiss", plan.items, DIMENSIONS, *tree.branching, limit_s=plan.limit_s
    )
    return found


def show_large(plan: Plan, large: dict[str, dict[str, Any]]) -> None:
    """A row a way and level."""
    table = Table(
        f"{plan.items:,} x {DIMENSIONS}", "wall s", "CPU s", "level", "clusters",
        "weight max/mean", "min/mean", "items max", "min", "cosine",
    )  # fmt: skip
    for way, got in large.items():
        if "failed" in got:
            table.add_row(way, got["failed"])
            continue
        for of in got["levels"]:
            first = of["level"] == 1
            table.add_row(
                way if first else "",
                f"{got['wall_s']:.1f}" if first else "",
                f"{got['cpu_s']:.1f}" if first else "",
                str(of["level"]), str(of["nodes"]), f"{of['heaviest']:.3f}",
                f"{of['lightest']:.3f}", str(of["largest"]), str(of["smallest"]),
                f"{of['cosine']:.4f}",
            )  # fmt: skip
        table.add_section()
    wide.print(table)


def show_small(small: dict[int, dict[str, Any]]) -> None:
    """A row an n and way."""
    table = Table(
        f"into {CHILDREN}, balanced by count", "", "wall s (range)", "CPU s (range)", "cosine",
        "items max/mean",
    )  # fmt: skip
    for n, got in small.items():
        if "failed" in got:
            table.add_row(f"{n:,}", str(got))
            continue
        for way, of in got.items():
            table.add_row(
                f"{n:,}" if way == "ours" else "", way, shown(np.array(of["wall_s"]), 1),
                shown(np.array(of["cpu_s"]), 1), f"{np.mean(of['cosine']):.4f}",
                f"{np.max(of['largest']):.3f}",
            )  # fmt: skip
    wide.print(table)


def summarise(
    items: int, large: dict[str, dict[str, Any]], small: dict[int, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Figures and ratios. ``cosine_vs_plain`` is against the better of plain and faiss;
    ``vs_kmeans_constrained`` the least over n of the medians' ratio, by wall seconds.
    """
    ours = large["ours"]
    leaves = {way: got["levels"][-1]["cosine"] for way, got in large.items() if "failed" not in got}
    figures: dict[str, Any] = {
        "seconds_1M": ours["wall_s"] if items == 1_000_000 else None,
        "cpu_seconds_1M": ours["cpu_s"] if items == 1_000_000 else None,
        "max_over_mean_leaves": ours["levels"][-1]["heaviest"],
        "cosine": leaves,
        "large": large,
        "small": small,
    }
    done = {n: got for n, got in small.items() if "failed" not in got}

    def least(clock: str) -> float | None:
        return min(
            (
                float(np.median(got["k-means-constrained"][clock]) / np.median(got["ours"][clock]))
                for got in done.values()
            ),
            default=None,
        )

    others = [cosine for way, cosine in leaves.items() if way != "ours"]
    ratios = {
        "cosine_vs_plain": leaves["ours"] / max(others),
        "vs_kmeans_constrained": least("wall_s"),
        "vs_kmeans_constrained_cpu": least("cpu_s"),
        "cosine_vs_kmeans_constrained": min(
            (
                float(
                    np.mean(got["ours"]["cosine"]) / np.mean(got["k-means-constrained"]["cosine"])
                )
                for got in done.values()
            ),
            default=None,
        ),
    }
    faiss = large["faiss"]
    ratios["seconds_vs_faiss"] = None if "failed" in faiss else faiss["wall_s"] / ours["wall_s"]
    return figures, ratios


if __name__ == "__main__":
    main()
