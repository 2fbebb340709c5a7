"""Draws the radix trie of docs/decoding.md from a real one.

python examples/draw_trie.py [docs/radix-trie.svg]
"""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from serendip.planning.trie import START, DescriptionTrie

DESCRIPTIONS = (
    "bike hill climbs at dawn",
    "bike track",
    "sea kayak",
    "sea kayak racing",
    "sea salt",
)
WORDS = ("<end>", *sorted({word for text in DESCRIPTIONS for word in text.split()}))
END = 0


def build() -> DescriptionTrie:
    """The trie of the five descriptions, a token a word, node IDs 10 to 14."""
    tokens = [[WORDS.index(word) for word in text.split()] for text in DESCRIPTIONS]
    return DescriptionTrie.build(tokens, range(10, 15), END, texts=DESCRIPTIONS)


def draw(trie: DescriptionTrie, path: str) -> None:
    """Writes an SVG: states that ask the model as circles, complete descriptions as boxes."""
    figure = Figure(figsize=(9.4, 3.4))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.4, 11.2)
    axes.set_ylim(-0.7, len(trie) - 0.3)

    def place(state: int, x: float) -> tuple[float, float]:
        return x, len(trie) - 1 - (trie.lo[state] + trie.hi[state] - 1) / 2

    def visit(state: int, x: float) -> None:
        here = place(state, x)
        below = trie.children(state)
        if below.start == below.stop:
            rank = int(trie.lo[state])
            axes.annotate(
                f" {trie.describe(int(trie.node_of_rank[rank]))}   rank {rank}, node "
                f"{trie.node_of_rank[rank]} ",
                here, va="center", bbox={"boxstyle": "round", "fc": "#e8f0e4", "ec": "#5a7a4a"},
            )  # fmt: skip
            return
        for child in range(below.start, below.stop):
            run = trie.runs(np.array([child]))
            label = " ".join(WORDS[t] for t in run.token[0, : run.length[0]])
            single = trie.hi[child] - trie.lo[child] == 1
            end = int(run.end[0])
            there = place(end, x + 2.9)
            style = {"color": "#999999", "linestyle": "--"} if single else {"color": "#222222"}
            axes.plot([here[0], there[0]], [here[1], there[1]], zorder=0, **style)
            axes.text(
                here[0] + 0.55 * (there[0] - here[0]), here[1] + 0.55 * (there[1] - here[1]) + 0.09,
                label, ha="center", color="#444444" if single else "#000000", fontsize=9,
            )  # fmt: skip
            visit(end, x + 2.9)
        name = "start" if state == START else str(state)
        axes.text(
            *here, name, ha="center", va="center",
            bbox={"boxstyle": "circle", "fc": "#f7e3c5", "ec": "#a0742c"},
        )  # fmt: skip

    visit(START, 0)
    # Text as text, and nothing random or dated: the same file every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trie"}):
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "docs/radix-trie.svg"
    draw(build(), target)
    print(f"wrote {target}")
