"""Every metric's example runs."""

import doctest

from serendip.evaluation import baselines, metrics
from serendip.retrieval import metrics as ranking


def test_the_examples_hold():
    for module, examples in ((metrics, 11), (ranking, 7), (baselines, 4)):
        failed, tried = doctest.testmod(module)
        assert tried >= examples, module
        assert failed == 0


def test_metrics_of_a_ranking_are_at_hand_here_too():
    assert metrics.ndcg_at_k is ranking.ndcg_at_k
