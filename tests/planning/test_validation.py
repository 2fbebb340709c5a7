"""Which look is kept: recall decides as far as it can tell, the loss beyond."""

from dataclasses import replace

import pytest
import torch
from checkpoints import tiny_gemma3
from pair_world import DESCRIPTIONS, four_clusters

from serendip.config import Config
from serendip.planning.examples import Example
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content
from serendip.planning.style import STYLES
from serendip.planning.validation import best_look, validate


def looks(*pairs):
    return [
        {"step": step, "recall": recall, "validation_loss": loss}
        for step, (recall, loss) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("pairs", "items", "kept"),
    [
        ([(0.1, 3), (0.9, 4), (0.2, 1)], 48, 1),  # recall, where it tells
        ([(0.80, 3), (0.82, 4), (0.81, 2)], 48, 2),  # a few items are chance: the loss
        ([(0.80, 3), (0.82, 4), (0.81, 2)], 10_000, 1),  # but not where they are many
        ([(0, 3), (0, 2), (0, 4)], 48, 1),  # nothing matches yet
        ([(1, 3), (1, 2), (0.98, 1)], 48, 1),  # all are right: chance has no room
        ([(0.5, 2), (0.5, 2)], 48, 1),  # the later of equals
        ([(0.50, 5), (0.44, 4), (0.38, 3), (0.32, 2)], 48, 1),  # no sliding down step by step
    ],
)
def test_recall_decides_as_far_as_it_can_tell(pairs, items, kept):
    assert best_look(looks(*pairs), items)["step"] == kept


def test_what_is_kept_does_not_depend_on_what_comes_later_but_where_that_is_better():
    lines = looks((0.2, 3), (0.5, 2), (0.4, 2.5), (0.9, 4), (0.1, 1), (0.88, 3.9))
    kept = [best_look(lines[: n + 1], 48)["step"] for n in range(len(lines))]
    assert kept == [0, 1, 1, 3, 3, 5]


def test_without_validation_items_the_last_is_kept():
    assert best_look([{"step": n, "validation_loss": 0.0} for n in range(3)], 0)["step"] == 2


def test_each_look_is_at_the_model_as_it_is_then():
    mllm = tiny_gemma3()
    tree = four_clusters()
    clusters = tree.nodes.at_level(4)
    config = Config.model_validate(
        {
            "level": 4,
            "planner": {"style": "text"},
            "plans": {"clusters": 2, "beams": 3, "max_reasoning_tokens": 2},
        }
    )
    planner = Planner.build(mllm, tree, config, "", STYLES["text"])
    contents = [Content(f"{text} {n}") for n, text in enumerate(DESCRIPTIONS * 2)]
    examples = [Example(c, "x", DESCRIPTIONS[0], "", clusters[0], clusters[3]) for c in contents]
    validate(planner, examples, 8)
    with torch.no_grad():
        mllm.model.get_output_embeddings().weight.mul_(-1)
    plans = replace(planner).plan(contents, [clusters[3]] * len(contents))
    found = [
        replace(e, node_id=p.clusters[0].node_id) for e, p in zip(examples, plans, strict=True)
    ]
    assert validate(planner, found, 3)["recall_at_1"] == 1
