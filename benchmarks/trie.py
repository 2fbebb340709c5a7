"""What the trie costs: to build, and at each step of a decoding.

    ./build.sh bench trie [--quick]

Build: from token lists (ours, a STATIC-like index, nested dicts) or from texts (grammar engines,
each in a process of its own) to a first mask. Step: given the states of R rows and their
log-probabilities over the vocabulary, the candidates of each row; at the root, where all rows are
in one state, and after 1, 2 and 3 tokens of random descriptions. Every way is checked to find the
same candidates before it is timed. ``--quick`` is the same on fewer descriptions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import descriptions
from common.descriptions import END, LARGE, PIECES
from common.timing import Times, interleaved, keep_memory, shown
from decoding.steps import (
    ALONE,
    COMPILED,
    DICT,
    EAGER,
    HF,
    OURS,
    ROOT,
    Steps,
    as_lists,
    at_root,
    below_root,
    measure_steps,
    nested,
)
from peers import environment, static_like
from rich.console import Console
from rich.table import Table

from serendip.planning.trie import DescriptionTrie
from serendip.progress import console

MICRO = 1e-6

wide = Console(stderr=True, highlight=False, width=190)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    build_sizes: tuple[int, ...]
    builds: int
    grammars: dict[str, tuple[int, ...]]
    limit_s: dict[str, float]
    step_sizes: tuple[int, ...]
    vocabularies: tuple[int, ...]
    rows: tuple[int, ...]
    depths: tuple[int, ...]
    repetitions: int
    masked: int  # descriptions of the grammar whose mask step is timed


FULL = Plan(
    build_sizes=(1_000, 10_000, 100_000, 1_000_000),
    builds=5,
    grammars={
        "xgrammar": (1_000, 10_000, 100_000),
        "llguidance": (1_000, 10_000, 100_000),
        "outlines-core": (1_000, 10_000),
    },
    limit_s={"xgrammar": 900, "llguidance": 240, "outlines-core": 240},
    step_sizes=(100_000, 1_000_000),
    vocabularies=(PIECES, LARGE),
    rows=(1, 32, 256),
    depths=(1, 2, 3),
    repetitions=7,
    masked=10_000,
)
QUICK = Plan(
    build_sizes=(1_000, 10_000),
    builds=3,
    grammars={"xgrammar": (1_000,), "llguidance": (1_000,)},
    limit_s={"xgrammar": 30, "llguidance": 30},
    step_sizes=(10_000,),
    vocabularies=(PIECES,),
    rows=(1, 256),
    depths=(1,),
    repetitions=3,
    masked=1_000,
)


def main() -> None:
    """Measures builds and steps, and prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    environment.make()
    builds = measure_builds(plan)
    grammars = measure_grammars(plan)
    show_builds(plan, builds, grammars)
    keep_memory()
    steps = measure_steps(
        plan.step_sizes, plan.vocabularies, plan.rows, plan.depths, plan.repetitions
    )
    show_steps(steps)
    show_alone(steps)
    rows = [r for r in plan.rows if r <= 32]
    masks = environment.run(
        "grammars", "step", plan.masked, plan.repetitions, *rows, limit_s=plan.limit_s["xgrammar"]
    )
    show_masks(plan, masks)
    figures, ratios = summarise(builds, grammars, steps, masks)
    conditions = {
        "quick": options.quick,
        "descriptions": "simulated",
        "repetitions": plan.repetitions,
        "step_sizes": plan.step_sizes,
        "vocabularies": plan.vocabularies,
        "depths": plan.depths,
        "time": "CPU seconds, median",
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("numpy", "torch", "transformers")}
        | dict(package.split("==") for package in environment.PACKAGES),
    }
    print(
        json.dumps(
            {"bench": "trie", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


# --- builds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What a build cost; memory is what was allocated, and its peak."""

    cpu_s: Times
    kept_mb: float
    peak_mb: float


def measure_builds(plan: Plan) -> dict[tuple[str, int], Built]:
    """Builds from token lists; and ``encode``, which makes those lists from texts."""
    found = {}
    for n in plan.build_sizes:
        lists, nodes = descriptions.token_lists("words", n), np.arange(n, dtype=np.int32)
        plain = as_lists(lists)
        calls: dict[str, Callable[[], object]] = {
            OURS: partial(DescriptionTrie.build, lists, nodes, END),
            "static_like": partial(static_like.build, lists, PIECES, END),
            "dict": partial(nested, plain),
        }
        times = interleaved(calls, plan.builds)
        for name, call in calls.items():
            found[name, n] = Built(times[name], *_traced_mb(call))
        if n <= 100_000:
            texts = descriptions.texts("words", n)
            encode = {"encode": partial(descriptions.tokenizer().encode, texts, num_threads=1)}
            times = interleaved(encode, min(3, plan.builds))
            found["encode", n] = Built(times["encode"], 0, 0)
    return found


def measure_grammars(plan: Plan) -> dict[tuple[str, int], dict[str, Any]]:
    """Builds of the grammar engines, once each; one that fails is asked for no more."""
    found = {}
    for peer, sizes in plan.grammars.items():
        for n in sizes:
            descriptions.texts("words", n)
            found[peer, n] = environment.run(
                "grammars", "build", peer, n, limit_s=plan.limit_s[peer]
            )
            if "failed" in found[peer, n]:
                console.print(f"{peer}, {n}: {found[peer, n]}")
                break
    return found


def _traced_mb(call: Callable[[], object]) -> tuple[float, float]:
    tracemalloc.start()
    kept = call()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Tensors that share numpy's memory are traced; no other is made here.
    del kept
    return now / 1e6, peak / 1e6


# --- tables ----------------------------------------------------------------------------------


def show_builds(
    plan: Plan,
    builds: dict[tuple[str, int], Built],
    grammars: dict[tuple[str, int], dict[str, Any]],
) -> None:
    """CPU seconds and memory by number of descriptions."""
    table = Table("build: CPU s; MB kept (peak)", *(f"{n:,}" for n in plan.build_sizes))
    for name in (OURS, "static_like", "dict", "encode"):
        cells = []
        for n in plan.build_sizes:
            built = builds.get((name, n))
            memory = f"; {built.kept_mb:.1f} ({built.peak_mb:.0f})" if built else ""
            cells.append(shown(built.cpu_s, 1) + memory * (name != "encode") if built else "-")
        table.add_row("encode the texts, for the above" if name == "encode" else name, *cells)
    for peer in plan.grammars:
        cells = []
        for n in plan.build_sizes:
            got = grammars.get((peer, n), {"failed": "-"})
            memory = "" if "failed" in got else f"; {got['kept_mb']:.0f} ({got['peak_mb']:.0f})"
            cells.append(got.get("failed") or f"{got['cpu_s']:.3g}{memory}")
        table.add_row(f"{peer}, of texts", *cells)
    wide.print(table)


def show_steps(steps: Steps) -> None:
    """Microseconds a step, and how many times ours."""
    columns = ["root" if d == ROOT else f"depth {d}" for d in next(iter(steps.values()))]
    table = Table(
        "N, V, R", "a step, us (range)", *columns, "x ours, root", "x ours, depth >= 1",
    )  # fmt: skip
    for (n, vocabulary, rows), depths in steps.items():
        for way in (OURS, EAGER, COMPILED, DICT, HF):
            if way not in depths[ROOT]:
                continue
            table.add_row(
                f"{n:,}, {vocabulary:,}, {rows}" if way == OURS else "",
                way,
                *(shown(times[way], MICRO) for times in depths.values()),
                *(shown(ratio(depths, way), 1) for ratio in (at_root, below_root)),
            )
        table.add_section()
    wide.print(table)


def show_alone(steps: Steps) -> None:
    """The same without log-probabilities: states in, tokens and next states out."""
    table = Table("N, V, R", "the trie alone", "depths >= 1, us (range)", "x ours")
    for (n, vocabulary, rows), depths in steps.items():
        for way in (OURS, EAGER, COMPILED):
            times = [t[ALONE + way] for d, t in depths.items() if d != ROOT and ALONE + way in t]
            if times:
                table.add_row(
                    f"{n:,}, {vocabulary:,}, {rows}" if way == OURS else "",
                    way,
                    shown(np.sum(times, axis=0), MICRO),
                    shown(below_root(depths, ALONE + way, ALONE + OURS), 1),
                )
    wide.print(table)


def show_masks(plan: Plan, masks: dict[str, Any]) -> None:
    """xgrammar's mask step beside ours."""
    if "failed" in masks:
        console.print(f"xgrammar's step: {masks}")
        return
    table = Table(f"step, N={plan.masked:,}: us", "ours", "xgrammar", "x ours")
    for name, times in masks.items():
        ours, its = (np.array(times[way]) for way in ("ours", "xgrammar"))
        table.add_row(name, shown(ours, MICRO), shown(its, MICRO), shown(its / ours, 1))
    wide.print(table)


def summarise(
    builds: dict[tuple[str, int], Built],
    grammars: dict[tuple[str, int], dict[str, Any]],
    steps: Steps,
    masks: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Figures and ratios. A ratio of steps is the least over N and V; ``static_like`` is the
    faster of eager and compiled.
    """
    figures: dict[str, Any] = {
        "grammars": {f"{peer} {n}": got for (peer, n), got in grammars.items()},
        "build_cpu_s": {
            f"{name} {n}": float(np.median(b.cpu_s)) for (name, n), b in builds.items()
        },
    }
    figures["step_us"] = {
        f"N={n} V={v} R={r}, {way}": [
            round(float(np.median(times[way])) / MICRO, 1) for times in depths.values()
        ]
        for (n, v, r), depths in steps.items()
        for way in depths[ROOT]
    }
    ours = builds.get((OURS, 1_000_000))
    figures["build_cpu_s_1M"] = float(np.median(ours.cpu_s)) if ours else None
    figures["memory_mb_1M"] = ours.kept_mb if ours else None
    figures["peak_mb_1M"] = ours.peak_mb if ours else None

    def least(rows: int, ways: tuple[str, ...], ratio: Callable[..., Times]) -> float | None:
        """Over N and V, and over the ways that there are."""
        found = [
            float(np.median(ratio(depths, way)))
            for (_, _, r), depths in steps.items()
            for way in ways
            if r == rows and way in depths[ROOT]
        ]
        return min(found, default=None)

    ratios: dict[str, float | None] = {}
    for rows in sorted({r for _, _, r in steps}):
        static = (EAGER, COMPILED)
        below, root = least(rows, static, below_root), least(rows, static, at_root)
        ratios[f"step_vs_static_like_R{rows}"] = below
        ratios[f"step_vs_static_like_root_R{rows}"] = root
        ratios[f"step_vs_static_compiled_R{rows}"] = least(rows, (COMPILED,), below_root)
        ratios[f"step_vs_static_compiled_root_R{rows}"] = least(rows, (COMPILED,), at_root)
        ratios[f"trie_alone_vs_static_like_R{rows}"] = min(
            float(np.median(below_root(depths, ALONE + way, ALONE + OURS)))
            for (_, _, r), depths in steps.items()
            for way in static
            if r == rows and ALONE + way in depths[1]
        )
        ratios[f"step_vs_hf_dict_R{rows}"] = least(rows, (HF,), below_root)
        ratios[f"step_vs_dict_nodes_R{rows}"] = least(rows, (DICT,), below_root)
        if rows == 1 and below is not None and root is not None:
            ratios["step_vs_static_like_R1"] = min(below, root)
            ratios["step_vs_static_like_below_R1"] = below
    for size in [] if "failed" in masks else sorted({name.split()[0] for name in masks}):
        ratios[f"step_vs_xgrammar_{size}"] = min(
            float(np.median(np.array(times["xgrammar"]) / times["ours"]))
            for name, times in masks.items()
            if name.split()[0] == size
        )
    ratios["build_vs_xgrammar_100k"] = ratios["build_from_texts_vs_xgrammar_100k"] = None
    its = grammars.get(("xgrammar", 100_000), {}).get("cpu_s")
    if its:
        mine, encode = (float(np.median(builds[w, 100_000].cpu_s)) for w in (OURS, "encode"))
        ratios["build_vs_xgrammar_100k"] = its / mine
        ratios["build_from_texts_vs_xgrammar_100k"] = its / (mine + encode)
    for name in ("static_like", "dict"):
        n = max(n for _, n in builds)
        ratios[f"build_vs_{name}_{n}"] = float(
            np.median(builds[name, n].cpu_s / builds[OURS, n].cpu_s)
        )
    return figures, ratios


if __name__ == "__main__":
    main()
