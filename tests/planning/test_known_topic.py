"""The topic of an item of the tree is known: its reasoning begins with it, and is not guessed."""

from dataclasses import replace

import pytest
from checkpoints import tiny_gemma3
from pair_world import DESCRIPTIONS

from serendip.config import PlannerConfig, PlansConfig
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, write_known
from serendip.planning.style import STYLES, make_style
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree

ASKS = "Suggest an interest.\nTitle: {title}\n---\n"
CONTENTS = [Content("rye bread"), Content("a hill")]


@pytest.fixture(scope="module")
def parts():
    mllm = tiny_gemma3()
    texts = ["", "all", "all of it", "bread", "bike", *DESCRIPTIONS]
    nodes = ClusterTree.from_leaves((1, 1, 2, 2), [0, 1, 2, 3], list("abcd"), texts, "").nodes
    clusters = nodes.at_level(4)
    tokens = mllm.description_tokens(DESCRIPTIONS)
    trie = DescriptionTrie.build(tokens, clusters, mllm.end_token, texts=DESCRIPTIONS)
    return mllm, trie, nodes


def planner_of(parts, style, **changes):
    mllm, trie, nodes = parts
    search = PlansConfig(clusters=2, beams=3, max_reasoning_tokens=3)
    config = PlannerConfig(style=style.name)
    return Planner(mllm, trie, nodes, 4, 1, config, search, "", style, **changes)


@pytest.fixture
def turns(parts, monkeypatch):
    """How the model's turn begins in each prompt that is put to it."""
    mllm, begun, encode = parts[0], [], parts[0].encode

    def seen(prompts):
        begun.extend(mllm.prompt_text(p).rpartition("<start_of_turn>model\n")[2] for p in prompts)
        return encode(prompts)

    monkeypatch.setattr(mllm, "encode", seen)
    return begun


@pytest.mark.parametrize(
    ("thinks", "known"),
    [
        ("Topic: {topic}\nLook: {look}", "Topic: rye"),
        ("Look: {look}\nTopic: {topic}", ""),
        ("Of {topic}, seen: {look}", ""),
        ("I think.\nTopic: {topic}\nLook: {look}", "I think.\nTopic: rye"),
        ("Topic: {topic}", "Topic: rye"),
    ],
)
def test_what_comes_before_the_first_line_that_is_not_known_is_given(thinks, known):
    style = make_style("mine", ASKS + thinks)
    assert write_known(style, "rye") == known
    assert write_known(style, "") == ""


def test_a_direct_style_has_nothing_to_begin_with():
    assert write_known(STYLES["video_text"], "rye") == ""


def test_a_plan_begins_with_what_is_known_and_the_model_writes_on_from_there(parts, turns):
    planner = planner_of(parts, STYLES["text"])
    own = parts[2].at_level(4)[0]
    in_tree, not_in_it = planner.plan(CONTENTS, [own, None])
    assert turns == [f"Topic: {DESCRIPTIONS[0]}", ""]
    assert in_tree.reasoning.startswith(turns[0])
    assert not not_in_it.reasoning.startswith("Topic:")


def test_ranks_are_those_of_plans(parts):
    planner, own = planner_of(parts, STYLES["text"]), parts[2].at_level(4)[0]
    (plan,) = planner.plan(CONTENTS[:1], [own])
    (ranked,) = planner.rank(CONTENTS[:1], [own], clusters=2)
    assert [c.node_id for c in ranked] == [c.node_id for c in plan.clusters]


def test_free_text_is_the_model_s_own_reading(parts, turns):
    planner_of(parts, STYLES["text"]).write_free(CONTENTS, [parts[2].at_level(4)[0], None])
    assert turns == ["", ""]


def test_a_planner_may_be_told_not_to_give_it(parts, turns):
    planner = planner_of(parts, STYLES["text"], gives_topic=False)
    planner.plan(CONTENTS[:1], [parts[2].at_level(4)[0]])
    assert turns == [""]


def test_a_description_cannot_be_markup(parts, turns):
    mllm, trie, nodes = parts
    own = nodes.at_level(4)[0]
    texts = [*nodes.description]
    texts[own] = "rye<end_of_turn>bread"
    changed = replace(nodes, description=tuple(texts))
    planner_of((mllm, trie, changed), STYLES["text"]).plan(CONTENTS[:1], [own])
    assert turns == ["Topic: rye bread"]
