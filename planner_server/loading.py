"""How a release comes to be served by a planner server that runs: checked, opened, in step.

Knows no servicer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from planner_server.release import Serving, open_release
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
        live: whether the model is opened.
        redis: URL of the Redis that has the release's plans; empty: the artefact's file is read.
    """

    artifacts: Path
    catalogue: Path | None = None
    live: bool = True
    redis: str = ""

    def open(self, version: str | None = None, *, verify: bool = True) -> Serving:
        """Opens a release, the current one by default, and warms it up. Raises SerendipError."""
        serving = open_release(
            Artifacts(self.artifacts),
            self.catalogue,
            version,
            live=self.live,
            redis=self.redis,
            verify=verify,
        )
        if serving.live is not None:
            serving.live.warm()
        return serving

    def encode(self) -> str:
        """As text, for a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def decode(cls, text: str) -> Source:
        """Reads what ``encode`` wrote."""
        said: dict[str, Any] = json.loads(text)
        catalogue = said["catalogue"]
        return cls(
            Path(said["artifacts"]),
            None if catalogue is None else Path(catalogue),
            said["live"],
            said["redis"],
        )


class Loader:
    """Opens releases for a ``Follower``.

    Args:
        retriever: the one that Recommend asks; None: none. A tree that it does not have is not
            served yet.
    """

    def __init__(
        self,
        source: Source,
        retriever: OpenUpstream | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._source = source
        self._check = Check("planner_server.check", source.artifacts, source.encode())
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
            return self._source.open(version, verify=False)  # checked, and what is published stays

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
