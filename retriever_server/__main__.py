"""``python -m retriever_server``: serves the retriever of the current release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serendip.serving.flags import ServerFlags, with_server_flags
from serendip.serving.program import run_server

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_server_flags(port=50052, max_request_mib=4)
def main(
    artifacts: Annotated[Path, typer.Option(help="The folder with the artefacts.")],
    server: ServerFlags,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Most rows run together.")] = 16,
    withhold: Annotated[
        Path | None, typer.Option(help="File of item IDs, one a line, that are never returned.")
    ] = None,
    user_cache: Annotated[
        int, typer.Option(min=0, help="User vectors kept, by history; 0: none. Each about 1 KB.")
    ] = 10_000,
) -> None:
    """Serves the retriever of the current release, and of those that follow it.

    SIGHUP looks at the current release at once. SIGTERM and SIGINT drain, and end with 0. Exits
    with 2, and says why in one line, where it cannot start.
    """

    async def serve(options: ServerOptions, turns: int | None) -> None:
        from retriever_server.app import RetrieverOptions, run

        own = RetrieverOptions(
            artifacts=artifacts,
            max_batch=max_batch,
            user_cache=user_cache,
            poll_s=server.poll_s,
            withhold=withhold,
        )
        await run(own, replace(options, refuses_late=True), turns)

    raise typer.Exit(run_server("retriever_server", server, serve))


if __name__ == "__main__":
    app()
