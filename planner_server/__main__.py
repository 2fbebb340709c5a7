"""``python -m planner_server``: serves the plans, and the planner, of the current release."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    artifacts: Annotated[Path, typer.Option(help="The folder with the artefacts.")],
    catalogue: Annotated[
        Path | None, typer.Option(help="The data folder whose media live plans may read.")
    ] = None,
    retriever: Annotated[
        str, typer.Option(help="HOST:PORT of a retriever server: serves Recommend as well.")
    ] = "",
    live: Annotated[bool, typer.Option(help="Plan live what the store does not have.")] = True,
    redis: Annotated[
        str, typer.Option(help="URL of the Redis to look plans up in, in place of the file.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for gRPC; 0: any free one.")] = 50051,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; 0: any free one; unset: none.")
    ] = None,
    poll_s: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks at the current release.")
    ] = 1,
) -> None:
    """Serves the planner of the current release, and of those that follow it.

    SIGHUP looks at the current release at once. SIGTERM and SIGINT drain, and end with 0. Exits
    with 2, and says why in one line, where it cannot start.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the libraries are loaded
    from planner_server.app import run
    from planner_server.loading import Source
    from serendip.core import SerendipError
    from serendip.serving.server import ServerOptions

    options = ServerOptions(host=host, port=port, metrics_port=metrics_port)
    try:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        source = Source(artifacts, catalogue, live, redis)
        asyncio.run(run(source, retriever, poll_s, options))
    except SerendipError as e:
        print(f"planner_server: {e}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
