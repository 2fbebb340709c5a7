"""The ClusterRanker: exact top-k of the sequence model inside clusters, and only there.

The item matrix is leaf-ordered, so that every node is one slice of it; it is memory-mapped, and
shared by all processes that open it. This module knows no gRPC, no torch and no file: opening.py
reads the artefact, shelf.py holds the items, users.py the user vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from serendip.artifacts import Artifact
from serendip.core import (
    AttributeType,
    CorruptArtifact,
    InvalidRequest,
    Retrieval,
    RetrievalQuery,
    SerendipError,
    Versions,
)
from serendip.retrieval.attributes import Attributes, Condition
from serendip.retrieval.codes import Codes
from serendip.retrieval.found import Found
from serendip.retrieval.fresh import Changes, fresh_shelf
from serendip.retrieval.intervals import Covered
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.opening import open_files
from serendip.retrieval.search import Picks, Search
from serendip.retrieval.shelf import Shelf, Wanted
from serendip.retrieval.users import UserVectors
from serendip.tree.cluster_tree import Nodes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_NONE: Int64 = np.zeros(0, np.int64)


class ClusterRanker:
    """One opened retriever artefact; its methods may be called by several threads.

    Attributes:
        versions: of the tree, the retriever and the item order.
        nodes: the tree's nodes.
        max_history: events of a history that the model reads.
        dimensions: length of user and item vectors, the bias's place included.
        users: user vectors by history; it counts the cache's hits and misses.
        fresh_count, deleted_count: items that the release's tree has and the export lacks, and
            the other way round.
        withheld_count: items withheld now.
    """

    def __init__(
        self,
        *,
        versions: Versions,
        nodes: Nodes,
        ids: ItemIds,
        leaf_start: Int64,
        matrix: Float32,
        satisfaction: Float32,
        encode: Callable[[Int64, Int64], Float32],
        max_history: int,
        attributes: Attributes | None = None,
        changes: Changes | None = None,
        prior: float = 0.0,
        user_cache: int = 0,
        codes: Codes | None = None,
    ):
        """See ``open``.

        Args:
            ids: N IDs in item order.
            leaf_start: int64[L + 1], first item of each leaf.
            matrix: float32[N, d], C-contiguous, in item order.
            satisfaction: float32[N], what a cold user's items are ranked by.
            encode: (int64[B, T] ranks + 1 padded with 0, int64[B]) -> float32[B, d].
            attributes: of the N items; None: there are none.
            changes: the release's tree against the export; None: the same items.
            prior: mean satisfaction of the log, what a cold user's fresh items are ranked by.
            user_cache: user vectors kept; 0: none.
            codes: of the matrix; without them large slices take longer.
        """
        self.versions = versions
        self.nodes = nodes
        self.max_history = max_history
        self.dimensions = int(matrix.shape[1])
        self.users = UserVectors(encode, max_history, user_cache)
        self._level: list[int] = nodes.level.tolist()
        self._parent: list[int] = nodes.parent.tolist()
        self._ids = ids
        self._attributes = attributes
        export = Shelf(nodes, ids, leaf_start, matrix, satisfaction, codes, fresh=False)
        self._shelves = [export]
        self._deleted = _NONE
        self.fresh_count = self.deleted_count = 0
        if changes is not None:
            self._deleted = changes.deleted
            self.fresh_count, self.deleted_count = len(changes.item_ids), len(changes.deleted)
            if changes.item_ids:
                self._shelves.append(fresh_shelf(changes, nodes, leaf_start, matrix, prior))
        self.withhold(())

    @property
    def item_count(self) -> int:
        return len(self._ids)

    @property
    def attributes(self) -> dict[str, AttributeType]:
        """What filters may name."""
        return {} if self._attributes is None else self._attributes.types

    @classmethod
    def open(
        cls, artifact: Artifact, tree: Artifact | None = None, *, user_cache: int = 0
    ) -> ClusterRanker:
        """Opens a ``retriever`` artefact and compares it with its golden outputs.

        Args:
            tree: the release's ``tree`` artefact, where it may have grown since the export; None:
                it is the one that the export was made of.
            user_cache: user vectors kept; 0: none.

        Raises:
            CorruptArtifact: a file cannot be read, the files disagree in their shapes, a number
                is not finite, or the golden outputs differ by more than 1e-4; the tree is another
                one.
        """
        files = open_files(artifact)
        changes = None
        if tree is not None:
            if tree.tree_version != artifact.tree_version:
                raise CorruptArtifact(
                    f"was made for tree {artifact.tree_version}, the release's is another",
                    field=f"retriever/{artifact.version}",
                    value=tree.tree_version,
                    remedy="Publish it again (serendip retriever).",
                )
            changes = Changes.between(files.ids, tree, files.nodes.leaf_count)
        return cls(
            versions=files.versions,
            nodes=files.nodes,
            ids=files.ids,
            leaf_start=files.leaf_start,
            matrix=files.matrix,
            satisfaction=files.satisfaction,
            encode=files.encoder.run,
            max_history=files.max_history,
            attributes=files.attributes,
            changes=changes,
            prior=files.prior,
            user_cache=user_cache,
            codes=files.codes,
        )

    def withhold(self, item_ids: Iterable[str]) -> None:
        """Replaces the items that are withheld: from the next batch on they are never returned.

        They are still read in histories. IDs that are not there are ignored. Queries that run
        meanwhile see the items withheld before, or these, and never some of both.
        """
        wanted = tuple(item_ids)
        withheld = [np.unique(np.asarray(s.ids.known(wanted), np.int64)) for s in self._shelves]
        self.withheld_count = sum(map(len, withheld))
        withheld[0] = np.union1d(withheld[0], self._deleted)
        self._never = tuple(withheld)

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Retrieval | SerendipError]:
        """``find``, with a candidate for each that was found."""
        return [
            found.retrieval() if isinstance(found, Found) else found for found in self.find(queries)
        ]

    def find(self, queries: Sequence[RetrievalQuery]) -> list[Found | SerendipError]:
        """What RetrieveRequest of protos/serendip/v1/retriever.proto promises, row by row.

        The candidates are the exact top k of the union of ``node_ids``, of what the query may
        have. Where they are fewer than k, retrieval widens to ``widen_node_ids`` in order, then to
        the ancestors of ``node_ids``, lower levels first; every node widened to adds what no node
        before it has covered.

        An item of several requested nodes names the deepest. A score is the dot product with
        the user vector; for a cold user (no known item in the history) the item's shrunk mean
        satisfaction. Equal scores stand in item order, fresh items last.

        Returns:
            One entry a query; NotFound where a node does not exist, InvalidRequest where a filter
            does not fit the attributes, or a history that must be known is not.
        """
        never = self._never  # one reading, so that a batch sees one set
        histories = [self._ids.known(query.history) for query in queries]
        users = self.users.of(histories)
        results: list[Found | SerendipError] = []
        for query, history, user in zip(queries, histories, users, strict=True):
            try:
                results.append(self._find(query, history, user, never))
            except SerendipError as e:
                results.append(e)
        return results

    def _find(
        self,
        query: RetrievalQuery,
        history: list[int],
        user: Float32 | None,
        never: tuple[Int64, ...],
    ) -> Found:
        check = self.nodes.check
        for node in query.node_ids:
            check(node, "node_ids")
        for node in query.exclude_node_ids:
            check(node, "exclude_node_ids")
        for node in query.widen_node_ids:
            check(node, "widen_node_ids")
        if query.require_known_history and len(history) < len(query.history):
            self._refuse_unknown(query.history)
        search = Search(
            wanted=[
                self._wanted(shelf, query, history, user, gone)
                for shelf, gone in zip(self._shelves, never, strict=True)
            ],
            covered=[Covered() for _ in self._shelves],
            max_per_leaf=query.max_per_leaf,
        )
        for node in query.exclude_node_ids:
            search.claim([node])

        # Deepest first: what nests inside another requested node keeps its own name.
        requested = sorted(dict.fromkeys(query.node_ids), key=lambda n: -self._level[n])
        found = [search.best(search.claim(requested), query.k)]
        own = total = len(found[0])
        widened_to = []
        if query.widening and total < query.k:
            for node in self._widening(query):
                more = search.best(search.claim([node]), query.k - total)
                if len(more):
                    widened_to.append(node)
                    found.append(more)
                    total += len(more)
                    if total >= query.k:
                        break
        picks = found[0] if len(found) == 1 else Picks.joined(found)
        return Found(
            item_ids=self._names(picks),
            scores=picks.scores.tolist(),
            node_ids=picks.nodes.tolist(),
            own=own,
            fresh=() if len(self._shelves) == 1 else (picks.shelf > 0).tolist(),
            widened_to=tuple(widened_to),
            unknown_history_items=len(query.history) - len(history),
        )

    def _names(self, picks: Picks) -> list[bytes]:
        if len(self._shelves) == 1:
            return self._ids.names(picks.ranks.tolist())
        names = [
            iter(shelf.ids.names(picks.ranks[picks.shelf == number].tolist()))
            for number, shelf in enumerate(self._shelves)
        ]
        return [next(names[number]) for number in picks.shelf.tolist()]

    def _wanted(
        self,
        shelf: Shelf,
        query: RetrievalQuery,
        history: list[int],
        user: Float32 | None,
        never: Int64,
    ) -> Wanted:
        """What the query may have of a shelf."""
        gone = set(shelf.ids.known(query.deny_item_ids))
        if not query.include_seen:
            gone.update(shelf.ids.known(query.history) if shelf.fresh else history)
        only = None
        if query.allow_item_ids is not None:
            only = np.asarray(sorted(set(shelf.ids.known(query.allow_item_ids))), np.int64)
        conditions: tuple[Condition, ...] = ()
        if query.filters:
            attributes = self._attributes or Attributes.none()
            conditions = tuple(attributes.conditions(query.filters))
            if shelf.fresh:
                only = _NONE  # all its attributes are null, which no filter matches
        sets = (np.asarray(sorted(gone), np.int64), never)
        return Wanted(shelf, user, tuple(s for s in sets if len(s)), only, conditions)

    def _refuse_unknown(self, history: tuple[str, ...]) -> None:
        index = next(i for i, item_id in enumerate(history) if self._ids.rank(item_id) is None)
        raise InvalidRequest(
            "is not in the export",
            field=f"history[{index}].item_id",
            value=history[index],
            remedy="Leave it out, or ask without require_known_history.",
        )

    def _widening(self, query: RetrievalQuery) -> Iterator[int]:
        """Nodes to widen to, in order."""
        yield from query.widen_node_ids
        above: dict[int, None] = {}  # an ordered set
        for node in query.node_ids:
            while (node := self._parent[node]) >= 0:
                above[node] = None
        yield from sorted(above, key=lambda n: -self._level[n])
