"""A release: one tree, planner, plans and retriever that fit together.

Servers follow the current release alone, so that nothing tears when artefacts are republished.
Knows no model and no file of the parts.
"""

from __future__ import annotations

from serendip.artifacts import Artifact, Artifacts
from serendip.core import InvalidRequest

PARTS = ("tree", "planner", "plans", "retriever")


def publish_release(artifacts: Artifacts) -> Artifact:
    """Names the current parts as a release and makes it current.

    Raises:
        InvalidRequest: the parts were made for different trees; names the one that lags.
        NotFound: a part was never published.
    """
    parts = {kind: artifacts.current(kind) for kind in PARTS}
    tree = parts["tree"].tree_version
    for kind in PARTS[1:]:
        if parts[kind].tree_version != tree:
            raise InvalidRequest(
                f"was made for tree {parts[kind].tree_version}, current is {tree}",
                field=f"{kind}/{parts[kind].version}",
                remedy="Run its stage again, then release.",
            )
    if parts["plans"].inputs["planner"] != parts["planner"].version:
        raise InvalidRequest(
            f"was made by planner {parts['plans'].inputs['planner']}, "
            f"current is {parts['planner'].version}",
            field=f"plans/{parts['plans'].version}",
            remedy="Run serendip plan again, then release.",
        )
    inputs = {kind: part.version for kind, part in parts.items()}
    if reused := artifacts.reuse("release", {}, inputs):
        return reused
    seen = [part.log_until for part in parts.values() if part.log_until is not None]
    with artifacts.publish("release", {}, inputs, log_until=max(seen, default=None)) as draft:
        draft.facts |= {"tree_version": tree, "parts": inputs}
    return artifacts.open("release", draft.version)
