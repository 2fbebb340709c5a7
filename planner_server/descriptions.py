"""The descriptions as people and models ask for them: searched by words, resolved by equality.

Knows no request: words, ranges of nodes and texts come in. The event loop's thread searches, piece
by piece, so that a look-up beside it waits for a piece and not for the tree.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from collections.abc import Iterable

import numpy as np
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter

from serendip.core import InvalidRequest, NotFound
from serendip.planning.trie import DescriptionTrie
from serendip.serving.errors import OK_STATUS, status_of
from serendip.tree.cluster_tree import Nodes, normal_form
from serendip.v1 import planner_pb2

MAX_QUERY_BYTES = 200
MAX_TEXT_BYTES = 2000
_PIECE = 1024  # nodes searched before others have their turn: at most about a millisecond


# --- search ------------------------------------------------------------------------------


def words_of(query: str) -> tuple[bytes, ...]:
    """The words of a query as they are looked for, the longest first; none of white space.

    Raises:
        InvalidRequest: it has more than 200 bytes.
    """
    if len(query.encode()) > MAX_QUERY_BYTES:
        raise InvalidRequest(
            f"at most {MAX_QUERY_BYTES} bytes", field="query", value=query, remedy="Shorten it."
        )
    words = {word.encode() for word in normal_form(query).split()}
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


class Descriptions:
    """The descriptions of one tree, searched in node order.

    Their normal form is made at the first search, in a thread, and kept: about as many bytes as
    the descriptions have, and 8 a node.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._made: asyncio.Task[tuple[bytes, array[int]]] | None = None

    async def first(self, nodes: range, words: tuple[bytes, ...], count: int) -> list[int]:
        """The first nodes of a range whose description has each word, as a part of one of its own.

        Args:
            nodes: consecutive node IDs; nothing before them is looked at, and nothing after the
                last one that is found.
            words: of ``words_of``; none: every node has them.
            count: nodes wanted.
        """
        if not words or not nodes:
            return list(nodes[:count])
        if self._made is None:
            self._made = asyncio.create_task(asyncio.to_thread(_normal_forms, self._nodes))
        text, starts = await asyncio.shield(self._made)
        found: list[int] = []
        for lo in range(nodes.start, nodes.stop, _PIECE):
            hi = min(lo + _PIECE, nodes.stop)
            found += _having(words, text, starts, lo, hi, count - len(found))
            if len(found) >= count:
                break
            await asyncio.sleep(0)
        return found


def _normal_forms(nodes: Nodes) -> tuple[bytes, array[int]]:
    """UTF-8 of all normal forms, a line each, and where each line starts: M + 1 offsets."""
    text = "".join(f"{normal_form(one)}\n" for one in nodes.description).encode()
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")).astype(np.int64) + 1
    # An array: the interpreter bisects it several times sooner than numpy's.
    return text, array("q", bytes(8) + ends.tobytes())


def _having(
    words: tuple[bytes, ...], text: bytes, starts: array[int], lo: int, hi: int, count: int
) -> list[int]:
    """At most ``count`` nodes of [lo, hi) whose line has every word."""
    longest, *others = words
    found: list[int] = []
    at, end = starts[lo], starts[hi]
    while len(found) < count and (at := text.find(longest, at, end)) >= 0:
        node = bisect_right(starts, at, lo, hi) - 1
        start, at = starts[node], starts[node + 1]
        if all(text.find(word, start, at) >= 0 for word in others):
            found.append(node)
    return found


# --- resolve -----------------------------------------------------------------------------


def resolve(trie: DescriptionTrie, texts: Iterable[str]) -> list[planner_pb2.ResolveRow]:
    """One row a text, in order."""
    return [_resolve(trie, text, at) for at, text in enumerate(texts)]


def _resolve(trie: DescriptionTrie, text: str, at: int) -> planner_pb2.ResolveRow:
    if len(text.encode()) > MAX_TEXT_BYTES:
        long = InvalidRequest(
            "at most 2,000 bytes",
            field=f"texts[{at}]",
            value=text[:200],
            remedy="Send the model's answer alone.",
        )
        return planner_pb2.ResolveRow(status=status_of(long))
    node = trie.resolve(text)
    if node is None:
        absent = NotFound("no description equals it", field=f"texts[{at}]", value=text)
        return planner_pb2.ResolveRow(status=status_of(absent))
    return planner_pb2.ResolveRow(status=OK_STATUS, node_id=node)


class ResolveMetrics:
    """Counts texts by outcome: of an outside model, matched by all is the match rate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        texts = Counter(
            "serendip_resolve_texts",
            "Texts that Resolve was asked for; matched: a description equals it.",
            ("outcome",),
            registry=registry,
        )
        self._outcomes = {
            code_pb2.OK: texts.labels("matched"),
            code_pb2.NOT_FOUND: texts.labels("unmatched"),
            code_pb2.INVALID_ARGUMENT: texts.labels("invalid"),
        }

    def count(self, rows: Iterable[planner_pb2.ResolveRow]) -> None:
        """Counts the rows of one answer."""
        for row in rows:
            self._outcomes[row.status.code].inc()
