"""Pretraining on plain titles: the words themselves are learnt, and no description."""

import numpy as np
import pytest

from serendip.config import PlannerConfig
from serendip.planning import pretrain
from serendip.planning.mllm import IGNORED
from serendip.planning.prompt import Content


@pytest.fixture
def rows(mllm, monkeypatch):
    """What one batch reads and what it learns, as texts: (read, learnt) a row."""

    def read(titles):
        seen = []
        monkeypatch.setattr(
            pretrain, "answer_loss", lambda _, batch, labels: seen.append((batch, labels))
        )
        settings = PlannerConfig(word_dropout=0)
        pretrain.pretraining_loss(mllm, [], titles, settings, np.random.default_rng(0))
        ((batch, labels),) = seen
        decode = mllm.tokenizer.decode
        return [
            (decode(ids, skip_special_tokens=True), decode(label[label != IGNORED]))
            for ids, label in zip(batch["input_ids"], labels, strict=True)
        ]

    return read


def test_a_title_is_learnt_and_nothing_else_is_read(rows):
    for read, learnt in rows([Content("rye bread")]):
        assert read == learnt == "Title: rye bread\n"
