"""Opens what the current release names. Knows no gRPC."""

from __future__ import annotations

from dataclasses import replace

from retriever_server.service import Serving
from serendip.artifacts import Artifacts
from serendip.core import CorruptArtifact, Versions
from serendip.retrieval.ranker import ClusterRanker


def open_release(artifacts: Artifacts) -> Serving:
    """Opens the retriever of the current release.

    Raises:
        NotFound: there is no release, or not the retriever that it names.
        CorruptArtifact: the release or its retriever is not what it says.
    """
    release = artifacts.current("release")
    named = {kind: release.inputs.get(kind, "") for kind in ("planner", "plans")}
    where = f"release/{release.version}"
    remedy = "Publish it again (serendip release)."
    if "retriever" not in release.inputs:
        raise CorruptArtifact("names no retriever", field=where, remedy=remedy)
    ranker = ClusterRanker.open(artifacts.open("retriever", release.inputs["retriever"]))
    if ranker.versions.tree_version != release.tree_version:
        raise CorruptArtifact(
            f"names tree {release.tree_version}, but its retriever was made for another",
            field=where,
            value=ranker.versions.tree_version,
            remedy=remedy,
        )
    versions: Versions = replace(
        ranker.versions, planner_version=named["planner"], plans_version=named["plans"]
    )
    return Serving(versions, {versions.tree_version: ranker})
