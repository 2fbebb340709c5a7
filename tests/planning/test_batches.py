"""What a step learns from: pairs, and beside them rows that no prompt's pictures make long."""

import numpy as np
import pytest
import torch

from serendip.config import PlannerConfig
from serendip.planning import batches
from serendip.planning.batches import Material, finetuning_losses
from serendip.planning.examples import Example
from serendip.planning.mllm import IGNORED
from serendip.planning.prompt import Content
from serendip.planning.style import STYLES

PICTURE = np.zeros((8, 8, 3), np.uint8)
PAIR = Example(
    content=Content("rye crust", cover=PICTURE, frames=(PICTURE, PICTURE), cluster="bread: rye"),
    own="bread: rye",
    target="sea",
    look="winter scene",
    node_id=1,
    own_id=0,
)
MATERIAL = Material([PAIR], [(Content("hill climb"), "bike: hill")], ["music: synth"])


@pytest.fixture
def learnt(mllm, monkeypatch):
    """What each part of a step reads and learns, and how much each row counts: two lists of parts,
    of (read, learnt) a row and of weights.
    """

    def of(style, **changes):
        parts, counted = [], []

        def note(_, batch, labels, weights=None):
            tokens = (labels != IGNORED).sum(dim=1)
            mean = torch.full((len(tokens),), 1 / int(tokens.sum()))
            counted.append((tokens * (mean if weights is None else weights)).tolist())
            decode = mllm.tokenizer.decode
            parts.append(
                [
                    (decode(ids, skip_special_tokens=True), decode(row[row != IGNORED]))
                    for ids, row in zip(batch["input_ids"], labels, strict=True)
                ]
            )
            return 1.0

        monkeypatch.setattr(batches, "answer_loss", note)
        config = PlannerConfig(
            word_dropout=0, **{"batch_size": 4, "word_rows": 5, "reasoning_rows": 2, **changes}
        )
        list(finetuning_losses(mllm, STYLES[style], config, MATERIAL, np.random.default_rng(0)))
        return parts, counted

    return of


def test_a_step_has_pairs_descriptions_words_and_reasonings(learnt):
    (pairs, (alone, *words), reasonings), weights = learnt("video_cot", description_rows=0.25)
    assert [len(part) for part in (pairs, words, reasonings)] == [4, 5, 2]
    answer = "Topic: bread: rye\nLook: winter scene\nNext: sea"
    assert all(said.startswith(answer) for _, said in pairs)
    assert alone[1].startswith(" music: synth")
    for read, said in words:
        assert "Title: hill climb" in read
        assert said.startswith("Topic: bike: hill")
        assert "Next" not in read
    for read, said in reasonings:
        assert read.startswith(answer)
        assert "Title" not in read
        assert said.startswith(" sea")
    # Pairs and descriptions share the weight of one by their rows.
    assert sum(weights[0]) == pytest.approx(4 / 5)
    assert weights[1][0] == pytest.approx(1 / 5)
    assert sum(weights[1][1:]) == pytest.approx(0.5)
    assert sum(weights[2]) == pytest.approx(1)


def test_micro_batches_weigh_what_the_batch_does(learnt):
    parts, weights = learnt("video_cot", accumulate=2, description_rows=0, word_rows=0)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert sum(weights[0]) == pytest.approx(1 / 2)
    assert sum(weights[1]) == pytest.approx(1 / 2)


def test_a_direct_style_learns_from_pairs_and_descriptions_alone(learnt):
    parts, _ = learnt("video_text", description_rows=0.25)
    assert len(parts) == 2
    assert all(said.startswith(" sea") for _, said in parts[0])


def test_rows_that_are_not_wanted_are_not_there(learnt):
    parts, _ = learnt("video_cot", description_rows=0, word_rows=0, reasoning_rows=0)
    assert [len(part) for part in parts] == [4]


def test_another_checkpoint_than_the_embedded_one_has_no_short_rows(learnt):
    parts, _ = learnt("video_cot", description_rows=0, checkpoint="a-real-one")
    assert [len(part) for part in parts] == [4]
