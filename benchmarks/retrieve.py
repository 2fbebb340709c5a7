"""./build.sh bench retrieve [--quick] [--plot FILE]: exact top-k inside clusters, and its peers.

    narrow  4,096 equal leaves, 1 to 4 a request, k = 50; batches of 1, 16 and 64 requests; against
            faiss (IVF with search_preassigned, float32 and SQ8; flat with IDSelectorRange and
            IDSelectorBatch), and a full scan with a mask
    wide    slices of 39,063 of 10M items, one at a time: float32, 8-bit codes, faiss
    graph   hnswlib with a filter, on fewer items

Ours are compiled by numba, as in a server that has run for a while; without numba they are a row of
their own. One thread; ours and each peer in turns in one process; CPU seconds. Ours are compared
item by item with brute force on the same requests, peers too: their share of requests with the very
items is a column. --plot draws how one request's time grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common.timing import shown
from peers import environment
from rich.console import Console
from rich.table import Table

wide_console = Console(width=150, stderr=True)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    items: of the two corpora; slices of ``wide_leaves`` are from the last.
    slow_batches: for a full scan and IDSelectorBatch on the last corpus.
    graph_items: of hnswlib; 0: left out.
    """

    items: tuple[int, ...]
    leaves: int
    k: int
    batches: tuple[int, ...]
    slow_batches: tuple[int, ...]
    repetitions: int
    slow_repetitions: int
    wide_leaves: int
    graph_items: int
    limit_s: int


FULL = Plan(
    items=(1_000_000, 10_000_000),
    leaves=4096,
    k=50,
    batches=(1, 16, 64),
    slow_batches=(1,),
    repetitions=15,
    slow_repetitions=3,
    wide_leaves=16,
    graph_items=50_000,
    limit_s=3600,
)
QUICK = Plan(
    items=(1_000_000,),
    leaves=4096,
    k=50,
    batches=(1, 16),
    slow_batches=(1,),
    repetitions=5,
    slow_repetitions=1,
    wide_leaves=160,
    graph_items=5_000,
    limit_s=120,
)


def main() -> None:
    """Measures, and prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    found = environment.run("slices", json.dumps(asdict(plan)), limit_s=plan.limit_s)
    if "failed" in found:
        raise SystemExit(f"bench retrieve: {found}")
    show(found)
    if options.plot:
        draw(found["growth"], options.plot)
    conditions = {
        "quick": options.quick,
        "vectors": "simulated: noise; wide also as training leaves them",
        **asdict(plan),
        "columns": 65,
        "threads": 1,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.machine(),
        "clock": "CPU seconds of the process",
        "versions": {"numpy": version("numpy")}
        | dict(package.split("==") for package in environment.PACKAGES + environment.BUILT),
    }
    figures, ratios = summarise(found)
    print(json.dumps({
        "bench": "retrieve", "conditions": conditions, "figures": figures, "ratios": ratios
    }))  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """A table a corpus, and one of the wide slices."""
    for items, got in found["narrow"].items():
        table = Table(
            f"{int(items):,} items, leaves", "batch", "ours, ms", "peer, ms", "peer / ours",
            "right items",
        )  # fmt: skip
        for peer, row in got["rows"].items():
            for at, (size, times) in enumerate(row["batches"].items()):
                table.add_row(
                    "" if at else peer, size,
                    *(shown(np.array(times[w]), 1e-3) for w in ("ours", "peer")),
                    f"{ratio(times):.2f}", f"{times['peer_equal']:.3f}",
                )  # fmt: skip
        wide_console.print(table)
        share = ", ".join(f"{s:.2f} at batch {b}" for b, s in got["bandwidth_share"].items())
        wide_console.print(f"gemv {got['gemv_gb_per_s']:.1f} GB/s; ours reaches {share}")
    for kind, got in found["wide"].items():
        table = Table(f"slices of {got['rows']:,}, {kind}", "ours, ms", "other, ms", "other / ours",
                      "right items")  # fmt: skip
        for other, times in got["ways"].items():
            table.add_row(
                "codes, other: ours in float32" if other == "codes" else f"float32, other: {other}",
                shown(np.array(times["ours"]), 1e-3), shown(np.array(times["peer"]), 1e-3),
                f"{ratio(times):.2f}", f"{times['peer_equal']:.3f}",
            )  # fmt: skip
        wide_console.print(table)
        wide_console.print(f"not ruled out by codes, of k = 50: {got['looked_again']}")
    graph = found.get("graph")
    if graph and "failed" not in graph:
        wide_console.print(
            f"hnswlib with a filter, {graph['items']:,} items: {ratio(graph):.1f} times as long, "
            f"recall {graph['recall']:.3f}"
        )


def ratio(times: dict[str, Any]) -> float:
    """How many times as long the peer takes, by medians."""
    return float(np.median(times["peer"]) / np.median(times["ours"]))


def summarise(found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Figures and ratios; least ratios are over corpora and batches, and wide slices apart."""

    def least(peer: str) -> float:
        return min(
            ratio(times)
            for got in found["narrow"].values()
            for times in got["rows"][peer]["batches"].values()
        )

    first, last = (found["narrow"][key] for key in (min(found["narrow"]), max(found["narrow"])))
    scan = first["rows"]["full scan and mask"]["batches"]["1"]
    noise, trained = found["wide"]["noise"]["ways"], found["wide"]["trained-like"]["ways"]
    graph = found.get("graph") or {}
    ratios: dict[str, float | None] = {
        "vs_full_scan_1M_B1": ratio(scan),
        "vs_faiss_ivf_min": least("faiss IVF, preassigned"),
        "vs_faiss_range_min": least("faiss flat, IDSelectorRange"),
        "vs_faiss_sq8_min": least("faiss IVF SQ8, preassigned"),
        "int8_vs_fp32_39k": ratio(noise["codes"]),
        "int8_vs_fp32_39k_trained_like": ratio(trained["codes"]),
        "fp32_vs_faiss_ivf_39k": ratio(noise["faiss IVF, preassigned"]),
        "fp32_vs_faiss_range_39k": ratio(noise["faiss flat, IDSelectorRange"]),
        "vs_hnswlib": None if "peer" not in graph else ratio(graph),
    }
    largest = max(found["narrow"], key=int)
    share = found["narrow"][largest]["bandwidth_share"]
    figures = {
        "bandwidth_share_10M": max(share.values()) if largest == "10000000" else None,
        "gemv_gb_per_s": last["gemv_gb_per_s"],
        **found,
    }
    return figures, ratios


def draw(growth: dict[str, Any], path: Path) -> None:
    """How one request's time grows with its slice, the corpus and k, as an SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = {
        "rows": "rows of the slice, k = 50",
        "corpus": "items of the corpus, k = 50",
        "k": f"k, a slice of {growth['k']['rows']:,}",
    }
    with rc_context({"svg.hashsalt": "scan", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, (key, title) in zip(axes, panels.items(), strict=True):
            for name, points in growth[key].items():
                if name != "rows":
                    x, y = np.array(points).T
                    axis.plot(x, y * 1e3, marker=".", label=name)
            axis.set(xscale="log", yscale="log", xlabel=title)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
        axes[0].set_ylabel("CPU ms a request")
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
