"""Fine-tuning of the embedded model: what it must not see, and what it publishes."""

import json

import numpy as np
import pytest

from serendip.catalog.items import read_items
from serendip.curation.curate import read_pairs
from serendip.planning.examples import drop_words, load_examples, load_own_words, training_prompt
from serendip.planning.mllm import Mllm
from serendip.planning.style import STYLES
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree


@pytest.fixture(scope="module")
def parts(small_world):
    tree = ClusterTree.open(small_world.artifacts.current("tree"))
    return small_world.config, tree, small_world.artifacts.current("pairs")


@pytest.fixture(scope="module")
def loaded(parts):
    """(training examples, validation examples, what was left out)."""
    config, tree, pairs = parts
    return load_examples(config, STYLES["video_cot"], tree, pairs)


def test_no_held_out_item_takes_part_in_anything(parts, loaded):
    config, tree, pairs = parts
    held_out = set(read_pairs(pairs, "held_out").column("item_id").to_pylist())
    titles = {i.title for i in read_items(config.data_path) if i.item_id in held_out}
    assert titles
    training_examples, validation, *_ = loaded
    assert not titles & {e.content.title for e in training_examples + validation}
    assert not titles & {content.title for content, _ in load_own_words(config, tree, pairs)}


def test_no_title_of_an_item_that_is_kept_apart_is_learnt(parts, loaded):
    config, tree, pairs = parts
    *_, validation, left_out, apart = loaded
    assert len(apart) == len(validation) + left_out["near_duplicates"]
    words = [content.title for content, _ in load_own_words(config, tree, pairs, apart)]
    assert not {e.content.title for e in validation} & set(words)
    assert len(words) == len(load_own_words(config, tree, pairs)) - len(apart)


def test_no_validation_item_is_trained_on(loaded):
    training_examples, validation, *_ = loaded
    assert validation
    trained = {e.content.title for e in training_examples}
    assert not trained & {e.content.title for e in validation}


def test_a_training_prompt_draws_frames_and_leaves_words_out(parts, loaded):
    config, *_ = parts
    (example, *_), *_ = loaded
    prompt = training_prompt(
        example.content, STYLES["video_cot"], config.planner, np.random.default_rng(0)
    )
    assert len(prompt.images) == 1 + config.planner.frames
    kept = drop_words("a b c d e f g h", 0.5, np.random.default_rng(0)).split()
    assert 0 < len(kept) < 8
    assert kept == sorted(kept)
    assert drop_words("a b", 0.99, np.random.default_rng(0)) == "a"
    assert drop_words("", 0.5, np.random.default_rng(0)) == ""


def test_the_published_planner_is_a_checkpoint_with_its_trie(small_world):
    artifact = small_world.artifacts.current("planner")
    mllm = Mllm.open(artifact.path / "checkpoint")
    trie = DescriptionTrie.open(artifact.path / "trie", mllm.tokenizer_hash)
    assert len(trie) == 64
    assert trie.tree_version == artifact.inputs["tree"]
    history = [json.loads(x) for x in artifact.file("history.jsonl").read_text().splitlines()]
    *looks, kept = history
    assert [h["step"] for h in looks] == [2, 4]
    assert kept in looks
    assert artifact.facts["step"] == kept["step"]
    assert {"match_rate", "recall", "recall_at_1"} <= set(kept)
    assert not list(artifact.path.glob("resume-*"))
