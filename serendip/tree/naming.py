"""Descriptions from elsewhere: a user's table, or what a text-generation checkpoint answers.

Knows no vectors; what it cannot use, the descriptions by words stand in for.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from serendip.config import TreeConfig
from serendip.core import InvalidData
from serendip.progress import progress
from serendip.tree.cluster_tree import ROOT, ClusterTree, Nodes, normal_form
from serendip.tree.describe import Described

MAX_CHARS = 120  # of a description
_TITLES = 6
_TITLE_CHARS = 80
_NAME_WORDS = 8  # of an answer
_WORDS = 8
_MAX_TABLE_BYTES = 256 << 20

Generate = Callable[[Sequence[str]], Iterator[str]]


def name_nodes(
    config: TreeConfig, tree: ClusterTree, by_words: Described, title_of: Mapping[str, str]
) -> tuple[list[str], dict[str, int]]:
    """(M descriptions by the configured way, how many nodes came by which).

    Args:
        tree: its descriptions are not read.
        title_of: titles by item ID.

    Raises:
        InvalidData: the table is not one of this tree's nodes.
        InvalidRequest: the checkpoint cannot be loaded.
    """
    nodes = tree.nodes
    if config.descriptions == "table":
        path = Path(config.descriptions_path)
        texts, named = read_descriptions(path, nodes, by_words.texts)
        return texts, {"table": named, "words": len(nodes) - 1 - named}
    if config.descriptions == "llm":
        from serendip.tree.generate import Generator  # loads torch

        generate = Generator(Path(config.llm), config.llm_batch)
        titles = [
            [title_of[tree.item_ids[rank]] for rank in _spread(*tree.slice(node), _TITLES)]
            for node in range(len(nodes))
        ]
        texts, outcome = describe_by_llm(nodes, by_words, titles, generate)
        return texts, dict(outcome)
    return by_words.texts, {"words": len(nodes) - 1}


def _spread(start: int, end: int, most: int) -> list[int]:
    """At most so many ranks of a slice, evenly spread."""
    count = min(most, end - start)
    return [start + (2 * i + 1) * (end - start) // (2 * count) for i in range(count)]


# --- a user's table --------------------------------------------------------------------------


def read_descriptions(path: Path, nodes: Nodes, otherwise: Sequence[str]) -> tuple[list[str], int]:
    """Descriptions by a parquet or CSV table: node_id or path, and description.

    A path is a node's place below the root, child by child from 0: ``1/0/3``. A level that the
    table names must be there as a whole; other levels keep their text.

    Args:
        nodes: the tree (its descriptions are not read).
        otherwise: M texts, for the levels that the table does not name.

    Returns:
        M texts, and how many of them are the table's.

    Raises:
        InvalidData: the table cannot be read, or a row is wrong: a node that is not there or is
            named twice, a text that is empty, too long or another's of its level.
    """
    table = _read_table(path)
    key = next((k for k in ("node_id", "path") if k in table.column_names), None)
    if key is None or "description" not in table.column_names:
        raise InvalidData(
            "needs the columns node_id or path, and description", field=path.name,
            value=", ".join(table.column_names), remedy="Name them so in the header.",
        )  # fmt: skip
    texts = list(otherwise)
    row_of: dict[int, int] = {}
    text_of: dict[tuple[int, str], int] = {}
    keys, given = (table.column(c).to_pylist() for c in (key, "description"))
    for row, (name, text) in enumerate(zip(keys, given, strict=True)):
        node = _node(name, key, nodes, path, row)
        if node in row_of:
            raise _wrong(
                f"names a node a second time (first in row {row_of[node]})", path, key, row, name
            )
        row_of[node] = row
        text = " ".join(str("" if text is None else text).split())
        if not text or not normal_form(text):
            raise _wrong("must not be empty", path, "description", row, text)
        if len(text) > MAX_CHARS:
            raise _wrong(
                f"must have at most {MAX_CHARS} characters", path, "description", row, text
            )
        if any(unicodedata.category(c) == "Cc" for c in text):
            raise _wrong("holds a control character", path, "description", row, text)
        same = text_of.setdefault((int(nodes.level[node]), normal_form(text)), row)
        if same != row:
            raise _wrong(f"is row {same}'s, of the same level", path, "description", row, text)
        texts[node] = text
    for level in {int(nodes.level[node]) for node in row_of}:
        missing = [node for node in nodes.at_level(level) if node not in row_of]
        if missing:
            raise InvalidData(
                f"lacks {len(missing)} nodes of level {level}, first node {missing[0]}",
                field=f"{path.name}:{key}",
                remedy="A level must be there as a whole, or not at all.",
            )
    return texts, len(row_of)


def _read_table(path: Path) -> pa.Table:
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise InvalidData("is too large", field=str(path))
        if path.suffix == ".csv":
            text = pa.csv.ConvertOptions(
                column_types={"path": pa.string(), "description": pa.string()},
                strings_can_be_null=False,
            )
            return pa.csv.read_csv(path, convert_options=text)
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise InvalidData(
            f"cannot be read ({e})", field="tree.descriptions_path", value=str(path),
            remedy="Name a .parquet or .csv file.",
        ) from e  # fmt: skip


def _node(name: object, key: str, nodes: Nodes, path: Path, row: int) -> int:
    if key == "node_id":
        if isinstance(name, int) and ROOT < name < len(nodes):
            return name
    elif isinstance(name, str) and re.fullmatch(r"[0-9]{1,9}(/[0-9]{1,9}){0,3}", name):
        node = ROOT
        for step in map(int, name.split("/")):
            children = nodes.children(node)
            if step >= len(children):
                break
            node = children[step]
        else:
            return node
    raise _wrong("names no node of the tree below the root", path, key, row, name)


def _wrong(message: str, path: Path, column: str, row: int, value: object) -> InvalidData:
    return InvalidData(
        message, field=f"{path.name}:{column}", row=row, value=value, remedy="Mend the row."
    )


# --- a checkpoint's answers ------------------------------------------------------------------


def describe_by_llm(
    nodes: Nodes, by_words: Described, titles: Sequence[Sequence[str]], generate: Generate
) -> tuple[list[str], Counter[str]]:
    """Descriptions by what a language model answers to prompts/describe.txt.

    Level after level, so that a prompt can name the parent. An answer that is empty, has no letters
    or is another's of its level beyond help gives way to the description by words.

    Args:
        nodes: the tree (its descriptions are not read).
        by_words: what stands in.
        titles: some titles of each of the M nodes.
        generate: answers to prompts, in order.

    Returns:
        M texts, unique within a level, and how many are ``answered``, ``told_apart`` (a word was
        added to an answer that was another's) and ``words``.
    """
    template = (files("serendip.tree") / "prompts" / "describe.txt").read_text()
    texts, outcome = list(by_words.texts), Counter(answered=0, told_apart=0, words=0)
    with progress("descriptions", len(nodes) - 1) as tick:
        for level in range(1, int(nodes.level.max()) + 1):
            here = nodes.at_level(level)
            prompts = [
                template.format(
                    parent=texts[nodes.parent[node]] or "the whole catalogue",
                    words=", ".join(by_words.words[node][:_WORDS]) or "-",
                    titles="\n".join(
                        f"- {_one_line(t)[:_TITLE_CHARS]}" for t in titles[node][:_TITLES]
                    ),
                )
                for node in here
            ]
            # What may have to stand in is taken from the start.
            used = {normal_form(by_words.texts[node]) for node in here}
            for node, answer in zip(here, generate(prompts), strict=True):
                text = clean(answer)
                how = "answered"
                if text and normal_form(text) in used:
                    added = (f"{text} ({word})" for word in by_words.words[node][:_WORDS])
                    text = next((t for t in added if normal_form(t) not in used), "")
                    how = "told_apart"
                if not text or len(text) > MAX_CHARS:
                    how = "words"
                else:
                    texts[node] = text
                    used.add(normal_form(text))
                outcome[how] += 1
                tick()
    return texts, outcome


def clean(answer: str) -> str:
    """The name in an answer: the first words of its first line with letters; "" if there is none.

    >>> clean('**Name:** "Sourdough and rye."')
    'Sourdough and rye'
    """
    for line in answer.splitlines():
        line = _one_line(unicodedata.normalize("NFC", line))
        line = re.sub(
            r"^[\W\d_]*(name|title|answer|group|名称|标题)\W*[:：]", "", line, flags=re.IGNORECASE
        )
        line = re.sub(r"^([0-9]+[.)]\s)?[^\w(]*", "", line.replace("**", ""))
        line = re.sub(r"[^\w)]+$", "", " ".join(line.split()[:_NAME_WORDS]))
        if sum(c.isalpha() for c in line) >= 2:
            return line if len(line) <= MAX_CHARS else ""
    return ""


def _one_line(text: str) -> str:
    kept = (
        "" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") and not c.isspace() else c
        for c in text
    )
    return " ".join("".join(kept).split())
