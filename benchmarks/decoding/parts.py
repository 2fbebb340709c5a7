"""What the engine is made of, part by part, and the small language model that it is timed on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from common.descriptions import END, LARGE, PIECES, token_lists
from common.timing import shown
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from serendip.planning import layout
from serendip.planning.head import Head
from serendip.planning.session import TorchSession
from serendip.planning.trie import DescriptionTrie

BEAMS = 8
LOGIT_SPREAD = 2.5  # standard deviation of the logits of a state


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


def passes(trie: DescriptionTrie, sample: int = 2000) -> tuple[float, float]:
    """Model passes a description after the prompt: token by token, and as the engine does."""
    tokens, ours = [], []
    for rank in np.random.default_rng(0).integers(0, len(trie), sample):
        path = np.array(trie.path(int(rank)))
        tokens.append(len(trie.tokens_of(int(rank))) - 1)
        asks = (trie.degree(path) > 1) & (trie.hi[path] - trie.lo[path] > 1)
        ours.append(int(asks.sum()))
    return float(np.mean(tokens)), float(np.mean(ours))


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
                layout._WORTH_SHARING = least
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
