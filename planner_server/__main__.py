"""``python -m planner_server``: serves the plans, and the planner, of the current release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serendip.serving.flags import ServerFlags, with_server_flags
from serendip.serving.program import run_server

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_RETRIEVER = "How the retriever is called"
_LIVE = "How plans are made live"


@app.command()
@with_server_flags(port=50051)
def main(
    artifacts: Annotated[Path, typer.Option(help="The folder with the artefacts.")],
    server: ServerFlags,
    catalogue: Annotated[
        Path | None, typer.Option(help="The data folder whose media live plans may read.")
    ] = None,
    retriever: Annotated[
        str, typer.Option(help="HOST:PORT of a retriever server: serves Recommend as well.")
    ] = "",
    retriever_tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of authorities: the retriever is called by TLS, and must show a "
            "certificate of one.",
            rich_help_panel=_RETRIEVER,
        ),
    ] = None,
    retriever_tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the certificate that it is shown (mTLS).", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    retriever_tls_key: Annotated[
        Path | None,
        typer.Option(help="PEM file of its private key.", rich_help_panel=_RETRIEVER),
    ] = None,
    retriever_token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that it is called with.", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option(help="Plan live what the store does not have; each worker by itself.")
    ] = True,
    live_workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            help="Processes that plan live, a model each; of each worker.",
            rich_help_panel=_LIVE,
        ),
    ] = 1,
    live_runtime: Annotated[
        Literal["auto", "onnx", "torch"],
        typer.Option(
            help="Of the live model; auto: ONNX Runtime where it has been exported.",
            rich_help_panel=_LIVE,
        ),
    ] = "auto",
    live_threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of each live model; unset: as it was trained with.", rich_help_panel=_LIVE
        ),
    ] = None,
    live_store: Annotated[
        bool,
        typer.Option(
            help="Keep live plans for later calls and the next serendip plan.",
            rich_help_panel=_LIVE,
        ),
    ] = True,
    redis: Annotated[
        str, typer.Option(help="URL of the Redis to look plans up in, in place of the file.")
    ] = "",
) -> None:
    """Serves the planner of the current release, and of those that follow it.

    SIGHUP looks at the current release at once. SIGTERM and SIGINT drain, and end with 0. Exits
    with 2, and says why in one line, where it cannot start.
    """

    async def serve(options: ServerOptions, turns: int | None) -> None:
        from planner_server.app import run
        from planner_server.loading import Source
        from planner_server.release import LiveOptions
        from serendip.serving.tls import TlsFiles
        from serendip.serving.upstream import Upstream

        tls = TlsFiles(
            retriever_tls_cert,
            retriever_tls_key,
            retriever_tls_ca,
            prefix="--retriever-tls",
            ca_flag="--retriever-tls-ca",
        )
        upstream = Upstream(retriever, tls, retriever_token_file)
        how = LiveOptions(live_workers, live_runtime, live_threads, live_store) if live else None
        source = Source(artifacts, catalogue, how, redis)
        await run(source, upstream, server.poll_s, options, turns)

    raise typer.Exit(run_server("planner_server", server, serve))


if __name__ == "__main__":
    app()
