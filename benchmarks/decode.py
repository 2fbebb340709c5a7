"""An answer under the trie: this engine against a decoder that masks the whole vocabulary.

    ./build.sh bench decode [--quick] [--repetitions 5]

One small language model with random weights (d = 512, 8 layers; its head is scaled so that the
distribution over next tokens is as uneven as a trained model's), 100,000 made-up descriptions of
real SentencePiece tokens, vocabularies of 32k and 262k. *Full head* is the way of the field: every
beam is a row with a cache of its own, every step computes all logits, masks what the trie does not
allow, and takes one token. Both use the renormalized score and the same number of beams. Times are
CPU seconds on one thread, taken in turns; the answer is timed after the prompt was read.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from common.descriptions import END, LARGE, PIECES, STYLES, token_lists
from common.timing import shown
from decoding.parts import BEAMS, build_model, head_costs, passes, prefix, sharing
from peers.full_head import FullHead
from peers.hf_generate import generate_with_dict_trie
from rich.table import Table

from serendip.planning import layout
from serendip.planning.decode import decode
from serendip.planning.head import Head
from serendip.planning.search import Search, TrieHead, search
from serendip.planning.session import TorchSession
from serendip.planning.trie import DescriptionTrie
from serendip.progress import console

PROMPT = 96
REASONING = 32
MANY = 256  # rows; their answers are timed twice, and nothing but the answers
SINGLES = 6  # prompts that the time of one row is the mean of
AT_ONCE = 64  # prompts that the full head answers side by side: more would not fit the memory


@dataclass(frozen=True)
class Setting:
    """A model, a trie, and how many prompts are answered side by side."""

    model: Any
    head: Head
    trie: DescriptionTrie
    trie_head: TrieHead
    rows: int

    def batches(self, at_once: int = 10**9) -> list[dict[str, torch.Tensor]]:
        """Random prompts; several batches of one row, since answers differ in length."""
        rng = np.random.default_rng(self.rows)
        many = [
            torch.from_numpy(rng.integers(4, PIECES, (self.rows, PROMPT)))
            for _ in range(SINGLES if self.rows == 1 else 1)
        ]
        many = [part for ids in many for part in ids.split(at_once)]
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in many]


def engine(setting: Setting, how: Search, *, reasoning: int | None = None) -> Callable[[], Any]:
    """The engine's answer; with ``reasoning``, the whole call instead."""

    def one(batch: dict[str, torch.Tensor]) -> Any:
        session = TorchSession(setting.model, setting.head)
        views = [setting.trie.view()] * setting.rows
        began = time.process_time()
        if reasoning is not None:
            # No token opens the answer by itself: it is forced after as many tokens.
            decoded = decode(
                session, batch, setting.trie_head, views, how,
                opening=[3], ends=frozenset([END]), max_reasoning=reasoning,
            )  # fmt: skip
            return time.process_time() - began, [d.answer for d in decoded]
        with torch.inference_mode():
            hidden = session.prefill(batch)
        tips = np.full(setting.rows, session.slots - 1)
        began = time.process_time()
        found = search(session, hidden, tips, setting.trie_head, views, how)
        return time.process_time() - began, found

    return lambda: over(setting.rows, setting.batches(), one)


def full_head(setting: Setting, beams: int, *, reasoning: int | None = None) -> Callable[[], Any]:
    """The full head's answer; with ``reasoning``, the whole call instead."""
    peer = FullHead(setting.model, setting.trie, END, beams)

    def one(batch: dict[str, torch.Tensor]) -> Any:
        began = time.process_time()
        state = peer.prefill(batch)
        if reasoning is not None:
            state = peer.write(state, reasoning, opening=3)
        else:
            began = time.process_time()
        found = peer.answer(state)
        return time.process_time() - began, found

    return lambda: over(setting.rows, setting.batches(AT_ONCE), one)


def over(rows: int, batches: list[dict[str, torch.Tensor]], one: Callable[..., Any]) -> Any:
    """Mean seconds of so many rows, and what was found in all."""
    seconds, found = zip(*map(one, batches), strict=True)
    every = sum(len(batch["input_ids"]) for batch in batches)
    return sum(seconds) * rows / every, [answer for answers in found for answer in answers]


def in_turns(calls: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, Any]:
    """Seconds float64[repetitions] and last result of each call."""
    names = list(calls)
    results = {name: calls[name]()[1] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repetitions):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(calls[name]()[0])
            gc.collect()
    return {name: (np.array(seconds[name]), results[name]) for name in names}


def check(setting: Setting, ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Raises if a description has two scores; the share of the peer's k that we found as well."""
    same = total = 0
    for outcome, beam in zip(ours, theirs, strict=True):
        scores = {f.rank: f.score for f in outcome.found}
        for rank, score in beam:
            total += 1
            if rank in scores:
                same += 1
                assert abs(scores[rank] - score) < 2e-3, (rank, scores[rank], score)
    return same / total


def recall(exact: Sequence[Any], found: Sequence[Sequence[int]]) -> float:
    """The share of the true k best that is among ``found``."""
    hits = [len({f.rank for f in e.found} & set(f)) for e, f in zip(exact, found, strict=True)]
    return sum(hits) / sum(len(e.found) for e in exact)


def answers(quick: bool, repetitions: int) -> tuple[list[Table], dict[str, Any]]:
    """The tables of answers and of whole calls, and their figures by rows and vocabulary."""
    answered = Table(
        "the answer, 8 beams", "full head, ms", "engine, ms", "ratio", "best-first", "greedy",
        "of the true 8", "exact",
    )  # fmt: skip
    whole = Table("with prompt and 32 reasoning tokens", "full head, ms", "engine, ms", "ratio")
    figures: dict[str, Any] = {}
    count = 1_000 if quick else 100_000
    for vocabulary in (PIECES,) if quick else (PIECES, LARGE):
        model = build_model(vocabulary, quick=quick)
        head = Head.of(model)
        trie = DescriptionTrie.build(
            tokens := token_lists("words", count, vocabulary), range(len(tokens)), END
        )
        trie_head = TrieHead(head, trie)
        for rows in (1, 32) if quick else (1, 32, MANY):
            setting = Setting(model, head, trie, trie_head, rows)
            key = f"R{rows}_V{'262k' if vocabulary == LARGE else '32k'}"
            figures[key] = one_setting(setting, 2 if rows == MANY else repetitions)
            add_rows(answered, whole, key, figures[key])
            console.print(f"answers: {key} done")
        if not quick and vocabulary == PIECES:
            figures["hf_generate"] = hf_generate(Setting(model, head, trie, trie_head, 1), tokens)
        del model, head, trie_head
        gc.collect()
    return [answered, whole], figures


def one_setting(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Seconds, and ratios of medians, of the two decoders; of MANY rows the answer alone."""
    beam, best = Search(k=BEAMS, beams=BEAMS), Search(k=BEAMS, method="best_first")
    calls = {
        "beam": engine(setting, beam),
        "best_first": engine(setting, best),
        "full_head": full_head(setting, BEAMS),
    }
    if setting.rows != MANY:
        calls |= {
            "greedy": engine(setting, Search(k=1, method="greedy")),
            "full_head_greedy": full_head(setting, 1),
            "whole": engine(setting, beam, reasoning=REASONING),
            "full_head_whole": full_head(setting, BEAMS, reasoning=REASONING),
        }
    runs = in_turns(calls, repetitions)
    beams, exact, theirs = (runs[name][1] for name in ("beam", "best_first", "full_head"))
    check(setting, beams, theirs)
    seconds = {name: run[0] for name, run in runs.items()}
    pairs = {
        "answer": ("full_head", "beam"),
        "best_first": ("full_head", "best_first"),
        "greedy": ("full_head_greedy", "greedy"),
        "whole": ("full_head_whole", "whole"),
    }
    ratios = {
        name: float(np.median(seconds[theirs]) / np.median(seconds[ours]))
        for name, (theirs, ours) in pairs.items()
        if ours in seconds
    }
    return ratios | {
        "seconds": {name: times.round(5).tolist() for name, times in seconds.items()},
        "recall_beam": recall(exact, [[f.rank for f in o.found] for o in beams]),
        "recall_full_head": recall(exact, [[r for r, _ in b] for b in theirs]),
        "exact_beams": float(np.mean([o.exact for o in beams])),
    }


def add_rows(answered: Table, whole: Table, key: str, figures: dict[str, Any]) -> None:
    """One setting's rows in the two tables."""

    def times(*names: str) -> list[str]:
        return [shown(np.array(figures["seconds"][name]), 1e-3) for name in names]

    name = key.replace("_", ", ")
    answered.add_row(
        name,
        *times("full_head", "beam"),
        *(
            f"{figures[n]:.1f}x" if n in figures else "-"
            for n in ("answer", "best_first", "greedy")
        ),
        f"{figures['recall_full_head']:.2f}, {figures['recall_beam']:.2f}",
        f"{figures['exact_beams']:.2f}",
    )
    if "whole" in figures:
        whole.add_row(name, *times("full_head_whole", "whole"), f"{figures['whole']:.1f}x")


def hf_generate(setting: Setting, tokens: Any) -> dict[str, float]:
    """Seconds of one whole answer by ``generate`` with a dict trie, prompt included, and ours."""
    prompts = [batch["input_ids"] for batch in setting.batches()]
    theirs = generate_with_dict_trie(setting.model, tokens, END, BEAMS)
    ours = engine(setting, Search(k=BEAMS, beams=BEAMS, score="full"), reasoning=0)
    both: dict[str, list[float]] = {"hf": [], "ours": []}
    for _ in range(3):
        began = time.process_time()
        for ids in prompts:
            theirs(ids)
        both["hf"].append((time.process_time() - began) / len(prompts))
        both["ours"].append(ours()[0])
    return {name: float(np.median(v)) for name, v in both.items()}


def a_million(repetitions: int) -> tuple[Table, dict[str, float]]:
    """A million descriptions from token lists to answers, in a process of its own size."""
    tokens = token_lists("words", 1_000_000)
    model = build_model(PIECES, quick=False)
    head = Head.of(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    trie = DescriptionTrie.build(tokens, np.arange(len(tokens), dtype=np.int32), END)
    built = time.process_time() - began
    trie_head = TrieHead(head, trie)
    figures: dict[str, float] = {"build_cpu_s": built, "trie_mb": trie.nbytes / 1e6}
    for rows in (1, 32):
        run = engine(Setting(model, head, trie, trie_head, rows), Search(k=BEAMS, beams=BEAMS))
        seconds = [run()[0] for _ in range(repetitions)]
        figures[f"answer_s_R{rows}"] = float(np.median(seconds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures |= {"peak_mb": peak / 1e3, "peak_above_model_mb": (peak - before) / 1e3}
    table = Table("1,000,000 descriptions", "")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3g}" if value < 100 else f"{value:,.0f}")
    return table, figures


def main() -> None:
    """Prints the tables, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    quick, repetitions = options.quick, 2 if options.quick else options.repetitions
    torch.set_num_threads(1)
    million: dict[str, float] = {}
    if not quick:  # first, so that the peak of memory is its own
        table, million = a_million(repetitions)
        console.print(table)
    styles = Table("style, N = 1,000" if quick else "style, N = 100,000", "tokens", "passes")
    counted = {}
    for style in STYLES:
        tokens = token_lists(style, 1_000 if quick else 100_000)
        trie = DescriptionTrie.build(tokens, range(len(tokens)), END)
        by_token, ours = passes(trie)
        counted[style] = {"token_by_token": by_token, "engine": ours}
        styles.add_row(style, f"{by_token:.1f}", f"{ours:.2f}")
    console.print(styles)
    console.print(head_costs(quick, repetitions))
    table, shared = sharing(quick, repetitions)
    console.print(table)
    worth = layout._WORTH_SHARING
    table, prefixes = prefix(quick, repetitions)
    layout._WORTH_SHARING = worth
    console.print(table)
    tables, figures = answers(quick, repetitions)
    console.print(*tables)
    if "hf_generate" in figures:
        hf = figures["hf_generate"]
        console.print(
            f"generate() with a dict trie, 8 beams, one row, V=32k, prompt included: "
            f"{hf['hf']:.3f} s; the engine at the same (full) score: {hf['ours']:.3f} s"
        )
    ratios = {
        f"vs_full_head_{key}": figures[key]["answer"] if key in figures else None
        for key in (f"R{r}_V{v}" for r in (1, 32, MANY) for v in ("32k", "262k"))
    }
    if "hf_generate" in figures:
        ratios["vs_hf_generate_R1_V32k"] = (
            figures["hf_generate"]["hf"] / figures["hf_generate"]["ours"]
        )
    print(
        json.dumps(
            {
                "bench": "decode",
                "conditions": {
                    "quick": quick,
                    "repetitions": repetitions,
                    "beams": BEAMS,
                    "prompt_tokens": PROMPT,
                    "reasoning_tokens": REASONING,
                    "threads": 1,
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "clock": "CPU seconds",
                },
                "figures": {
                    "passes_per_description": counted["words"]["engine"],
                    "passes": counted,
                    "million": million,
                    "tree_vs_rows": shared,
                    "shared_prefix": prefixes,
                    "answers": figures,
                },
                "ratios": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()
