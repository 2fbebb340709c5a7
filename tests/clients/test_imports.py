"""The client is a bare install: gRPC, protobuf, core and the stubs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "av",
    "duckdb",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "lmdb",
    "onnx",
    "onnxruntime",
    "PIL",
    "prometheus_client",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "sentencepiece",
    "sklearn",
    "torch",
    "transformers",
    "typer",
)
# None in sys.modules makes an import fail as if nothing were installed; grpc itself looks for some
# of them, and does without.
PROGRAM = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
import serendip_client
client = serendip_client.SerendipClient("127.0.0.1:1", "127.0.0.1:2", timeout_s=0.01)
try:
    client.plan(["a"])
except serendip_client.SerendipError:
    pass
else:
    sys.exit("a call to nobody was answered")
print(*sys.modules)
"""


def test_the_client_needs_nothing_that_a_bare_install_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *HEAVY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name.startswith("serendip.")}
    assert {name for name in loaded if not name.startswith("serendip.v1")} == {
        "serendip.core",
        "serendip.wire",
        "serendip.wire_bytes",
        "serendip.wire_filters",
        "serendip.wire_plans",
        "serendip.wire_recommend",
    }
