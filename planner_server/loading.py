"""How a release comes to be served by a planner server that runs: checked, opened, in step.

Knows no servicer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from planner_server.live_metrics import LiveMetrics
from planner_server.release import LiveOptions, Serving, open_release
from serendip.artifacts import Artifacts
from serendip.serving.follow import Check, NotYet
from serendip.serving.turns import Turns
from serendip.serving.upstream import OpenUpstream
from serendip.v1 import retriever_pb2, retriever_pb2_grpc

_ASK_S = 2.0


@dataclass(frozen=True)
class Source:
    """What a planner server serves from.

    Attributes:
        catalogue: the data folder whose media live plans may read; None: there is none.
        live: how plans are made live; None: they are not.
        redis: URL of the Redis that has the release's plans; empty: the artefact's file is read.
    """

    artifacts: Path
    catalogue: Path | None = None
    live: LiveOptions | None = field(default_factory=LiveOptions)
    redis: str = ""

    def open(
        self,
        version: str | None = None,
        *,
        verify: bool = True,
        metrics: LiveMetrics | None = None,
    ) -> Serving:
        """Opens a release, the current one by default. Raises SerendipError."""
        return open_release(
            Artifacts(self.artifacts),
            self.catalogue,
            version,
            live=self.live,
            redis=self.redis,
            verify=verify,
            metrics=metrics,
        )

    def to_check(self) -> Source:
        """The same with what it takes to say whether a release can be opened, and no more."""
        if self.live is None:
            return self
        return replace(self, live=replace(self.live, workers=1, keeps=False))

    def encode(self) -> str:
        """As text, for a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def decode(cls, text: str) -> Source:
        """Reads what ``encode`` wrote."""
        said: dict[str, Any] = json.loads(text)
        catalogue, live = said["catalogue"], said["live"]
        return cls(
            Path(said["artifacts"]),
            None if catalogue is None else Path(catalogue),
            None if live is None else LiveOptions(**live),
            said["redis"],
        )


class Loader:
    """Opens releases for a ``Follower``.

    Args:
        retriever: the one that Recommend asks; None: none. A tree that it does not have is not
            served yet.
        metrics: told what live planning does.
    """

    def __init__(
        self,
        source: Source,
        retriever: OpenUpstream | None = None,
        turns: Turns | None = None,
        metrics: LiveMetrics | None = None,
    ) -> None:
        self._source, self._metrics = source, metrics
        self._check = Check("planner_server.check", source.artifacts, source.to_check().encode())
        self._retriever = retriever
        self._turns = turns if turns is not None else Turns()

    def load(self, version: str, serving: Serving) -> Serving:
        """Opens a release.

        Raises:
            NotYet: the retriever does not have its tree.
            SerendipError: it cannot be opened.
        """
        with self._turns.take():
            if self._turns.checked != version:
                self._check.run(version)
                self._turns.checked = version
        tree = Artifacts(self._source.artifacts).manifest("release", version)["inputs"]["tree"]
        if self._retriever is not None and tree != serving.versions.tree_version:
            await_tree(self._retriever, tree)
        with self._turns.take():
            # It was checked, and what is published stays.
            return self._source.open(version, verify=False, metrics=self._metrics)

    def close(self) -> None:
        """Gives up what is being checked."""
        self._check.kill()


def await_tree(retriever: OpenUpstream, tree_version: str) -> None:
    """Raises NotYet unless the retriever has the tree open."""
    address = retriever.address
    with retriever.channel() as channel:
        stub: Any = retriever_pb2_grpc.RetrieverStub
        try:
            info = stub(channel).GetInfo(
                retriever_pb2.RetrieverGetInfoRequest(),
                timeout=_ASK_S,
                wait_for_ready=True,
                metadata=retriever.metadata(),
            )
        except grpc.RpcError as e:
            raise NotYet(f"the retriever at {address} does not answer ({e.code().name})") from e
    if tree_version not in info.tree_versions:
        open_ones = ", ".join(info.tree_versions)
        raise NotYet(f"the retriever at {address} has trees {open_ones}, not {tree_version}")
