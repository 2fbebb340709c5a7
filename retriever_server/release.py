"""Opens what the current release names. Knows no gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retriever_server.service import Serving
from serendip.artifacts import Artifact, Artifacts, check_file
from serendip.core import CorruptArtifact, Versions
from serendip.retrieval.fresh import ITEMS
from serendip.retrieval.opening import FILES
from serendip.retrieval.ranker import ClusterRanker


def open_release(artifacts: Artifacts, *, user_cache: int = 0) -> Serving:
    """Opens the retriever of the current release, and what its tree has grown to.

    Args:
        user_cache: user vectors kept; 0: none.

    Raises:
        NotFound: there is no release, or not the retriever or the tree that it names.
        CorruptArtifact: the release, its retriever or its tree is not what it says.
    """
    release = artifacts.current("release")
    named = {kind: release.inputs.get(kind, "") for kind in ("planner", "plans")}
    where = f"release/{release.version}"
    remedy = "Publish it again (serendip release)."
    for kind in ("retriever", "tree"):
        if kind not in release.inputs:
            raise CorruptArtifact(f"names no {kind}", field=where, remedy=remedy)
    retriever = _opened(artifacts, "retriever", release.inputs["retriever"], FILES)
    if retriever.tree_version != release.tree_version:
        raise CorruptArtifact(
            f"names tree {release.tree_version}, but its retriever was made for another",
            field=where,
            value=retriever.tree_version,
            remedy=remedy,
        )
    tree = None
    if retriever.inputs.get("tree_items") != release.inputs["tree"]:  # it has grown since
        tree = _opened(artifacts, "tree", release.inputs["tree"], (ITEMS,))
    ranker = ClusterRanker.open(retriever, tree, user_cache=user_cache)
    versions: Versions = replace(
        ranker.versions, planner_version=named["planner"], plans_version=named["plans"]
    )
    return Serving(versions, {versions.tree_version: ranker})


def _opened(artifacts: Artifacts, kind: str, version: str, files: Sequence[str]) -> Artifact:
    """Opens a version. Only the files that are read are hashed: the rest may be as large."""
    artifact = artifacts.open(kind, version, verify=False)
    for name in files:
        artifact.file(name)
        check_file(artifact, name)
    return artifact
