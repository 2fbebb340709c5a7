"""The worked example of docs/decoding.md is what the engine does."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from draw_trie import WORDS, build, draw

from serendip.planning.head import Head
from serendip.planning.layout import NOWHERE
from serendip.planning.search import Search, TrieHead, search

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "decoding.md").read_text()
# The page's table: after these words, the model gives these words these probabilities.
TABLE = {
    "": {"sea": 0.30, "bike": 0.10},
    "sea": {"kayak": 0.40, "salt": 0.10},
    "sea kayak": {"<end>": 0.30, "racing": 0.10},
    "bike": {"hill": 0.20, "track": 0.30},
    "bike hill": {"climbs": 0.90},
    "bike hill climbs": {"at": 0.90},
    "bike hill climbs at": {"dawn": 0.90},
    "bike hill climbs at dawn": {"<end>": 0.90},
    "bike track": {"<end>": 0.90},
    "sea kayak racing": {"<end>": 0.90},
    "sea salt": {"<end>": 0.90},
}


class FromTable:
    """A language model that is a table: hidden states are log-probabilities."""

    def __init__(self):
        # One more token, for what the rest of the vocabulary would have.
        self.head = Head(torch.eye(len(WORDS) + 1, dtype=torch.float64))
        self.slots, self.texts, self.passes = 1, {0: ""}, 0

    def after(self, text):
        given = TABLE.get(text, {})
        p = torch.full((len(WORDS) + 1,), 1e-12, dtype=torch.float64)
        for word, share in given.items():
            p[WORDS.index(word)] = share
        p[-1] = 1 - p[:-1].sum()
        return p.log()

    def extend(self, token, parent):
        self.passes += 1
        out = torch.zeros(1, token.shape[1], len(WORDS) + 1, dtype=torch.float64)
        for q, (t, above) in enumerate(zip(token[0], parent[0], strict=True)):
            if above != NOWHERE:
                text = f"{self.texts[int(above)]} {WORDS[t]}".strip()
                self.texts[self.slots + q] = text
                out[0, q] = self.after(text)
        self.slots += token.shape[1]
        return out

    def reorder(self, rows):
        assert rows.tolist() == [0]


def run(how, view=None):
    trie, session = build(), FromTable()
    (outcome,) = search(
        session, session.after("")[None], np.array([0]), TrieHead(session.head, trie),
        [view or trie.view()], how,
    )  # fmt: skip
    scores = {
        trie.describe(int(trie.node_of_rank[f.rank])): float(np.exp(f.score)) for f in outcome.found
    }
    return scores, session.passes


def table_of(page, heading):
    """Rows of the first table after a heading: description -> numbers."""
    part = page.split(heading, 1)[1]
    rows = re.findall(r"^\| ([a-z ]+?) \| (.+) \|$", part, re.MULTILINE)[:5]
    return {name: [float(n) for n in re.findall(r"\d*\.\d+", cells)] for name, cells in rows}


def test_the_scores_of_the_page_are_the_engine_s():
    shown = table_of(PAGE, "| description | renormalized")
    renormalized, passes = run(Search(k=5))
    assert passes == 1
    assert {name: n[0] for name, n in shown.items()} == pytest.approx(renormalized, abs=5e-4)
    full, _ = run(Search(k=5, score="full"))
    assert {name: n[1] for name, n in shown.items()} == pytest.approx(full, abs=5e-5)
    trie = build()
    without, _ = run(Search(k=5), trie.view(without=[14]))
    assert {name: n[2] for name, n in shown.items() if len(n) > 2} == pytest.approx(
        without, abs=5e-4
    )


def test_the_picture_of_the_page_is_drawn_from_the_trie(tmp_path):
    draw(build(), str(tmp_path / "again.svg"))
    texts = [re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
             for path in (tmp_path / "again.svg", DOCS / "radix-trie.svg")]  # fmt: skip
    assert texts[0] == texts[1] != []
