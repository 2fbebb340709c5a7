"""Writes docs/cli.md: the help of every command, as it is asked for with --help.

python examples/cli_docs.py        (./build.sh docs)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from planner_server.__main__ import app as planner_server
from retriever_server.__main__ import app as retriever_server
from serendip.cli import app as serendip

PATH = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100
COMMANDS = (
    ("serendip", serendip),
    ("python -m planner_server", planner_server),
    ("python -m retriever_server", retriever_server),
)
INTRODUCTION = """# The commands

What `--help` prints, {width} columns wide. Made by `./build.sh docs`; a test holds it to the code.
Every verb of `serendip` reads one TOML or the built-in `tiny` (`--config`), prints what it made to
standard output and everything else to standard error. A mistake is one line, and exit code 2.
"""


def text() -> str:
    """The page."""
    sections = [section for name, app in COMMANDS for section in _sections(name, app)]
    return "\n".join([INTRODUCTION.format(width=WIDTH), *sections])


def _sections(name: str, app: typer.Typer) -> Iterator[str]:
    for path, depth, said in _helps(typer.main.get_command(app), name):
        yield f"{'#' * (depth + 2)} {path}\n\n```\n{said}\n```\n"


def _helps(
    command: Any, name: str, parent: Any = None, depth: int = 0
) -> Iterator[tuple[str, int, str]]:
    """(the command as it is typed, its depth, its help) of a command and all below it."""
    command.rich_markup_mode = None  # no frames and no colours
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield context.command_path, depth, command.get_help(context).rstrip()
    for below in getattr(command, "commands", {}).values():
        if not below.hidden:
            yield from _helps(below, below.name, context, depth + 1)


if __name__ == "__main__":
    PATH.write_text(text())
    print(PATH)
