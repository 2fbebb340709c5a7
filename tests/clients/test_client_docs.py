"""The code of docs/client.md runs, in its order, against toys of both tiers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import in_thread
from serendip_client import SerendipClient
from serendip_client.retries import SERVICE_CONFIG
from toy_tiers import Tiers

from serendip.serving.server import ServerOptions

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[bytes, bytes]:
    """(private key, certificate) of localhost, signed by itself; ca.pem is the certificate."""
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", "key.pem", "-out", "ca.pem", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr.decode()
    return (tmp_path / "key.pem").read_bytes(), (tmp_path / "ca.pem").read_bytes()


@pytest.fixture
def addresses(certificate: tuple[bytes, bytes]) -> Iterator[dict[str, str]]:
    """What the page's addresses become."""
    tiers = Tiers()
    credentials = grpc.ssl_server_credentials([certificate])
    with (
        in_thread(tiers.planner_services) as planner,
        in_thread(tiers.retriever_services) as retriever,
        in_thread(
            Tiers().planner_services, ServerOptions(host="localhost", credentials=credentials)
        ) as safe,
    ):
        yield {
            "127.0.0.1:50051": planner.address,
            "127.0.0.1:50052": retriever.address,
            "planner.example:50051": safe.address,
        }


def test_the_page_runs(
    addresses: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cover.jpg").write_bytes(b"jpeg")
    names: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        for address, there in addresses.items():
            block = block.replace(address, there)
        exec(compile(block, f"docs/client.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "k: must lie in 1 to 1000" in said
    assert "(4, None)" in said
    assert SERVICE_CONFIG in said
    assert "[5, 5]" in said


def test_the_page_has_every_method() -> None:
    methods = {name for name in dir(SerendipClient) if not name.startswith("_")}
    code = "".join(BLOCKS)
    assert {name for name in methods if f".{name}(" not in code} == set()
