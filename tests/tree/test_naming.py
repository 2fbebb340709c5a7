"""Descriptions by a table of the user's, or by a language model."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_checkpoints
import word_catalogue

from serendip.artifacts import Artifacts
from serendip.core import InvalidData, InvalidRequest
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree, normal_form
from serendip.tree.describe import Described
from serendip.tree.naming import MAX_CHARS, clean, describe_by_llm, read_descriptions

TREE = ClusterTree.from_leaves((2, 2, 1, 1), np.arange(4), list("abcd"), None, "0" * 12)
NODES = TREE.nodes  # 0; 1 2; 3 4 5 6; 7 8 9 10; 11 12 13 14
WORDS = [f"words {node}" if node else "" for node in range(len(NODES))]


def csv(folder, *lines):
    path = folder / "names.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_level_is_described_by_node_id_or_by_path(tmp_path):
    by_id = csv(tmp_path, "node_id,description", "2,Cycling", '1,"Bread, all kinds"')
    texts, named = read_descriptions(by_id, NODES, WORDS)
    assert texts[1:4] == ["Bread, all kinds", "Cycling", "words 3"]
    assert named == 2
    by_path = csv(tmp_path, "path,description", "0/0,Rye", "0/1,Wheat", "1/0,Hills", "1/1,Tracks")
    texts, _ = read_descriptions(by_path, NODES, WORDS)
    assert texts[1:7] == ["words 1", "words 2", "Rye", "Wheat", "Hills", "Tracks"]
    parquet = tmp_path / "names.parquet"
    pq.write_table(pa.table({"path": ["1", "0"], "description": ["  B\u00a0 b ", "A"]}), parquet)
    assert read_descriptions(parquet, NODES, WORDS)[0][1:3] == ["A", "B b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["node,description", "1,A"], "needs the columns node_id or path, and description"),
        (["node_id,description", "1,A", "99,B"], "node_id: row 1: names no node.*got 99"),
        (["node_id,description", "0,A"], "row 0: names no node of the tree below the root"),
        (["path,description", "0,A", "2,B"], "path: row 1: names no node"),
        (["path,description", "0,A", "../1,B"], "path: row 1: names no node"),
        (["node_id,description", "1,A", "1,B"], "row 1: names a node a second time .first in"),
        (["node_id,description", "1,A", "2, "], "description: row 1: must not be empty"),
        (["node_id,description", "1,A", "2,"], "description: row 1: must not be empty"),
        (["node_id,description", f"1,{'x' * 121}", "2,B"], "row 0: must have at most 120"),
        (["node_id,description", "1,Rye bread", "2,rye  BREAD"], "row 1: is row 0's"),
        (["node_id,description", "1,A\u0000", "2,B"], "row 0: holds a control character"),
        (["node_id,description", "1,A"], "lacks 1 nodes of level 1, first node 2"),
    ],
)  # fmt: skip
def test_a_table_that_names_no_whole_level_well_is_refused(tmp_path, lines, message):
    with pytest.raises(InvalidData, match=message):
        read_descriptions(csv(tmp_path, *lines), NODES, WORDS)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidData, match=r"tree\.descriptions_path: cannot be read"):
        read_descriptions(tmp_path / "none.parquet", NODES, WORDS)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InvalidData, match=r"tree\.descriptions_path: cannot be read"):
        read_descriptions(tmp_path / "text.parquet", NODES, WORDS)


def test_a_published_tree_carries_the_tables_descriptions(tmp_path):
    word_catalogue.write(tmp_path / "data", word_catalogue.items(list(range(16)) * 6))
    table = csv(tmp_path, "path,description", "0,Heights", "1,Depths")
    config = word_catalogue.config(tmp_path, descriptions="table", descriptions_path=str(table))
    artifacts = Artifacts(config.artifacts_path)
    first = publish_tree(config, artifacts)
    nodes = ClusterTree.open(first).nodes
    assert nodes.description[1:3] == ("Heights", "Depths")
    assert first.facts["descriptions"] == {"table": 2, "words": 28}
    csv(tmp_path, "path,description", "0,Peaks", "1,Depths")
    second = publish_tree(config, artifacts)
    assert ClusterTree.open(second).nodes.description[1] == "Peaks"
    assert second.facts["rebuilt_because"] == "descriptions has changed"
    table.unlink()
    with pytest.raises(InvalidRequest, match=r"tree\.descriptions_path: cannot be read"):
        publish_tree(config, artifacts)


# --- by a language model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Sourdough baking", "Sourdough baking"),
        ('\n\n**Name:** "Sourdough and rye."\nBecause', "Sourdough and rye"),
        ("- Bread (all kinds)!", "Bread (all kinds)"),
        ("名称：天然酵母面包。", "天然酵母面包"),
        ("1. Trail running", "Trail running"),
        ("a\u200bb\u0007c", "abc"),
        ("???\n42\n", ""),
        ("", ""),
        (
            "one two three four five six seven eight, nine",
            "one two three four five six seven eight",
        ),
        ("x" * (MAX_CHARS + 1), ""),
    ],
)
def test_of_an_answer_the_name_is_taken(answer, name):
    assert clean(answer) == name


def described():
    return Described(WORDS, [[f"w{node}", f"v{node}"] for node in range(len(NODES))])


TITLES = [["Title {of} an item\n" + "x" * 200]] * len(NODES)


def test_answers_are_made_unique_and_words_stand_in():
    answers = iter(["Bread", "", "Rye", "RYE", "words 3", "???", *["Leaf"] * 8])
    texts, outcome = describe_by_llm(
        NODES, described(), TITLES, lambda prompts: (next(answers) for _ in prompts)
    )
    assert texts[1:3] == ["Bread", "words 2"]
    # "words 3" is what stands in for node 3: it is never given away.
    assert texts[3:7] == ["Rye", "RYE (w4)", "words 3 (w5)", "words 6"]
    assert dict(outcome) == {"answered": 4, "told_apart": 8, "words": 2}
    for level in (1, 2, 3, 4):
        of_level = [normal_form(texts[node]) for node in NODES.at_level(level)]
        assert len(set(of_level)) == len(of_level)


def test_a_prompt_tells_the_parents_name_the_words_and_short_titles():
    seen = []

    def generate(prompts):
        seen.extend(prompts)
        yield from (
            "Bread" if len(seen) == 2 else f"name {len(seen)} {i}" for i in range(len(prompts))
        )

    describe_by_llm(NODES, described(), TITLES, generate)
    assert "lies within: the whole catalogue" in seen[0]
    assert "w1, v1" in seen[0]
    assert "- Title {of} an item x" in seen[0]
    assert max(len(line) for line in seen[0].splitlines()) < 120
    assert "lies within: Bread" in seen[2]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_checkpoint_on_disk_describes_the_tree(tmp_path, template):
    titles = word_catalogue.items(list(range(16)) * 4)
    word_catalogue.write(tmp_path / "data", titles)
    tiny_checkpoints.causal(tmp_path / "llm", titles.values(), template)
    config = word_catalogue.config(
        tmp_path, descriptions="llm", llm=str(tmp_path / "llm"), llm_batch=4
    )
    artifact = publish_tree(config, Artifacts(config.artifacts_path))
    tree = ClusterTree.open(artifact)  # refuses descriptions that are not unique
    counts = artifact.facts["descriptions"]
    assert sum(counts.values()) == 30
    assert counts["answered"] + counts["told_apart"] > 0
    assert all(len(t) <= MAX_CHARS and not re.search(r"[\n\t]", t) for t in tree.nodes.description)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    word_catalogue.write(tmp_path / "data", word_catalogue.items(list(range(16)) * 4))
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "pytorch_model.bin").write_bytes(b"pickle")
    config = word_catalogue.config(tmp_path, descriptions="llm", llm=str(tmp_path / "llm"))
    with pytest.raises(InvalidRequest, match=r"tree\.llm: is no folder with \*\.safetensors"):
        publish_tree(config, Artifacts(config.artifacts_path))
    config = word_catalogue.config(tmp_path, descriptions="llm", llm=str(tmp_path / "none"))
    with pytest.raises(InvalidRequest, match=r"tree\.llm: no such folder"):
        publish_tree(config, Artifacts(config.artifacts_path))
