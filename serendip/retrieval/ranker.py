"""The ClusterRanker: exact top-k of the sequence model inside clusters, and only there.

The item matrix is leaf-ordered, so that every node is one slice of it; it is memory-mapped, and
shared by all processes that open it. This module knows no gRPC and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serendip.artifacts import Artifact
from serendip.core import (
    Candidate,
    CorruptArtifact,
    Retrieval,
    RetrievalQuery,
    SerendipError,
    Versions,
)
from serendip.retrieval.codes import CODES, Codes
from serendip.retrieval.compiled import has_numba
from serendip.retrieval.encoder import UserEncoder
from serendip.retrieval.intervals import Covered, Slice
from serendip.retrieval.padding import pad_histories
from serendip.retrieval.scan import Scan, Top, best_of_values
from serendip.tree.cluster_tree import Nodes, read_item_order, read_nodes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# The items [start, end) that a candidate may come from, and the node that it then names.
Segment = tuple[int, int, int]
# (slices, sorted ranks that are gone, k) -> the top k of what the slices hold.
Scorer = Callable[[Sequence[Slice], Int64, int], Top]

TOLERANCE = 1e-4
_ROWS_A_RUN = 64  # more rows a run gain no time, and attention's memory grows with them
_ROWS_A_CHECK = 1 << 18


class ClusterRanker:
    """One opened retriever artefact; its methods may be called by several threads.

    Attributes:
        versions: of the tree, the retriever and the item order.
        nodes: the tree's nodes.
        max_history: events of a history that the model reads.
        dimensions: length of user and item vectors, the bias's place included.
    """

    def __init__(
        self,
        *,
        versions: Versions,
        nodes: Nodes,
        item_ids: tuple[str, ...],
        leaf_start: Int64,
        matrix: Float32,
        satisfaction: Float32,
        encode: Callable[[Int64, Int64], Float32],
        max_history: int,
        codes: Codes | None = None,
    ):
        """See ``open``.

        Args:
            item_ids: N IDs in item order.
            leaf_start: int64[L + 1], first item of each leaf.
            matrix: float32[N, d], C-contiguous, in item order.
            satisfaction: float32[N], what a cold user's items are ranked by.
            encode: (int64[B, T] ranks + 1 padded with 0, int64[B]) -> float32[B, d].
            codes: of the matrix; without them large slices take longer.
        """
        self.versions = versions
        self.nodes = nodes
        self.max_history = max_history
        self.dimensions = int(matrix.shape[1])
        self._item_ids = item_ids
        self._rank = {item_id: i for i, item_id in enumerate(item_ids)}
        # Plain lists: one element of an array costs more than all else that is done with it.
        self._start: list[int] = leaf_start[nodes.leaf_lo].tolist()
        self._end: list[int] = leaf_start[nodes.leaf_hi].tolist()
        self._level: list[int] = nodes.level.tolist()
        self._parent: list[int] = nodes.parent.tolist()
        self._scan = Scan(matrix, codes)
        self._satisfaction = satisfaction
        self._encode = encode

    @property
    def item_count(self) -> int:
        return len(self._item_ids)

    @classmethod
    def open(cls, artifact: Artifact) -> ClusterRanker:
        """Opens a ``retriever`` artefact and compares it with its golden outputs.

        Raises:
            CorruptArtifact: a file cannot be read, the files disagree in their shapes, a number
                is not finite, or the golden outputs differ by more than 1e-4.
        """
        name = f"retriever/{artifact.version}"
        try:
            nodes = read_nodes(artifact.file("nodes.parquet"), artifact.tree_version)
            item_ids, leaf_start = read_item_order(
                artifact.file("item_order.parquet"), nodes.leaf_count
            )
            matrix = _mapped(artifact.file("items.npy"))
            satisfaction = _mapped(artifact.file("satisfaction.npy"))
            versions = Versions(
                tree_version=nodes.tree_version,
                retriever_version=artifact.version,
                order_version=str(artifact.facts["order_version"]),
            )
            max_history = int(artifact.facts["max_history"])
            with np.load(artifact.file("golden.npz"), allow_pickle=False) as file:
                golden = {key: file[key] for key in file.files}
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as e:
            raise _corrupt(name, f"cannot be read ({type(e).__name__}: {e})") from e
        n = len(item_ids)
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != n:
            raise _corrupt(f"{name}/items.npy", f"must be float32[{n}, d + 1]")
        if not matrix.flags.c_contiguous:
            raise _corrupt(f"{name}/items.npy", "must be C-contiguous")
        if satisfaction.dtype != np.float32 or satisfaction.shape != (n,):
            raise _corrupt(f"{name}/satisfaction.npy", f"must be float32[{n}]")
        if len(set(item_ids)) != n:
            raise _corrupt(f"{name}/item_order.parquet", "names an item twice")
        _check_finite(matrix, f"{name}/items.npy")
        _check_finite(satisfaction, f"{name}/satisfaction.npy")
        encoder = UserEncoder.open(artifact.file("model.onnx"))
        _check_golden(golden, encoder, matrix, name)
        coded = has_numba() and CODES in artifact.files
        return cls(
            versions=versions,
            nodes=nodes,
            item_ids=item_ids,
            leaf_start=leaf_start,
            matrix=matrix,
            satisfaction=satisfaction,
            encode=encoder.run,
            max_history=max_history,
            codes=Codes.open(artifact.path, matrix) if coded else None,
        )

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Retrieval | SerendipError]:
        """What RetrieveRequest of protos/serendip/v1/retriever.proto promises, row by row.

        The candidates are the exact top k of the union of ``node_ids``, without the excluded
        nodes, the denied items and the items seen. Where they are fewer than k, retrieval widens
        to ``widen_node_ids`` in order, then to the ancestors of ``node_ids``, lower levels
        first; every node widened to adds what no node before it has covered.

        An item of several requested nodes names the deepest. A score is the dot product with
        the user vector; for a cold user (no known item in the history) the item's shrunk mean
        satisfaction. Equal scores stand in item order.

        Returns:
            One entry a query; NotFound where a node does not exist.
        """
        histories = [
            [r for i in q.history if (r := self._rank.get(i)) is not None] for q in queries
        ]
        users = self._users(histories)
        results: list[Retrieval | SerendipError] = []
        for query, history, user in zip(queries, histories, users, strict=True):
            try:
                results.append(self._retrieve(query, history, user))
            except SerendipError as e:
                results.append(e)
        return results

    def _users(self, histories: list[list[int]]) -> list[Float32 | None]:
        """User vectors float32[d]; None where there is no history."""
        users: list[Float32 | None] = [None] * len(histories)
        # Rows of like length share a run, so that little of it is padding.
        known = [row for row, history in enumerate(histories) if history]
        known.sort(key=lambda row: len(histories[row]))
        for at in range(0, len(known), _ROWS_A_RUN):
            rows = known[at : at + _ROWS_A_RUN]
            ids, length = pad_histories([histories[row] for row in rows], self.max_history)
            for row, user in zip(rows, self._encode(ids, length), strict=True):
                users[row] = user
        return users

    def _retrieve(
        self, query: RetrievalQuery, history: list[int], user: Float32 | None
    ) -> Retrieval:
        for name in ("node_ids", "exclude_node_ids", "widen_node_ids"):
            for node in getattr(query, name):
                self.nodes.check(node, name)
        scorer = self._satisfied() if user is None else self._dot_products(user)
        gone = self._gone(query, history)
        covered = Covered()
        for node in query.exclude_node_ids:
            covered.claim(self._start[node], self._end[node])

        # Deepest first: what nests inside another requested node keeps its own name.
        requested = sorted(dict.fromkeys(query.node_ids), key=lambda n: -self._level[n])
        segments = [segment for node in requested for segment in self._claim(covered, node)]
        found = self._best(segments, scorer, gone, query.k, widened=False)
        widened_to = []
        if query.widening:
            for node in self._widening(query):
                if len(found) >= query.k:
                    break
                segments = self._claim(covered, node)
                more = self._best(segments, scorer, gone, query.k - len(found), widened=True)
                if more:
                    widened_to.append(node)
                    found += more
        return Retrieval(
            candidates=tuple(found),
            widened_to=tuple(widened_to),
            unknown_history_items=len(query.history) - len(history),
        )

    def _dot_products(self, user: Float32) -> Scorer:
        return partial(self._scan.best, user)

    def _satisfied(self) -> Scorer:
        return partial(best_of_values, self._satisfaction)

    def _gone(self, query: RetrievalQuery, history: list[int]) -> Int64:
        """int64[G], sorted: ranks that are never returned, wherever they lie."""
        gone = {r for i in query.deny_item_ids if (r := self._rank.get(i)) is not None}
        if not query.include_seen:
            gone.update(history)
        return np.asarray(sorted(gone), np.int64)

    def _claim(self, covered: Covered, node: int) -> list[Segment]:
        fresh = covered.claim(self._start[node], self._end[node])
        return [(start, end, node) for start, end in fresh]

    def _widening(self, query: RetrievalQuery) -> Iterator[int]:
        """Nodes to widen to, in order."""
        yield from query.widen_node_ids
        above: dict[int, None] = {}  # an ordered set
        for node in query.node_ids:
            while (node := self._parent[node]) >= 0:
                above[node] = None
        yield from sorted(above, key=lambda n: -self._level[n])

    def _best(
        self, segments: list[Segment], scorer: Scorer, gone: Int64, k: int, *, widened: bool
    ) -> list[Candidate]:
        """The top k of the segments' items less those that are gone, best first."""
        if not segments:
            return []
        segments = sorted(segments)
        top = scorer([(start, end) for start, end, _ in segments], gone, k)
        starts = [start for start, _, _ in segments]
        owners = (np.searchsorted(starts, top.ranks, side="right") - 1).tolist()
        return [
            Candidate(self._item_ids[rank], score, segments[o][2], widened)
            for rank, score, o in zip(top.ranks.tolist(), top.scores.tolist(), owners, strict=True)
        ]


# --- what open checks --------------------------------------------------------------------


def _mapped(path: Path) -> Float32:
    # A plain array over the map: slicing np.memmap itself costs microseconds.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _check_finite(values: Float32, name: str) -> None:
    # In parts: a mask over all of a large matrix would be made in memory.
    for at in range(0, len(values), _ROWS_A_CHECK):
        if not np.isfinite(values[at : at + _ROWS_A_CHECK]).all():
            raise _corrupt(name, "holds a number that is not finite")


def _check_golden(
    golden: dict[str, npt.NDArray[np.generic]], encoder: UserEncoder, matrix: Float32, name: str
) -> None:
    where = f"{name}/golden.npz"
    try:
        expected = np.asarray(golden["user"], np.float32)
        top_items = np.asarray(golden["top_items"], np.int64)
        top_scores = np.asarray(golden["top_scores"], np.float32)
        user = encoder.run(
            np.asarray(golden["ids"], np.int64), np.asarray(golden["length"], np.int64)
        )
        same = user.shape == expected.shape and bool(
            np.allclose(user, expected, rtol=TOLERANCE, atol=TOLERANCE)
        )
        scores = user @ matrix.T  # float32[G, N]
        best = -np.sort(-scores, axis=1)[:, : top_scores.shape[1]]
        same = same and bool(np.allclose(best, top_scores, rtol=TOLERANCE, atol=TOLERANCE))
        at_items = np.take_along_axis(scores, top_items, axis=1)
        same = same and bool(np.allclose(at_items, top_scores, rtol=TOLERANCE, atol=TOLERANCE))
    except Exception as e:  # whatever stops the graph on inputs that it was exported with
        raise _corrupt(where, f"cannot be computed ({type(e).__name__}: {e})") from e
    if not same:
        raise _corrupt(where, f"the golden outputs differ by more than {TOLERANCE:g}")


def _corrupt(field: str, message: str) -> CorruptArtifact:
    return CorruptArtifact(message, field=field, remedy="Publish it again (serendip retriever).")
