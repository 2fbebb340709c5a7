"""Pretraining on words: with a description it is learnt, without one the words themselves are."""

import numpy as np
import pytest

from serendip.config import PlannerConfig
from serendip.planning import pretrain
from serendip.planning.mllm import IGNORED
from serendip.planning.prompt import Content


@pytest.fixture
def rows(mllm, monkeypatch):
    """What one batch reads and what it learns, as texts: (read, learnt) a row."""

    def read(words):
        seen = []
        monkeypatch.setattr(
            pretrain, "answer_loss", lambda _, batch, labels: seen.append((batch, labels))
        )
        settings = PlannerConfig(word_dropout=0)
        pretrain.pretraining_loss(mllm, [], words, settings, np.random.default_rng(0))
        ((batch, labels),) = seen
        decode = mllm.tokenizer.decode
        return [
            (decode(ids, skip_special_tokens=True), decode(label[label != IGNORED]))
            for ids, label in zip(batch["input_ids"], labels, strict=True)
        ]

    return read


def test_a_title_without_a_description_is_learnt_and_nothing_else_is_read(rows):
    for read, learnt in rows([(Content("rye bread"), "")]):
        assert read == learnt == "Title: rye bread\n"


def test_a_description_is_learnt_and_the_title_is_not(rows):
    for read, learnt in rows([(Content("rye bread"), "bread: rye")]):
        assert read == "Title: rye bread\nTopic: bread: rye"
        assert learnt.startswith("Topic: bread: rye")
        assert "Title" not in learnt
