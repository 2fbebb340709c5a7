"""Opens what a release names, and warms it. Knows no gRPC."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

from retriever_server.service import Serving
from serendip.artifacts import Artifact, Artifacts, check_file
from serendip.core import (
    MAX_K,
    CorruptArtifact,
    NotFound,
    RetrievalQuery,
    SerendipError,
    Versions,
)
from serendip.retrieval.fresh import ITEMS
from serendip.retrieval.opening import FILES
from serendip.retrieval.ranker import ClusterRanker

_log = logging.getLogger(__name__)


def open_release(
    artifacts: Artifacts,
    version: str | None = None,
    *,
    verify: bool = True,
    user_cache: int = 0,
) -> Serving:
    """Opens the retriever of a release, and what its tree has grown to.

    Args:
        version: of the release; None: the current one.
        verify: compare the sha256 of the files that are read; False where that has just been done.
        user_cache: user vectors kept; 0: none.

    Raises:
        NotFound: there is no release, or not the retriever or the tree that it names.
        CorruptArtifact: the release, its retriever or its tree is not what it says.
    """
    if version is None:
        release = artifacts.current("release")
    else:
        release = artifacts.open("release", version)
    named = {kind: release.inputs.get(kind, "") for kind in ("planner", "plans")}
    where = f"release/{release.version}"
    remedy = "Publish it again (serendip release)."
    for kind in ("retriever", "tree"):
        if kind not in release.inputs:
            raise CorruptArtifact(f"names no {kind}", field=where, remedy=remedy)
    retriever = _opened(artifacts, "retriever", release.inputs["retriever"], FILES, verify)
    if retriever.tree_version != release.tree_version:
        raise CorruptArtifact(
            f"names tree {release.tree_version}, but its retriever was made for another",
            field=where,
            value=retriever.tree_version,
            remedy=remedy,
        )
    tree = None
    if retriever.inputs.get("tree_items") != release.inputs["tree"]:  # it has grown since
        tree = _opened(artifacts, "tree", release.inputs["tree"], (ITEMS,), verify)
    ranker = ClusterRanker.open(retriever, tree, user_cache=user_cache)
    versions: Versions = replace(
        ranker.versions, planner_version=named["planner"], plans_version=named["plans"]
    )
    return Serving(release.version, versions, {versions.tree_version: ranker})


def _opened(
    artifacts: Artifacts, kind: str, version: str, files: Sequence[str], verify: bool
) -> Artifact:
    """Opens a version. Only the files that are read are hashed: the rest may be as large."""
    artifact = artifacts.open(kind, version, verify=False)
    for name in files:
        artifact.file(name)
        if verify:
            check_file(artifact, name)
    return artifact


def open_current(artifacts: Artifacts, *, user_cache: int = 0) -> Serving:
    """Opens the current release, and beside it the one before if that is of another tree.

    So a server that starts answers what one that ran on would. Without the one before, which may
    have been pruned, what serves is whole: it is left out, and a warning says why.

    Args:
        user_cache: user vectors that each ranker keeps; 0: none.

    Raises:
        NotFound, CorruptArtifact: as open_release, of the current one.
    """
    serving = open_release(artifacts, user_cache=user_cache)
    version = artifacts.previous_version("release")
    if version is None or not artifacts.exists("release", version):
        return serving
    try:
        before = artifacts.open("release", version)
        if before.tree_version not in serving.rankers:
            return serving.beside(open_release(artifacts, version, user_cache=user_cache))
    except NotFound:
        pass
    except SerendipError as e:
        _log.warning("the release before the current one is not open: %s", e)
    return serving


def warm(ranker: ClusterRanker, max_batch: int) -> None:
    """Runs every batch size that may come, over the longest histories.

    The runtime plans its memory at a shape's first run, which takes as long as several others.
    """
    leaf = ranker.nodes.at_level(4)[0]
    sizes = range(1, max_batch + 1)
    # Every row has a history of its own: equal ones may be encoded once.
    wanted = min(MAX_K, ranker.max_history + sum(sizes))
    (cold,) = ranker.retrieve([RetrievalQuery((), (0,), wanted)])
    if isinstance(cold, Exception):
        raise cold
    known = [candidate.item_id for candidate in cold.candidates]
    row = 0
    for size in sizes:
        queries = []
        for _ in range(size if known else 0):
            at = row % len(known)
            history = tuple(islice(cycle(known), at, at + ranker.max_history))
            queries.append(RetrievalQuery(history, (leaf,), 1))
            row += 1
        ranker.retrieve(queries)
