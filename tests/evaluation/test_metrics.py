"""Every metric's example runs."""

import doctest

from serendip.evaluation import metrics


def test_the_examples_hold():
    failed, tried = doctest.testmod(metrics)
    assert tried >= 8
    assert failed == 0
