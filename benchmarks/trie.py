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
import gc
import json
import os
import platform
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from common import descriptions
from common.descriptions import END, LARGE, PIECES
from common.timing import Times, interleaved, keep_memory, shown
from peers import environment, static_like
from rich.console import Console
from rich.table import Table

from serendip.planning.trie import START, DescriptionTrie
from serendip.planning.trie_build import TokenLists
from serendip.progress import console

Node = dict[int, "Node"]
ROOT = 0
OURS, EAGER, COMPILED = "ours", "static_like, eager", "static_like, compiled"
DICT, HF = "dict, nodes kept", "HF processor + dict"
ALONE = "the trie alone: "
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
    steps = measure_steps(plan)
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
        as_lists = _as_lists(lists)
        calls: dict[str, Callable[[], object]] = {
            OURS: partial(DescriptionTrie.build, lists, nodes, END),
            "static_like": partial(static_like.build, lists, PIECES, END),
            "dict": partial(nested, as_lists),
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


def nested(lists: list[list[int]]) -> Node:
    """The trie as dicts in dicts, each list followed by the end token.

    Without the garbage collector, which would walk the dicts again and again.
    """
    root: Node = {}
    gc.disable()
    for tokens in lists:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
        node[END] = {}
    gc.enable()
    return root


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


def _as_lists(lists: TokenLists) -> list[list[int]]:
    flat, start = lists.flat.tolist(), lists.start.tolist()
    return [flat[a:b] for a, b in pairwise(start)]


# --- steps -----------------------------------------------------------------------------------


def trie_root(trie: DescriptionTrie, log_probs: torch.Tensor) -> tuple[object, object, object]:
    """The first step of all rows: one state, one set of columns."""
    below = trie.children(START)
    token = torch.from_numpy(trie.token[below])
    return token, below, log_probs.index_select(1, token)


def trie_step(
    trie: DescriptionTrie, log_probs: torch.Tensor, states: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Candidates of all rows, ragged: token, next state, log-probability."""
    edges = trie.expand(states)
    at = edges.row * log_probs.shape[1]
    at += edges.token
    return edges.token, edges.state, log_probs.numpy().reshape(-1).take(at)


def dict_step(
    nodes: Sequence[Node], log_probs: torch.Tensor
) -> list[tuple[list[int], list[Node], npt.NDArray[np.float32]]]:
    """The same where each row holds its dict."""
    scores = log_probs.numpy()
    found = []
    for row, node in enumerate(nodes):
        tokens = list(node)
        found.append((tokens, list(node.values()), scores[row].take(tokens)))
    return found


def prefixes(lists: TokenLists, rows: int, depth: int, rng: np.random.Generator) -> list[list[int]]:
    """The first tokens of random descriptions that are longer than ``depth``."""
    longer = np.flatnonzero(lists.lengths > depth)
    starts = lists.start[rng.choice(longer, rows)]
    found: list[list[int]] = lists.flat[starts[:, None] + np.arange(depth)].tolist()
    return found


@dataclass(frozen=True)
class Tries:
    """The same descriptions in every form."""

    ours: DescriptionTrie
    static: static_like.StaticIndex
    root: Node

    def allowed(self, _: int, tokens: torch.Tensor) -> list[int]:
        """What transformers asks for: the tokens that may follow a prompt of one and a prefix."""
        node = self.root
        for token in tokens[1:].tolist():
            node = node[token]
        return list(node)


Steps = dict[tuple[int, int, int], dict[int, dict[str, Times]]]


def measure_steps(plan: Plan) -> Steps:
    """By (N, V, R) and depth: seconds a step of each way."""
    found: Steps = {}
    for n in plan.step_sizes:
        for vocabulary in plan.vocabularies:
            lists = descriptions.token_lists("words", n, vocabulary)
            tries = Tries(
                DescriptionTrie.build(lists, np.arange(n, dtype=np.int32), END),
                static_like.build(lists, vocabulary, END),
                nested(_as_lists(lists)),
            )
            for rows in plan.rows:
                generator = torch.Generator().manual_seed(rows)
                log_probs = torch.randn(rows, vocabulary, generator=generator).log_softmax(-1)
                found[n, vocabulary, rows] = {}
                for depth in (ROOT, *plan.depths):
                    batches = max(1, min(64, 512 // rows)) if depth else 1
                    begun = [
                        prefixes(lists, rows, depth, np.random.default_rng([depth, i]))
                        for i in range(batches)
                    ]
                    times = _one_depth(tries, log_probs, begun, plan.repetitions)
                    found[n, vocabulary, rows][depth] = times
                console.print(f"steps: {n} descriptions, V={vocabulary}, R={rows} done")
    return found


@torch.inference_mode()
def _one_depth(
    tries: Tries, log_probs: torch.Tensor, begun: list[list[list[int]]], repetitions: int
) -> dict[str, Times]:
    """Seconds a step, over batches of prefixes of one length."""
    from transformers import PrefixConstrainedLogitsProcessor

    depth = len(begun[0][0])
    processor = PrefixConstrainedLogitsProcessor(tries.allowed, num_beams=1)
    ids = [torch.tensor([[descriptions.BOS, *tokens] for tokens in batch]) for batch in begun]
    nodes = [[_node(tries.root, tokens) for tokens in batch] for batch in begun]
    steps: dict[str, list[Callable[[], object]]] = {
        DICT: [partial(dict_step, x, log_probs) for x in nodes],
        HF: [partial(processor, x, log_probs) for x in ids],
    }
    torch._dynamo.reset()  # or a call would try the shapes of other sizes first
    compiled = static_like.compiled()
    if depth == ROOT:
        steps[OURS] = [partial(trie_root, tries.ours, log_probs)]
        steps[EAGER] = [partial(static_like.start, log_probs, tries.static.start_mask)]
        if compiled:
            steps[COMPILED] = [partial(compiled.start, log_probs, tries.static.start_mask)]
    else:
        index, width = tries.static, tries.static.widest[depth]
        ours = [np.array([tries.ours.walk(tokens) for tokens in batch]) for batch in begun]
        static = [
            torch.tensor([static_like.state_after(index, np.array(tokens)) for tokens in batch])
            for batch in begun
        ]
        steps[OURS] = [partial(trie_step, tries.ours, log_probs, x) for x in ours]
        ways = {EAGER: static_like.step} | ({COMPILED: compiled.step} if compiled else {})
        for name, way in ways.items():
            steps[name] = [
                partial(way, log_probs, x, index.transitions, index.pointer, width) for x in static
            ]
    _check(tries, {name: calls[0]() for name, calls in steps.items()}, begun[0])
    if depth != ROOT:
        alone = {EAGER: static_like.expand} | ({COMPILED: compiled.expand} if compiled else {})
        steps[ALONE + OURS] = [partial(tries.ours.expand, x) for x in ours]
        for name, way in alone.items():
            steps[ALONE + name] = [
                partial(way, x, index.transitions, index.pointer, width) for x in static
            ]
    sweeps = {name: partial(_sweep, calls) for name, calls in steps.items()}
    times = interleaved(sweeps, repetitions)
    return {name: times[name] / len(steps[name]) for name in times}


def _sweep(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _node(node: Node, tokens: Sequence[int]) -> Node:
    for token in tokens:
        node = node[token]
    return node


def _check(tries: Tries, found: dict[str, Any], begun: list[list[int]]) -> None:
    """All ways give every row the same tokens, log-probabilities, and states that go on alike."""
    trie, index = tries.ours, tries.static
    row = trie.expand(np.array([trie.walk(tokens) for tokens in begun])).row
    ours_token, ours_state, ours_score = found[OURS]
    if begun[0] == []:
        ours_token = ours_token.numpy()
        ours_state = np.arange(ours_state.start, ours_state.stop)
    for i, tokens in enumerate(begun):
        mine = slice(None) if not tokens else row == i
        order = np.argsort(ours_token[mine])
        token, state = ours_token[mine][order], ours_state[mine][order]
        score = np.asarray(ours_score[i] if not tokens else ours_score[mine])[order]
        for name in (EAGER, COMPILED):
            if name not in found:
                continue
            if tokens:
                scores, its_tokens, its_states = (x[i].numpy() for x in found[name])
                real = np.isfinite(scores)
                its_token, its_state, its_score = its_tokens[real], its_states[real], scores[real]
            else:
                its_token = np.flatnonzero(np.isfinite(found[name][i].numpy()))
                its_score, its_state = found[name][i].numpy()[its_token], its_token + 1
            assert np.array_equal(token, its_token)
            assert np.array_equal(score, its_score)
            for a, b, t in list(zip(state, its_state, token, strict=True))[:20]:
                after = index.transitions[int(index.pointer[b]) : int(index.pointer[b + 1]), 0]
                goes_on = trie.token[trie.children(int(a))].tolist()
                assert int(b) == 0 or t == END or after.tolist() == (goes_on or [END])
        its_tokens, _, its_score = found[DICT][i]
        by = np.argsort(its_tokens)
        assert np.array_equal(token, np.array(its_tokens)[by])
        assert np.array_equal(score, its_score[by])
        masked = found[HF][i].numpy()
        assert np.array_equal(token, np.flatnonzero(np.isfinite(masked)))
        assert np.array_equal(score, masked[token])


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
                *(shown(ratio(depths, way), 1) for ratio in (_at_root, _below)),
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
                    shown(_below(depths, ALONE + way, ALONE + OURS), 1),
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


def _at_root(depths: dict[int, dict[str, Times]], way: str) -> Times:
    return depths[ROOT][way] / depths[ROOT][OURS]


def _below(depths: dict[int, dict[str, Times]], way: str, base: str = OURS) -> Times:
    """The sum over depths, so that each depth is met once, over ours."""
    its, ours = (
        np.sum([times[w] for depth, times in depths.items() if depth != ROOT], axis=0)
        for w in (way, base)
    )
    ratio: Times = its / ours
    return ratio


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
        below, root = least(rows, static, _below), least(rows, static, _at_root)
        ratios[f"step_vs_static_like_R{rows}"] = below
        ratios[f"step_vs_static_like_root_R{rows}"] = root
        ratios[f"step_vs_static_compiled_R{rows}"] = least(rows, (COMPILED,), _below)
        ratios[f"step_vs_static_compiled_root_R{rows}"] = least(rows, (COMPILED,), _at_root)
        ratios[f"trie_alone_vs_static_like_R{rows}"] = min(
            float(np.median(_below(depths, ALONE + way, ALONE + OURS)))
            for (_, _, r), depths in steps.items()
            for way in static
            if r == rows and ALONE + way in depths[1]
        )
        ratios[f"step_vs_hf_dict_R{rows}"] = least(rows, (HF,), _below)
        ratios[f"step_vs_dict_nodes_R{rows}"] = least(rows, (DICT,), _below)
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
