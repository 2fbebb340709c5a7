"""The file of bearer tokens: who may call. Knows no gRPC.

# NAME TOKEN, one a line; a name may stand twice, while its token is being replaced
ranking   5f1c6a...
ranking   b20d9e...
reports   91ab77...
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serendip.core import InvalidRequest
from serendip.serving.watched_file import read_file

MIN_TOKEN = 16  # characters: fewer can be guessed
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")  # what RFC 6750 allows
_REMEDY = "One 'NAME TOKEN' a line; `openssl rand -hex 32` makes a token."


@dataclass(frozen=True)
class Tokens:
    """Whose token is whose. The tokens themselves are not kept, their SHA-256 is."""

    _by_digest: Mapping[bytes, tuple[bytes, str]] = field(repr=False)

    @property
    def names(self) -> frozenset[str]:
        """All clients' names."""
        return frozenset(name for _, name in self._by_digest.values())

    def name_of(self, token: str) -> str | None:
        """The client that has the token; in a time that tells nothing of any token."""
        digest = _digest(token)
        # Where a digest leads in the table says nothing of the token that it was made from.
        found = self._by_digest.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]


def read_tokens(path: Path, flag: str = "--tokens") -> Tokens:
    """Reads a file of tokens.

    Raises:
        InvalidRequest: it cannot be read, has no token, or a line is none; names the line and
            never what stands in it.
    """
    by_digest: dict[bytes, tuple[bytes, str]] = {}
    for number, line in enumerate(_lines(path, flag), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        problem = _problem(words)
        if not problem:
            digest = _digest(words[1])
            if by_digest.setdefault(digest, (digest, words[0]))[1] != words[0]:
                problem = "has the token of another client"
        if problem:
            raise InvalidRequest(
                f"line {number} {problem}", field=flag, value=str(path), remedy=_REMEDY
            )
    if not by_digest:  # cut off while it is written, more likely than meant
        raise InvalidRequest("has no token", field=flag, value=str(path), remedy=_REMEDY)
    return Tokens(by_digest)


def read_token(path: Path, flag: str) -> str:
    """Reads the one token of a file: its only line, or that line's second word.

    Raises:
        InvalidRequest: as ``read_tokens``.
    """
    lines = [words for line in _lines(path, flag) if (words := line.split())]
    lines = [words for words in lines if not words[0].startswith("#")]
    if len(lines) != 1 or len(lines[0]) > 2 or not _TOKEN.fullmatch(lines[0][-1]):
        raise InvalidRequest(
            "must have one line with one token",
            field=flag,
            value=str(path),
            remedy="Write the token, or NAME TOKEN as the other server's file has it.",
        )
    return lines[0][-1]


def _lines(path: Path, flag: str) -> list[str]:
    try:
        return read_file(path, flag, _REMEDY).decode("ascii").splitlines()
    except UnicodeDecodeError:
        # Not chained: it shows the bytes.
        raise InvalidRequest("is not ASCII", field=flag, value=str(path), remedy=_REMEDY) from None


def _problem(words: list[str]) -> str:
    """What is wrong with a line; empty if nothing is."""
    if len(words) != 2:
        return f"has {len(words)} words"
    if not _NAME.fullmatch(words[0]):
        return "has a name that is not 1 to 64 letters, digits, dots, - or _"
    if len(words[1]) < MIN_TOKEN:
        return f"has a token of fewer than {MIN_TOKEN} characters"
    if not _TOKEN.fullmatch(words[1]):
        return "has a token with characters that no header takes"
    return ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
