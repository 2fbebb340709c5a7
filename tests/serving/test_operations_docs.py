"""What docs/operations.md tells an operator to type does what it says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import in_thread

from serendip.serving.flags import ServerFlags
from serendip.serving.server import ServerOptions
from serendip.serving.tls import TlsFiles

sys.path.append(str(Path(__file__).parents[1] / "clients"))
import toy_tiers

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_flag_stands_in_the_table_with_its_default() -> None:
    section = PAGE.partition("\n## Flags\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", section, re.MULTILINE)
    table = {flag: said for flags, said in rows for flag in re.findall(r"`(--[a-z-]+)`", flags)}
    for field in dataclasses.fields(ServerFlags):
        if field.name in ("worker", "turns"):
            continue
        said = table[f"--{field.name.replace('_', '-')}"]
        if field.name != "port" and field.default not in (None, ""):
            assert str(field.default) in said, field.name


def test_the_commands_make_what_the_client_s_code_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates, tokens = blocks("bash")
    for commands in (certificates, tokens):
        subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    (code,) = blocks("python")
    for name in ("planner", "retriever"):
        TlsFiles(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / "ca.pem").read()
    tls = TlsFiles(tmp_path / "planner.pem", tmp_path / "planner.key", tmp_path / "ca.pem")
    options = ServerOptions(tls=tls, tokens=tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    with in_thread(toy_tiers.Tiers().planner_services, options) as running:
        names: dict[str, Any] = {}
        local = code.replace("localhost:50051", f"localhost:{running.port}")
        exec(compile(local, "operations.md", "exec"), names)
        client = names["client"]
        (row,) = client.plan(["a"])
        assert row.require().clusters
        client.close()
