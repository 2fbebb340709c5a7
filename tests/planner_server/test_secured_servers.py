"""Both real servers by their flags: mTLS, tokens that are rotated, logs, and one trace."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from faults import until
from prometheus_client import CollectorRegistry
from running import in_thread, replace_file
from serendip_client import InvalidRequest, NotReady, SerendipClient, Unauthenticated
from small import SmallWorld

from planner_server.loading import await_tree
from serendip.core import PlanSource
from serendip.curation.curate import read_pairs
from serendip.local import ServerProcess, start_server
from serendip.serving.follow import NotYet
from serendip.serving.server import ServerOptions
from serendip.serving.tls import TlsFiles
from serendip.serving.upstream import Upstream
from serendip.v1 import recommender_pb2, recommender_pb2_grpc

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("serving", "clients")]
from certificates import Authority
from collector import Collector, collector
from toy_tiers import TREE, Tiers

APP, TIER, TIER_NEW = "app-token-0123456789", "tier-token-0123456789", "tier-token-9876543210"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass(frozen=True)
class Secured:
    folder: Path
    authority: Authority
    planner: ServerProcess
    retriever: ServerProcess
    spans: Collector
    stored: str
    history: list[str]

    def client(self, certificate: str | None = "app", token: str | None = APP) -> SerendipClient:
        return SerendipClient(
            self.planner.address,
            self.retriever.address,
            timeout_s=20,
            credentials=self.authority.credentials(certificate),
            token=token,
        )


@pytest.fixture(scope="module")
def secured(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority.make(folder / "authority")
    for name in ("planner", "retriever", "app"):
        authority.certify(name)

    def pem(name: str, flag: str = "--tls") -> list[str]:
        cert, key = (str(authority.folder / f"{name}{end}") for end in (".pem", ".key"))
        return [f"{flag}-cert", cert, f"{flag}-key", key]

    (folder / "tokens").write_text(f"app {APP}\n")
    (folder / "tier").write_text(f"app {APP}\nplanner {TIER}\n")
    (folder / "own").write_text(f"{TIER}\n")
    ca = str(authority.ca)
    corpus = read_pairs(small_world.artifacts.current("pairs"), "corpus")
    stored, *history = corpus.column("item_id").to_pylist()[:9]
    with collector() as spans, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds, for 5 s
        shared = ["--artifacts", str(small_world.config.artifacts_path), "--port", "0"]
        shared += ["--metrics-port", "0", "--tls-client-ca", ca, "--otlp", spans.address]
        shared += ["--log-format", "json", "--log-calls", "all"]
        retriever = start_server(
            "retriever_server",
            *(*shared, *pem("retriever"), "--tokens", str(folder / "tier")),
            log=folder / "retriever.log",
        )
        reached = [*pem("planner", "--retriever-tls"), "--retriever-tls-ca", ca]
        reached += ["--retriever", retriever.address, "--retriever-token-file", str(folder / "own")]
        try:
            planner = start_server(
                "planner_server",
                *(*shared, *pem("planner"), "--tokens", str(folder / "tokens"), *reached),
                *("--no-live", "--workers", "2"),
                log=folder / "planner.log",
            )
        except BaseException:
            retriever.stop()
            raise
        try:
            yield Secured(folder, authority, planner, retriever, spans, stored, history)
        finally:
            codes = [planner.stop(), retriever.stop()]
        assert codes == [0, 0]


def test_a_client_with_both_is_answered_by_both(secured: Secured) -> None:
    with secured.client() as client:
        (row,) = client.plan([secured.stored])
        assert row.source is PlanSource.STORE
        for via in ("server", "client"):
            answer = client.recommend(secured.history, secured.stored, 5, via=via)
            assert len(answer.candidates) == 5
        assert client.retriever_info().item_count > 100


def test_without_the_one_or_the_other_neither_answers(secured: Secured) -> None:
    for certificate, token, error in (
        ("app", None, Unauthenticated),
        ("app", TIER_NEW, Unauthenticated),
        (None, APP, NotReady),
    ):
        with secured.client(certificate, token) as client:
            with pytest.raises(error):
                client.plan([secured.stored])
            with pytest.raises(error):
                client.retriever_info()


def test_the_token_between_the_servers_is_rotated_while_they_serve(secured: Secured) -> None:
    def recommended() -> bool:
        try:
            return bool(client.recommend([], secured.stored, 5).candidates)
        except NotReady:
            return False

    with secured.client() as client:
        assert recommended()
        replace_file(secured.folder / "tier", f"app {APP}\nplanner {TIER_NEW}\n")
        until(lambda: not recommended())
        # Not Unauthenticated: the caller's own token is good.
        with pytest.raises(NotReady, match="--retriever-token-file"):
            client.recommend([], secured.stored, 5)
        replace_file(secured.folder / "own", f"{TIER_NEW}\n")
        # Its workers each read the file: whichever has this connection.
        until(recommended)
    # And whichever has another one, for the tests that follow.
    for _ in range(8):
        with secured.client() as client:
            until(recommended)


def test_one_request_is_one_trace_and_one_id_in_both_logs(secured: Secured) -> None:
    credentials = secured.authority.credentials("app")
    metadata = [
        ("authorization", f"Bearer {APP}"),
        ("x-request-id", "one-request"),
        ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),
    ]
    with grpc.secure_channel(secured.planner.address, credentials) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        request = recommender_pb2.RecommendRequest(context_item_id=secured.stored, k=5)
        for item in secured.history:
            request.history.add(item_id=item)
        _, ended = stub.Recommend.with_call(request, timeout=20, metadata=metadata)
    assert dict(ended.trailing_metadata())["x-request-id"] == "one-request"

    def spans() -> list[tuple[str, str]]:
        return [(s.service, s.name) for s in secured.spans.spans if s.trace == TRACE]

    until(lambda: len(spans()) == 2)
    assert set(spans()) == {
        ("serendip-planner", "serendip.v1.Recommender/Recommend"),
        ("serendip-retriever", "serendip.v1.Retriever/Retrieve"),
    }
    first, second = sorted(
        (s for s in secured.spans.spans if s.trace == TRACE), key=lambda s: s.service
    )
    assert second.parent == first.span

    def line(log: str) -> dict[str, object]:
        lines = [json.loads(x) for x in (secured.folder / log).read_text().splitlines()]
        (found,) = (x for x in lines if x.get("request_id") == "one-request")
        return {key: found[key] for key in ("method", "code", "client", "peer")}

    until(lambda: "one-request" in (secured.folder / "planner.log").read_text())
    assert line("planner.log") == {
        "method": "/serendip.v1.Recommender/Recommend",
        "code": "OK",
        "client": "app",
        "peer": "127.0.0.1",
    }
    assert line("retriever.log") == {
        "method": "/serendip.v1.Retriever/Retrieve",
        "code": "OK",
        "client": "planner",
        "peer": "127.0.0.1",
    }


def test_no_log_has_a_token_or_an_item(secured: Secured) -> None:
    with secured.client() as client:
        client.plan([secured.stored, "nobody"])
        client.recommend(secured.history, secured.stored, 5)
        tree = client.retriever_info().tree_versions[0]
        with pytest.raises(InvalidRequest, match="nobody-s-item"):
            client.retrieve(
                ["nobody-s-item"], [0], tree_version=tree, k=3, require_known_history=True
            )
    until(lambda: "INVALID_ARGUMENT" in (secured.folder / "retriever.log").read_text())
    for log in ("planner.log", "retriever.log"):
        said = (secured.folder / log).read_text()
        assert len(said.splitlines()) > 3
        for secret in (APP, TIER, TIER_NEW, "Bearer", "nobody", "PRIVATE"):
            assert secret not in said, log
        assert not re.search(r"\bi\d{5}\b", said), "an item"
        assert all(json.loads(line) for line in said.splitlines())


def test_a_planner_asks_for_the_tree_with_its_certificate_and_token(tmp_path: Path) -> None:
    authority, tiers = Authority.make(tmp_path / "authority"), Tiers()
    cert, key = authority.certify("retriever")
    planner_cert, planner_key = authority.certify("planner")
    (tmp_path / "tokens").write_text(f"planner {TIER}\n")
    (tmp_path / "own").write_text(TIER)
    options = ServerOptions(tls=TlsFiles(cert, key, authority.ca), tokens=tmp_path / "tokens")
    tls = TlsFiles(planner_cert, planner_key, authority.ca)
    with in_thread(tiers.retriever_services, options) as running:
        good = Upstream(running.address, tls, tmp_path / "own").open(CollectorRegistry())
        bad = Upstream(running.address, tls).open(CollectorRegistry())
        assert good is not None
        assert bad is not None
        await_tree(good, TREE)
        with pytest.raises(NotYet, match=f"has trees {TREE}, not 0000"):
            await_tree(good, "0" * 12)
        with pytest.raises(NotYet, match=r"does not answer.*UNAUTHENTICATED"):
            await_tree(bad, TREE)
