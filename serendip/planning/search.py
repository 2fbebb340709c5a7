"""Search over the trie: which descriptions a model gives the highest scores, and how high.

Let z be the model's logits after the prompt and the tokens so far, A(s) the tokens that the
*whole* trie allows at state s, and V the vocabulary. The score of a description t_1 .. t_n, its
end token included, is one of

    renormalized:  sum over i of  z[t_i] - log sum_{t in A(s_i)} exp z[t]
    full:          sum over i of  z[t_i] - log sum_{t in V}      exp z[t]

and full = renormalized + sum over i of log (allowed mass at s_i). A view takes descriptions away
and never enters either sum, so a description has one score under every view that keeps it.

Scores only fall along a path, which is why all of this is exact: a state that is left with one
description adds log 1 from there on (renormalized), so the search ends there without a pass; a run
of single children is one pass; and best-first may stop when nothing open scores as high as what
it has. Sampling is best-first over scores perturbed by Gumbel noise, drawn top down (stochastic
beam search, arXiv 1903.06059): k different descriptions, as if drawn one after the other.

Knows no tokenizer and no prompt: hidden states in, ranks of descriptions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from serendip.core import InvalidRequest, SerendipError
from serendip.planning.head import Head, Integers
from serendip.planning.layout import Long
from serendip.planning.reader import Read, Reader
from serendip.planning.session import Session
from serendip.planning.trie import START, DescriptionTrie, Runs
from serendip.planning.views import View, Views

Double = npt.NDArray[np.float64]
Entries = npt.NDArray[Any]

Method = Literal["greedy", "beam", "best_first", "sample"]
Score = Literal["renormalized", "full"]

# An edge of the trie that was reached, or a description that is complete. ``score`` takes the
# edge in, ``mass`` is the part of it that is log allowed mass, ``drawn`` the log-probability at
# the sampling temperature; ``slot`` is where the edge leaves the session's tree of tokens.
_ENTRY = np.dtype(
    [
        ("priority", "f8"), ("score", "f8"), ("mass", "f8"), ("drawn", "f8"),
        ("state", "i8"), ("slot", "i8"), ("done", "?"),
    ],
    align=True,
)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        k: how many different descriptions are wanted, at most.
        method: "greedy" follows the best edge (k is 1); "beam" keeps the ``beams`` best
            prefixes; "best_first" finds the exact k best; "sample" draws k without replacement
            from the renormalized distribution at ``temperature``, in the order of the draw.
        beams: kept a pass by "beam"; opened a pass by "best_first" and "sample", where it
            changes the time and not the answer.
        score: see above.
        temperature: of "sample"; divides the logits. Scores are reported at temperature 1.
        most_opened: prefixes that "best_first" and "sample" open for one prompt before they
            give what they have, not proven to be best.
    """

    k: int = 8
    method: Method = "beam"
    beams: int = 8
    score: Score = "renormalized"
    temperature: float = 1.0
    most_opened: int = 4096

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a setting out of its range."""
        for field, value, right in (
            ("method", self.method, self.method in get_args(Method)),
            ("score", self.score, self.score in get_args(Score)),
            ("k", self.k, self.k >= 1),
            ("k", self.k, self.method != "greedy" or self.k == 1),
            ("beams", self.beams, self.beams >= (self.k if self.method == "beam" else 1)),
            ("temperature", self.temperature, 0 < self.temperature < float("inf")),
            ("most_opened", self.most_opened, self.most_opened >= 1),
        ):
            if not right:
                raise InvalidRequest(
                    f"cannot be searched by {self.method}",
                    field=field,
                    value=value,
                    remedy="k and beams are at least 1, k is 1 for greedy and at most beams for "
                    "beam; the temperature is above 0.",
                )


@dataclass(frozen=True)
class Found:
    """A description that was found.

    Attributes:
        rank: of the trie.
        score: as ``Search.score`` says; at most 0.
        mass: log of the allowed mass along it, which is in a full score; 0 in a renormalized.
    """

    rank: int
    score: float
    mass: float


@dataclass(frozen=True)
class Outcome:
    """What a search found for one prompt.

    Attributes:
        found: best first (sample: in the order of the draw); fewer than k if fewer live, or if
            ``most_opened`` was reached.
        exact: whether no other description can belong among them: nothing was given up on the
            way that scored higher than the last of them, or nothing at all if they are fewer.
        opened: how many prefixes were run through the model.
    """

    found: tuple[Found, ...]
    exact: bool
    opened: int


@dataclass(frozen=True)
class TrieHead:
    """A model's head and a trie, with the head's rows of the first tokens side by side."""

    head: Head
    trie: DescriptionTrie

    @cached_property
    def _first(self) -> Head | None:
        tokens = self.trie.token[self.trie.children(START)]
        if 2 * len(tokens) > self.head.vocabulary:
            return None  # a copy would be most of the head
        return self.head.select(tokens)

    def at_start(self, hidden: torch.Tensor) -> Double:
        """float64[R, U]: logits of the start's U children, of hidden states [R, d]."""
        if self._first is not None:
            z = self._first.full(hidden)
        else:
            tokens = torch.from_numpy(self.trie.token[self.trie.children(START)].astype(np.int64))
            z = self.head.full(hidden)[:, tokens.to(hidden.device)]
        found: Double = z.double().cpu().numpy()
        return found


@torch.inference_mode()
def search(
    session: Session,
    hidden: torch.Tensor,
    tips: Long,
    trie_head: TrieHead,
    views: Sequence[View],
    how: Search,
    seeds: Sequence[int] | None = None,
) -> list[Outcome]:
    """Searches for R prompts side by side; a row's answer does not depend on the others.

    Args:
        hidden: [R, d], the session's hidden states where the descriptions begin.
        tips: int64[R], the slots that they are of.
        views: R views.
        seeds: R seeds, for "sample"; by default 0, 1, ...

    Raises:
        InvalidRequest: there is not one seed a view.
        SerendipError: the model's logits are not finite.
    """
    if seeds is not None and len(seeds) != len(views):
        raise InvalidRequest(
            f"must be {len(views)}, one a row",
            field="seeds",
            value=len(seeds),
            remedy="Give as many seeds as prompts.",
        )
    pools = _Pools(session, trie_head, views, how, range(len(views)) if seeds is None else seeds)
    pools.start(hidden, tips)
    while pools.choose():
        pools.push()
    return pools.outcomes()


class _Pools:
    """The prompts of one search, a pool of entries each."""

    def __init__(
        self, session: Session, trie_head: TrieHead, views: Sequence[View], how: Search,
        seeds: Sequence[int],
    ) -> None:  # fmt: skip
        self._how = how
        self._head, self._trie = trie_head, trie_head.trie
        self._views, self._all_views = views, Views(views)
        self._reader = Reader(session, trie_head.trie, views, whole=how.score == "full")
        self._seeds = [int(seed) for seed in seeds]
        self._full = how.score == "full"
        self._sampling = how.method == "sample"
        self._bounded = how.method in ("greedy", "beam")
        self._width = 1 if how.method == "greedy" else how.beams
        self._pools = [np.empty(0, _ENTRY) for _ in views]
        self._opened = np.zeros(len(views), np.int64)
        self._given_up: list[float | None] = [None for _ in views]  # the highest that was
        self._owner = np.empty(0, np.int64)  # the prompt of each chosen entry
        self._chosen = np.empty(0, _ENTRY)

    def start(self, hidden: torch.Tensor, tips: Long) -> None:
        """Opens the start of each prompt: all are in one state, so one GEMM serves them."""
        z = _finite(self._head.at_start(hidden))
        norm = _log_sum_exp(z)
        mass = self._mass(norm, hidden)
        children = self._trie.children(START)
        lo, hi = self._trie.lo[children], self._trie.hi[children]
        # No more can ever be taken from a pool.
        most = self._width if self._bounded else self._how.most_opened + self._how.k
        for prompt, view in enumerate(self._views):
            at = np.arange(len(lo))
            if not self._sampling:
                if not view.is_whole:
                    at = np.flatnonzero(view.live_children(lo, hi))
                if len(at) > most:
                    by = np.argpartition(-z[prompt, at], most)
                    highest = z[prompt, at[by[most]]] - norm[prompt] + mass[prompt]
                    self._given_up[prompt] = float(highest)
                    at = np.sort(at[by[:most]])
            root = np.zeros(1, _ENTRY)
            root["slot"] = tips[prompt]
            edges = self._edges(
                root, np.zeros(len(at), np.int64), children.start + at, z[prompt, at],
                norm[prompt : prompt + 1], mass[prompt : prompt + 1], [prompt],
            )  # fmt: skip
            if self._sampling and not view.is_whole:
                edges = edges[view.live_children(lo, hi)]
            self._pools[prompt] = edges

    def choose(self) -> bool:
        """Takes from each pool the open entries to be pushed next; False if there are none."""
        taken, owner = [self._chosen[:0]], [self._owner[:0]]
        for prompt, pool in enumerate(self._pools):
            if pool["done"].all():
                continue
            pool = pool[np.argsort(-pool["priority"], kind="stable")]
            if self._bounded:
                self._give_up(prompt, pool[self._width :])
                pool = pool[: self._width]
                room = self._width
            else:
                room = min(self._width, self._how.most_opened - int(self._opened[prompt]))
            # What comes after k complete ones can no longer be among the k best.
            open_ = ~pool["done"] & (pool["done"].cumsum() < self._how.k)
            push = np.flatnonzero(open_)[:room]
            if not len(push):
                self._give_up(prompt, pool[open_])
                self._pools[prompt] = pool[pool["done"]]
                continue
            self._pools[prompt] = np.delete(pool, push)
            self._opened[prompt] += len(push)
            taken.append(pool[push])
            owner.append(np.full(len(push), prompt))
        self._chosen, self._owner = np.concatenate(taken), np.concatenate(owner)
        return len(self._chosen) > 0

    def push(self) -> None:
        """Opens the states that the chosen edges lead to, after one pass for what was not read."""
        read = self._reader.read(self._owner, self._chosen["state"], self._chosen["slot"])
        runs = self._trie.runs(self._chosen["state"], whole=self._full)
        terminal = self._trie.degree(runs.end) == 0
        if self._full:
            self._score_forced(read, runs)
        self._chosen["state"] = runs.end
        self._chosen["slot"] = [r.slot for r in read]
        self._chosen["done"] = terminal
        self._into_pools(self._chosen[terminal], self._owner[terminal])
        on = np.flatnonzero(~terminal)
        if len(on):
            self._expand(torch.stack([read[i].hidden[-1] for i in on]), on)

    def outcomes(self) -> list[Outcome]:
        """What is complete in each pool."""
        return [
            self._outcome(pool[pool["done"]], given_up, int(opened))
            for pool, given_up, opened in zip(
                self._pools, self._given_up, self._opened, strict=True
            )
        ]

    def _outcome(self, done: Entries, given_up: float | None, opened: int) -> Outcome:
        best = done[np.argsort(-done["priority"], kind="stable")][: self._how.k]
        ranks = self._trie.lo[best["state"]].tolist()
        enough = len(best) == self._how.k
        return Outcome(
            found=tuple(map(Found, ranks, best["score"].tolist(), best["mass"].tolist())),
            exact=given_up is None or (enough and given_up <= float(best["priority"][-1])),
            opened=opened,
        )

    def _expand(self, hidden: torch.Tensor, at: Long) -> None:
        """Adds the live edges of the chosen entries ``at``, whose hidden states are [H, d]."""
        above, owner = self._chosen[at], self._owner[at]
        out = self._trie.expand(above["state"])
        z = _finite(self._head.head.edges(hidden, out.row, out.token))
        norm = _log_sum_exp_by_row(z, out.row)
        edges = self._edges(
            above, out.row, out.state, z, norm, self._mass(norm, hidden), owner.tolist()
        )
        prompt = owner[out.row]
        live = self._all_views.live(prompt, self._trie.lo[out.state], self._trie.hi[out.state])
        self._into_pools(edges[live], prompt[live])

    def _edges(
        self, above: Entries, row: Integers, state: Integers, z: Double, norm: Double, mass: Double,
        owner: Sequence[int],
    ) -> Entries:  # fmt: skip
        """Entries of E edges, ragged over H expanded ones.

        Args:
            above: [H].
            row, state, z: [E]; which of ``above`` each edge leaves, ascending.
            norm, mass: float64[H], log of the allowed mass before and after log Z is taken off.
            owner: H prompts.
        """
        edges = np.empty(len(row), _ENTRY)
        edges["score"] = above["score"][row] + z - norm[row] + mass[row]
        edges["mass"] = above["mass"][row] + mass[row]
        edges["state"] = state
        edges["slot"] = above["slot"][row]
        if self._full:
            edges["done"] = self._trie.token[state] == self._trie.end_token
        else:
            edges["done"] = self._trie.hi[state] - self._trie.lo[state] == 1
        if self._sampling:
            ends = np.searchsorted(row, np.arange(len(above) + 1))
            for h, prompt in enumerate(owner):
                mine = slice(ends[h], ends[h + 1])
                # By state, so that the draw does not depend on what was opened before.
                rng = np.random.default_rng([self._seeds[prompt], int(state[mine.start])])
                self._draw(edges[mine], z[mine], above[h], rng)
        else:
            edges["priority"] = edges["score"]
        return edges

    def _draw(self, edges: Entries, z: Double, above: Any, rng: np.random.Generator) -> None:
        """Perturbs the children of one state so that the largest of them is the state's own.

        Those that a view removes take part: they are drawn, and passed over.
        """
        scaled = z / self._how.temperature
        edges["drawn"] = above["drawn"] + scaled - _log_sum_exp(scaled)
        gumbel = edges["drawn"] + rng.gumbel(size=len(edges))
        # Appendix B.3 of the paper, numerically stable; log 0 is the largest child's.
        with np.errstate(divide="ignore"):
            v = above["priority"] - gumbel + np.log1p(-np.exp(gumbel - gumbel.max()))
        edges["priority"] = above["priority"] - np.maximum(0, v) - np.log1p(np.exp(-np.abs(v)))

    def _score_forced(self, read: list[Read], runs: Runs) -> None:
        """Adds the full scores of the tokens that are forced after each chosen edge's own."""
        entry, j = np.nonzero(np.arange(1, runs.token.shape[1]) < runs.length[:, None])
        if not len(entry):
            return
        states = torch.stack([read[e].hidden[at] for e, at in zip(entry, j, strict=True)])
        z = self._head.head.edges(states, np.arange(len(entry)), runs.token[entry, j + 1])
        step = np.bincount(entry, z - self._head.head.log_norm(states), len(read))
        self._chosen["score"] += step
        self._chosen["mass"] += step
        if not self._sampling:
            self._chosen["priority"] = self._chosen["score"]

    def _mass(self, norm: Double, hidden: torch.Tensor) -> Double:
        """float64[H]: log of the share of the mass that is allowed; 0 where it does not count."""
        return norm - self._head.head.log_norm(hidden) if self._full else np.zeros(len(norm))

    def _give_up(self, prompt: int, entries: Entries) -> None:
        if len(entries):
            before = self._given_up[prompt]
            highest = float(entries["priority"].max())
            self._given_up[prompt] = highest if before is None else max(before, highest)

    def _into_pools(self, entries: Entries, owner: Long) -> None:
        for prompt in np.unique(owner):
            mine = entries[owner == prompt]
            self._pools[prompt] = np.concatenate([self._pools[prompt], mine])


def _finite(z: Double) -> Double:
    if not np.isfinite(z).all():
        raise SerendipError(
            "has logits that are not finite",
            field="planner.checkpoint",
            value=float(z[~np.isfinite(z)][0]),
            remedy="Load the model in float32, or train it again.",
        )
    return z


def _log_sum_exp(z: Double) -> Double:
    """Over the last axis."""
    top = z.max(axis=-1, keepdims=True)
    result: Double = top[..., 0] + np.log(np.exp(z - top).sum(axis=-1))
    return result


def _log_sum_exp_by_row(z: Double, row: Integers) -> Double:
    """float64[H] of E logits, ragged over H rows of which none is empty."""
    first = np.flatnonzero(np.diff(row, prepend=-1))
    top = np.maximum.reduceat(z, first)
    result: Double = top + np.log(np.add.reduceat(np.exp(z - top[row]), first))
    return result
