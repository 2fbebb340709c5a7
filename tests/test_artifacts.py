"""Artefacts appear whole or not at all, and what is opened is what was published."""

import contextlib
import json

import pytest

from serendip.artifacts import MANIFEST, Artifacts
from serendip.core import CorruptArtifact, InvalidRequest, NotFound

CONFIG = {"answer": 42}
INPUTS = {"data": "0" * 12}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def publish(artifacts, config=CONFIG, text="hello"):
    with artifacts.publish("tree", config, INPUTS, log_until=7) as draft:
        (draft.path / "nodes.txt").write_text(text)
        draft.rows["nodes.txt"] = 1
        draft.facts["leaves"] = 3
    return artifacts.current("tree")


def leave_half(artifacts, kind):
    """A publication that fails on its way; returns its version."""
    with (
        contextlib.suppress(RuntimeError),
        artifacts.publish(kind, {"new": 1}, INPUTS) as draft,
    ):
        (draft.path / "chunk").write_text("half")
        raise RuntimeError
    return draft.version


def test_what_was_published_is_current_and_opens(artifacts):
    tree = publish(artifacts)
    assert tree.file("nodes.txt").read_text() == "hello"
    assert (tree.config, tree.inputs, tree.rows) == (CONFIG, INPUTS, {"nodes.txt": 1})
    assert (tree.log_until, tree.facts) == (7, {"leaves": 3})


def test_the_version_follows_from_config_and_inputs(artifacts):
    first, again = publish(artifacts).version, publish(artifacts).version
    other = publish(artifacts, config={"answer": 43}).version
    assert first == again != other


def test_one_changed_byte_is_found(artifacts):
    tree = publish(artifacts)
    tree.file("nodes.txt").write_text("hellp")
    with pytest.raises(
        CorruptArtifact, match=r"nodes\.txt: differs from its sha256.*serendip tree"
    ):
        artifacts.current("tree")


def test_a_missing_file_is_found(artifacts):
    publish(artifacts).file("nodes.txt").unlink()
    with pytest.raises(CorruptArtifact):
        artifacts.current("tree")


def test_a_manifest_of_another_format_is_refused_by_name_and_value(artifacts):
    tree = publish(artifacts)
    manifest = json.loads((tree.path / MANIFEST).read_text())
    (tree.path / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CorruptArtifact, match=r"format must be 2, got 99.*another release"):
        artifacts.open("tree", tree.version)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\x00"])
def test_a_manifest_that_is_none_is_refused(artifacts, text):
    tree = publish(artifacts)
    (tree.path / MANIFEST).write_text(text)
    with pytest.raises(CorruptArtifact):
        artifacts.open("tree", tree.version)


def test_a_failed_publication_leaves_current_alone_and_no_version(artifacts):
    before = publish(artifacts)
    version = leave_half(artifacts, "tree")
    assert artifacts.current("tree").version == before.version
    assert not artifacts.exists("tree", version)
    with pytest.raises(NotFound):
        artifacts.open("tree", version)


def test_resume_keeps_what_an_interrupted_run_left_and_a_fresh_run_does_not(artifacts):
    leave_half(artifacts, "plans")
    with artifacts.publish("plans", {"new": 1}, INPUTS, resume=True) as draft:
        assert (draft.path / "chunk").exists()
    leave_half(artifacts, "plans")
    with artifacts.publish("plans", {"new": 1}, INPUTS) as draft:
        assert not (draft.path / "chunk").exists()


def test_two_publications_of_one_version_do_not_run_at_once(artifacts):
    with (
        artifacts.publish("tree", CONFIG, INPUTS),
        pytest.raises(InvalidRequest, match="another process"),
        artifacts.publish("tree", CONFIG, INPUTS),
    ):
        pass


def test_reuse_finds_the_same_making_and_makes_it_current(artifacts):
    first = publish(artifacts)
    publish(artifacts, config={"answer": 43})
    assert artifacts.reuse("tree", CONFIG, {"data": "1" * 12}) is None
    assert artifacts.reuse("tree", CONFIG, INPUTS).version == first.version
    assert artifacts.current_version("tree") == first.version


def test_reuse_does_not_take_a_corrupt_one(artifacts):
    publish(artifacts).file("nodes.txt").write_text("other")
    assert artifacts.reuse("tree", CONFIG, INPUTS) is None


def test_nothing_published_names_the_stage_to_run(artifacts):
    with pytest.raises(NotFound, match="serendip finetune"):
        artifacts.current("planner")


@pytest.mark.parametrize("version", ["../../etc", "", "A" * 12, "0" * 11])
def test_a_version_from_outside_cannot_leave_the_folder(artifacts, version):
    with pytest.raises(InvalidRequest, match="12 hexadecimal digits"):
        artifacts.open("tree", version)


def test_an_unknown_kind_is_refused(artifacts):
    with pytest.raises(InvalidRequest, match="no such kind"):
        artifacts.current_version("trees")


def test_a_corrupt_version_is_made_again_from_nothing_even_when_resuming(artifacts):
    with artifacts.publish("plans", CONFIG, INPUTS, resume=True) as draft:
        (draft.path / "chunk").write_text("1")
    (draft.path / "chunk").write_text("2")
    assert artifacts.reuse("plans", CONFIG, INPUTS) is None
    with artifacts.publish("plans", CONFIG, INPUTS, resume=True) as draft:
        assert not (draft.path / "chunk").exists()
