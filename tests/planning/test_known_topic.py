"""The topic of an item of the tree is known: its reasoning begins with it, and is not guessed."""

from dataclasses import replace

import pytest
from checkpoints import tiny_gemma3
from pair_world import DESCRIPTIONS, four_clusters

from serendip.config import Config
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, write_known
from serendip.planning.style import STYLES, make_style

ASKS = "Suggest an interest.\nTitle: {title}\n---\n"
CONTENTS = [Content("rye bread"), Content("a hill")]


@pytest.fixture(scope="module")
def mllm():
    return tiny_gemma3()


def planner_of(mllm, style, tree=None):
    config = Config.model_validate(
        {
            "level": 4,
            "planner": {"style": style.name},
            "plans": {"clusters": 2, "beams": 3, "max_reasoning_tokens": 3},
        }
    )
    return Planner.build(mllm, tree or four_clusters(), config, "", style)


OWN = four_clusters().nodes.at_level(4)[0]


@pytest.fixture
def turns(mllm, monkeypatch):
    """How the model's turn begins in each prompt that is put to it."""
    begun, encode = [], mllm.encode

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


def test_a_plan_begins_with_what_is_known_and_the_model_writes_on_from_there(mllm, turns):
    in_tree, not_in_it = planner_of(mllm, STYLES["text"]).plan(CONTENTS, [OWN, None])
    assert turns == [f"Topic: {DESCRIPTIONS[0]}", ""]
    assert in_tree.reasoning.startswith(turns[0])
    assert not not_in_it.reasoning.startswith("Topic:")


def test_ranks_are_those_of_plans(mllm, turns):
    planner = planner_of(mllm, STYLES["text"])
    (plan,) = planner.plan(CONTENTS[:1], [OWN])
    (ranked,) = planner.rank(CONTENTS[:1], [OWN], clusters=2)
    assert turns[0] == turns[1] != ""
    assert [c.node_id for c in ranked] == [c.node_id for c in plan.clusters]


def test_free_text_is_the_model_s_own_reading(mllm, turns):
    planner_of(mllm, STYLES["text"]).write_free(CONTENTS, [OWN, None])
    assert turns == ["", ""]


def test_a_planner_may_be_told_not_to_give_it(mllm, turns):
    planner = replace(planner_of(mllm, STYLES["text"]), gives_topic=False)
    planner.plan(CONTENTS[:1], [OWN])
    assert turns == [""]


def test_a_description_cannot_be_markup(mllm, turns):
    tree = four_clusters()
    planner = planner_of(mllm, STYLES["text"], tree)
    texts = [*tree.nodes.description]
    texts[OWN] = "rye<end_of_turn>bread"
    marked = replace(planner, nodes=replace(tree.nodes, description=tuple(texts)))
    marked.plan(CONTENTS[:1], [OWN])
    assert turns == ["Topic: rye bread"]
