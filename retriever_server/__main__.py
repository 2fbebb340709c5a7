"""``python -m retriever_server``: serves the retriever of the current release."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
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
        int | None,
        typer.Option(
            help="Port of /metrics; worker n has it + n; 0: any free one each; unset: none."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the port: one a core.")
    ] = 1,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Most rows run together.")] = 16,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Calls a process works on at a time; more are refused.")
    ] = 256,
    max_pending: Annotated[
        int, typer.Option(min=1, help="Calls that may wait before a process has looked at them.")
    ] = 1024,
    max_streams: Annotated[
        int, typer.Option(min=1, help="Calls that one connection may have open at a time.")
    ] = 200,
    max_connections: Annotated[
        int | None, typer.Option(min=1, help="Connections a process takes; unset: any number.")
    ] = None,
    connection_age_s: Annotated[
        float | None,
        typer.Option(min=1, help="Age at which a connection is renewed, seconds; unset: never."),
    ] = None,
    max_request_mib: Annotated[float, typer.Option(min=0.01, help="Largest request, MiB.")] = 4,
    keepalive_s: Annotated[
        float, typer.Option(min=1, help="Silence after which a connection is probed, seconds.")
    ] = 60,
    lame_s: Annotated[
        float, typer.Option(min=0, help="Seconds of NOT_SERVING before a stop takes no more calls.")
    ] = 0,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds that calls in flight get to end in at a stop.")
    ] = 10,
    poll_s: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks at the current release.")
    ] = 1,
    withhold: Annotated[
        Path | None, typer.Option(help="File of item IDs, one a line, that are never returned.")
    ] = None,
    user_cache: Annotated[
        int, typer.Option(min=0, help="User vectors kept, by history; 0: none. Each about 1 KB.")
    ] = 10_000,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    turns: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serves the retriever of the current release, and of those that follow it.

    SIGHUP looks at the current release at once. SIGTERM and SIGINT drain, and end with 0. Exits
    with 2, and says why in one line, where it cannot start.
    """
    # One process a core: read by numpy's BLAS when it is loaded, hence before the imports.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from serendip.core import SerendipError
    from serendip.serving.supervisor import Workers, end_with_parent, supervise

    try:
        if workers > 1 and worker is None:
            with tempfile.TemporaryFile() as file:
                descriptor = file.fileno()
                own = [sys.executable, "-m", "retriever_server", *sys.argv[1:]]
                kept = Workers(
                    name="retriever",
                    command=(*own, "--turns", str(descriptor)),
                    count=workers,
                    host=host,
                    port=port,
                    metrics_port=metrics_port,
                    stop_s=lame_s + grace_s + 20,
                    inherited=(descriptor,),
                )
                raise typer.Exit(supervise(kept))
        if worker is not None:
            end_with_parent()
        from retriever_server.app import RetrieverOptions, run
        from serendip.serving.server import ServerOptions

        options = RetrieverOptions(
            artifacts=artifacts,
            max_batch=max_batch,
            user_cache=user_cache,
            poll_s=poll_s,
            withhold=withhold,
        )
        server_options = ServerOptions(
            host=host,
            port=port,
            metrics_port=metrics_port,
            max_request_bytes=round(max_request_mib * (1 << 20)),
            max_in_flight=max_in_flight,
            refuses_late=True,
            max_pending=max_pending,
            max_streams=max_streams,
            max_connections=max_connections,
            connection_age_s=connection_age_s,
            keepalive_s=keepalive_s,
            grace_s=grace_s,
            lame_s=lame_s,
            reuse_port=worker is not None,
        )
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        asyncio.run(run(options, server_options, turns))
    except SerendipError as e:
        print(f"retriever_server: {e}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
