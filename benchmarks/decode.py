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
from peers.full_head import FullHead
from peers.hf_generate import generate_with_dict_trie
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from serendip.planning import session as session_module
from serendip.planning.decode import decode
from serendip.planning.head import Head
from serendip.planning.search import Search, TrieHead, search
from serendip.planning.session import TorchSession
from serendip.planning.trie import DescriptionTrie
from serendip.progress import console

BEAMS = 8
PROMPT = 96
REASONING = 32
SINGLES = 6  # prompts that the time of one row is the mean of
LOGIT_SPREAD = 2.5  # standard deviation of the logits of a state


@dataclass(frozen=True)
class Setting:
    """A model, a trie, and how many prompts are answered side by side."""

    model: Any
    head: Head
    trie: DescriptionTrie
    trie_head: TrieHead
    rows: int

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """Random prompts; several batches of one row, since answers differ in length."""
        rng = np.random.default_rng(self.rows)
        many = [
            torch.from_numpy(rng.integers(4, PIECES, (self.rows, PROMPT)))
            for _ in range(SINGLES if self.rows == 1 else 1)
        ]
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in many]


def build_model(vocabulary: int, *, quick: bool) -> Any:
    """The small language model, in float32, its head untied."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128 if quick else 512,
            intermediate_size=352 if quick else 1408,
            num_hidden_layers=2 if quick else 8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.arange(4, 68)[None]).last_hidden_state[0]
        spread = float((hidden @ model.lm_head.weight[:4096].T).std())
        model.lm_head.weight.data *= LOGIT_SPREAD / spread
    return model


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

    return lambda: over(setting.batches(), one)


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

    return lambda: over(setting.batches(), one)


def over(batches: list[dict[str, torch.Tensor]], one: Callable[..., Any]) -> Any:
    """Mean seconds a batch, and what was found in all."""
    seconds, found = zip(*map(one, batches), strict=True)
    return sum(seconds) / len(batches), [answer for answers in found for answer in answers]


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


def passes(trie: DescriptionTrie, sample: int = 2000) -> tuple[float, float]:
    """Model passes a description after the prompt: token by token, and as the engine does."""
    tokens, ours = [], []
    for rank in np.random.default_rng(0).integers(0, len(trie), sample):
        path = np.array(trie.path(int(rank)))
        tokens.append(len(trie.tokens_of(int(rank))) - 1)
        asks = (trie.degree(path) > 1) & (trie.hi[path] - trie.lo[path] > 1)
        ours.append(int(asks.sum()))
    return float(np.mean(tokens)), float(np.mean(ours))


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
        for rows in (1, 32):
            setting = Setting(model, head, trie, trie_head, rows)
            beam, best = Search(k=BEAMS, beams=BEAMS), Search(k=BEAMS, method="best_first")
            runs = in_turns(
                {
                    "beam": engine(setting, beam),
                    "best_first": engine(setting, best),
                    "full_head": full_head(setting, BEAMS),
                    "greedy": engine(setting, Search(k=1, method="greedy")),
                    "full_head_greedy": full_head(setting, 1),
                    "whole": engine(setting, beam, reasoning=REASONING),
                    "full_head_whole": full_head(setting, BEAMS, reasoning=REASONING),
                },
                repetitions,
            )
            s = {name: seconds for name, (seconds, _) in runs.items()}
            exact = runs["best_first"][1]
            theirs = runs["full_head"][1]
            check(setting, runs["beam"][1], theirs)
            key = f"R{rows}_V{'262k' if vocabulary == LARGE else '32k'}"
            median = {name: float(np.median(v)) for name, v in s.items()}
            figures[key] = {
                "seconds": {name: v.round(5).tolist() for name, v in s.items()},
                "answer": median["full_head"] / median["beam"],
                "best_first": median["full_head"] / median["best_first"],
                "greedy": median["full_head_greedy"] / median["greedy"],
                "whole": median["full_head_whole"] / median["whole"],
                "recall_beam": recall(exact, [[f.rank for f in o.found] for o in runs["beam"][1]]),
                "recall_full_head": recall(exact, [[r for r, _ in b] for b in theirs]),
                "exact_beams": float(np.mean([o.exact for o in runs["beam"][1]])),
            }
            f = figures[key]
            name = key.replace("_", ", ")
            console.print(f"answers: {name} done")
            answered.add_row(
                name,
                *(shown(s[n], 1e-3) for n in ("full_head", "beam")),
                *(f"{f[n]:.1f}x" for n in ("answer", "best_first", "greedy")),
                f"{f['recall_full_head']:.2f}, {f['recall_beam']:.2f}",
                f"{f['exact_beams']:.2f}",
            )
            whole.add_row(
                name,
                *(shown(s[n], 1e-3) for n in ("full_head_whole", "whole")),
                f"{f['whole']:.1f}x",
            )
        if not quick and vocabulary == PIECES:
            figures["hf_generate"] = hf_generate(Setting(model, head, trie, trie_head, 1), tokens)
        del model, head, trie_head
        gc.collect()
    return [answered, whole], figures


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


def head_costs(quick: bool, repetitions: int) -> Table:
    """What the logits of one step cost: all of them, and the allowed ones alone."""
    table = Table("one step's logits", "full head, ms", "allowed only, ms", "ratio", "edges")
    for vocabulary in (PIECES,) if quick else (PIECES, LARGE):
        head = Head(torch.randn(vocabulary, 128 if quick else 512))
        trie = DescriptionTrie.build(
            tokens := token_lists("words", 1_000 if quick else 100_000, vocabulary),
            range(len(tokens)), END,
        )  # fmt: skip
        for rows in (1, 32, 256):
            rng = np.random.default_rng(rows)
            paths = [trie.path(int(r)) for r in rng.integers(0, len(trie), 20 * rows)]
            states = np.array([p[0] for p in paths if trie.degree(np.array(p[:1]))[0] > 1][:rows])
            hidden = torch.randn(len(states), head.weight.shape[1])
            edges = trie.expand(states)
            times: dict[str, list[float]] = {"full": [], "allowed": []}
            for _ in range(repetitions + 1):
                began = time.process_time()
                head.full(hidden)
                times["full"].append(time.process_time() - began)
                began = time.process_time()
                head.edges(hidden, edges.row, edges.token)
                times["allowed"].append(time.process_time() - began)
            full, allowed = (np.array(times[n][1:]) for n in ("full", "allowed"))
            table.add_row(
                f"R={rows}, V={vocabulary:,}", shown(full, 1e-3), shown(allowed, 1e-3),
                f"{np.median(full) / np.median(allowed):.0f}x", f"{len(edges.row):,}",
            )  # fmt: skip
    return table


def sharing(quick: bool, repetitions: int) -> tuple[Table, dict[str, float]]:
    """One pass of 8 beams with 3 tokens each: branches of one row, or rows of their own."""
    model = build_model(PIECES, quick=quick)
    head = Head.of(model)
    table = Table(
        "8 beams x 3 tokens, one pass", "rows, caches copied, ms", "one tree, ms", "ratio"
    )
    figures = {}
    for prompt in (96, 512) if quick else (96, 512, 1536):
        ids = torch.from_numpy(np.random.default_rng(0).integers(4, PIECES, (1, prompt)))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        times: dict[str, list[float]] = {"rows": [], "tree": []}
        for _ in range(repetitions + 1):
            with torch.inference_mode():
                session = TorchSession(model, head)
                session.prefill(batch)
                token = np.arange(4, 4 + 3 * BEAMS)[None]
                parent = np.arange(session.slots - 1, session.slots - 1 + 3 * BEAMS)[None]
                parent[0, ::3] = session.slots - 1
                # The first pass makes room; the second is what every later one is like.
                session.extend(token, parent)
                parent = parent + 3 * BEAMS
                began = time.process_time()
                session.extend(token, parent)
                times["tree"].append(time.process_time() - began)
                cache = DynamicCache()
                model.model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache.reorder_cache(torch.zeros(BEAMS, dtype=torch.long))
                began = time.process_time()
                cache.reorder_cache(torch.arange(BEAMS).roll(1))
                model.model(
                    input_ids=torch.from_numpy(token).view(BEAMS, 3),
                    past_key_values=cache,
                    use_cache=True,
                )
                times["rows"].append(time.process_time() - began)
        rows, tree = (np.array(times[n][1:]) for n in ("rows", "tree"))
        ratio = float(np.median(rows) / np.median(tree))
        figures[f"prompt_{prompt}"] = ratio
        table.add_row(
            f"prompt of {prompt} tokens", shown(rows, 1e-3), shown(tree, 1e-3), f"{ratio:.1f}x"
        )
    return table, figures


def prefix(quick: bool, repetitions: int) -> tuple[Table, dict[str, float]]:
    """Reading 32 prompts of 96 tokens of which all have the first ones in common."""
    model = build_model(PIECES, quick=quick)
    head = Head.of(model)
    table = Table("prefill of 32 prompts, 96 tokens", "each, ms", "beginning once, ms", "ratio")
    figures = {}
    for common in (16, 48, 80):
        ids = torch.from_numpy(np.random.default_rng(0).integers(4, PIECES, (32, 96)))
        ids[:, :common] = ids[0, :common]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        times: dict[str, list[float]] = {"each": [], "once": []}
        for _ in range(repetitions + 1):
            for name, least in (("each", 10**9), ("once", 1)):
                session_module._WORTH_SHARING = least
                session = TorchSession(model, head)
                began = time.process_time()
                with torch.inference_mode():
                    session.prefill(batch)
                times[name].append(time.process_time() - began)
        each, once = (np.array(times[n][1:]) for n in ("each", "once"))
        ratio = float(np.median(each) / np.median(once))
        figures[f"common_{common}"] = ratio
        table.add_row(f"{common} in common", shown(each, 1e-3), shown(once, 1e-3), f"{ratio:.2f}x")
    return table, figures


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
    worth = session_module._WORTH_SHARING
    table, prefixes = prefix(quick, repetitions)
    session_module._WORTH_SHARING = worth
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
        for key in ("R1_V32k", "R1_V262k", "R32_V32k", "R32_V262k")
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
