"""Grammar engines, each given all descriptions as alternatives; runs in the peers' environment.

    python -m peers.grammars build xgrammar|llguidance|outlines-core N
    python -m peers.grammars step N REPETITIONS ROWS...

Prints one JSON object. They work on text: every way to spell a description in pieces is allowed,
where a trie of tokens has the tokenizer's own alone.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import descriptions
from common.descriptions import END, PIECES
from common.timing import Times, interleaved, keep_memory
from decoding.steps import prefixes, trie_root, trie_step

from serendip.planning.embedded import BOS
from serendip.planning.trie import DescriptionTrie


def xgrammar(texts: list[str], info: Any) -> object:
    """Compiles a grammar of alternatives and fills a first mask; one thread, no cache."""
    import xgrammar as xgr

    compiled = _xgrammar_grammar(texts, info)
    xgr.GrammarMatcher(compiled).fill_next_token_bitmask(xgr.allocate_token_bitmask(1, PIECES))
    return compiled


def llguidance(texts: list[str], tokenizer: Any) -> object:
    """Compiles a Lark grammar of alternatives and computes a first mask."""
    import llguidance

    grammar = "start: " + " | ".join(json.dumps(text) for text in texts)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise RuntimeError(matcher.get_error())
    matcher.compute_bitmask()
    return matcher


def outlines_core(texts: list[str], vocabulary: Any) -> object:
    """Compiles a regular expression of alternatives."""
    from outlines_core import Index

    return Index("|".join(re.escape(text) for text in texts), vocabulary)


def measure_build(peer: str, n: int) -> dict[str, Any]:
    """CPU seconds and memory from texts to something that gives masks."""
    texts = descriptions.texts("words", n)
    build, prepare = BUILDS[peer]
    tokenizer = prepare()  # what it makes of the tokenizer is not part of a build
    build(["a", "b"], tokenizer)
    before = _resident_mb("VmRSS")
    began, wall = time.process_time(), time.perf_counter()
    kept = build(texts, tokenizer)
    cpu_s, wall_s = time.process_time() - began, time.perf_counter() - wall
    figures = {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "kept_mb": _resident_mb("VmRSS") - before,
        "peak_mb": _resident_mb("VmHWM") - before,
    }
    del kept
    return figures


def measure_step(n: int, repetitions: int, sizes: list[int]) -> dict[str, Any]:
    """xgrammar's mask of R rows, filled and applied, and our expansion of the same rows."""
    keep_memory()
    lists = descriptions.token_lists("words", n)
    trie = DescriptionTrie.build(lists, np.arange(n, dtype=np.int32), END)
    compiled = _xgrammar_grammar(descriptions.texts("words", n), _xgrammar_tokenizer())
    found: dict[str, Any] = {}
    for rows in sizes:
        for depth in range(4):
            begun = prefixes(lists, rows, depth, np.random.default_rng(depth))
            times = _steps(trie, compiled, begun, repetitions)
            found[f"R{rows} depth {depth}"] = {name: list(t) for name, t in times.items()}
    return found


def _steps(
    trie: DescriptionTrie, compiled: Any, begun: list[list[int]], repetitions: int
) -> dict[str, Times]:
    import xgrammar as xgr

    log_probs = torch.randn(len(begun), PIECES, generator=torch.Generator().manual_seed(0))
    masked = log_probs.clone()
    states = np.array([trie.walk(tokens) for tokens in begun])
    matchers = [xgr.GrammarMatcher(compiled) for _ in begun]
    for matcher, tokens in zip(matchers, begun, strict=True):
        assert all(matcher.accept_token(token) for token in tokens)
    mask = xgr.allocate_token_bitmask(len(begun), PIECES)
    batch = xgr.BatchGrammarMatcher(max_threads=1)

    def fill_and_apply() -> None:
        batch.batch_fill_next_token_bitmask(matchers, mask)
        xgr.apply_token_bitmask_inplace(masked, mask)

    def ours() -> object:
        return trie_step(trie, log_probs, states) if begun[0] else trie_root(trie, log_probs)

    fill_and_apply()
    edges = trie.expand(states)
    assert torch.isfinite(masked[torch.from_numpy(edges.row), edges.token]).all()
    return interleaved({"ours": ours, "xgrammar": fill_and_apply}, repetitions)


def _xgrammar_grammar(texts: list[str], info: Any) -> Any:
    import xgrammar as xgr

    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    return compiler.compile_grammar("root ::= " + " | ".join(json.dumps(text) for text in texts))


def _xgrammar_tokenizer() -> Any:
    import xgrammar as xgr

    return xgr.TokenizerInfo(
        descriptions.piece_bytes(), vocab_size=PIECES, stop_token_ids=[END], add_prefix_space=False
    )


def _llguidance_tokenizer() -> Any:
    import llguidance

    class Pieces:
        eos_token_id = END
        bos_token_id = BOS
        tokens = descriptions.piece_bytes()
        special_token_ids = (0, 1, 2, 3)

        def __call__(self, text: str) -> list[int]:
            ids: list[int] = descriptions.tokenizer().encode(text)
            return ids

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Pieces()))


def _outlines_vocabulary() -> Any:
    from outlines_core import Vocabulary

    ids: dict[bytes, list[int]] = {}
    for i, written in enumerate(descriptions.piece_bytes()):
        if written:
            ids.setdefault(written, []).append(i)
    return Vocabulary(END, ids)


BUILDS = {
    "xgrammar": (xgrammar, _xgrammar_tokenizer),
    "llguidance": (llguidance, _llguidance_tokenizer),
    "outlines-core": (outlines_core, _outlines_vocabulary),
}


def _resident_mb(key: str) -> float:
    """VmRSS, or VmHWM, its highest so far: of this process alone, as getrusage's is not."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, *words = sys.argv[1:]
    if verb == "build":
        print(json.dumps(measure_build(words[0], int(words[1]))))
    else:
        print(json.dumps(measure_step(int(words[0]), int(words[1]), [int(w) for w in words[2:]])))
