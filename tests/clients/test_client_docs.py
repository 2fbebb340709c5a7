"""The code of docs/client.md runs, in its order, against toys of both tiers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from running import in_thread
from serendip_client import SerendipClient
from serendip_client.retries import SERVICE_CONFIG
from toy_tiers import Tiers

from serendip.serving.server import ServerOptions
from serendip.serving.tls import TlsFiles

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the page's addresses become; the authority's certificate is ca.pem in the folder."""
    tiers = Tiers()
    authority = Authority.make(tmp_path)
    tls = TlsFiles(*authority.certify("server"))
    with (
        in_thread(tiers.planner_services) as planner,
        in_thread(tiers.retriever_services) as retriever,
        in_thread(Tiers().planner_services, ServerOptions(host="localhost", tls=tls)) as safe,
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
