"""docs/grpcurl.md as what a shell would make of it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "grpcurl.md"


@dataclass(frozen=True)
class Command:
    """A command of the page.

    Attributes:
        address: HOST:PORT.
        call: SERVICE/METHOD, or empty: it lists or describes.
        symbol: what it describes, if it does.
        data: the payload as JSON, with $names for what the shell fills in.
        printed: what the page says that it prints.
    """

    address: str
    call: str
    symbol: str
    data: str
    printed: str


def commands() -> list[Command]:
    """All of the page, in order."""
    text = PAGE.read_text().replace("\\\n", " ")
    found = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = block.splitlines()
        for at, line in enumerate(lines):
            if line.startswith("grpcurl "):
                printed = [x for x in lines[at + 1 :] if not x.startswith("grpcurl ")]
                found.append(_command(shlex.split(line)[1:], "\n".join(printed)))
    return found


def _command(words: list[str], printed: str) -> Command:
    data = "{}"
    plain = []
    rest = iter(words)
    for word in rest:
        if word == "-d":
            data = next(rest)
        elif not word.startswith("-"):
            plain.append(word)
    address, *what = plain
    if what[0] in ("list", "describe"):
        return Command(address, "", what[-1] if what[0] == "describe" else "", data, printed)
    assert len(what) == 1, words
    return Command(address, what[0], "", data, printed)
