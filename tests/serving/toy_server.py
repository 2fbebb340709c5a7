"""``python -m toy_server``: the toy, started by the flags that both servers have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import toy
import typer

from serendip.serving.flags import ServerFlags, with_server_flags
from serendip.serving.program import run_server

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_server_flags(max_in_flight=256)
def main(server: ServerFlags) -> None:
    async def serve(options: ServerOptions, turns: int | None) -> None:
        from serendip.serving.server import serve_until_signal

        await serve_until_signal("toy", toy.Toy().services(), options)

    raise typer.Exit(run_server("toy_server", server, serve))


if __name__ == "__main__":
    app()
