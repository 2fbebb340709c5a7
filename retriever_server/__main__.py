"""``python -m retriever_server``: serves the retriever of the current release."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    artifacts: Annotated[Path, typer.Option(help="The folder with the artefacts.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for gRPC; 0: any free one.")] = 50052,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; 0: any free one; unset: none.")
    ] = None,
    user_cache: Annotated[
        int, typer.Option(min=0, help="User vectors kept, by history; 0: none. Each about 1 KB.")
    ] = 10_000,
) -> None:
    """Serves the retriever of the current release until SIGTERM or SIGINT.

    Exits with 2, and says why in one line, where it cannot start.
    """
    # One process a core: read by numpy's BLAS when it is loaded, hence before the imports.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from retriever_server.release import open_release
    from retriever_server.service import serve_until_signal
    from serendip.artifacts import Artifacts
    from serendip.core import SerendipError
    from serendip.serving.server import ServerOptions

    options = ServerOptions(host=host, port=port, metrics_port=metrics_port)
    try:
        serving = open_release(Artifacts(artifacts), user_cache=user_cache)
        asyncio.run(serve_until_signal(serving, options))
    except SerendipError as e:
        print(f"retriever_server: {e}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
