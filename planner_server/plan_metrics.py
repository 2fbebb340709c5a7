"""Where rows of plans came from, how old they were, and what the store holds. Knows no store.

A call may have 256 rows and 2 ms. So the event loop counts in plain integers, a batch at a time,
and the families are made of them when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serendip.core import PlanSource

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
AGES_S = (
    *(_MINUTE, 10 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 2 * _DAY, 4 * _DAY),
    *(7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 180 * _DAY),
)
_EDGES = (*(str(float(age)) for age in AGES_S), "+Inf")


class PlanMetrics(Collector):
    """The collectors of plans; make one a registry. To be told by one thread only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = dict.fromkeys((*PlanSource, None), 0)
        self._ages = [0] * (len(AGES_S) + 1)  # the last one: older than all
        self._ages_sum_s = 0
        self._left_out = 0
        self._stored = 0
        registry.register(self)

    def serves(self, stored: int) -> None:
        """A store with so many plans is served from now on."""
        self._stored = stored

    def stored(self, ages_s: list[int]) -> None:
        """Stored plans were answered as they lie, each so many whole seconds old; sorts them.

        An age below 0, where clocks differ, is 0.
        """
        if not ages_s:
            return
        self._rows[PlanSource.STORE] += len(ages_s)
        ages_s.sort()
        self._ages_sum_s += sum(ages_s) if ages_s[0] >= 0 else sum(max(0, s) for s in ages_s)
        # Most calls' plans are of a few bulk jobs, and so of one bucket.
        first, last = bisect_left(AGES_S, ages_s[0]), bisect_left(AGES_S, ages_s[-1])
        before = 0
        for bucket in range(first, last):
            upto = bisect_right(ages_s, AGES_S[bucket])
            self._ages[bucket] += upto - before
            before = upto
        self._ages[last] += len(ages_s) - before

    def row(self, source: PlanSource | None, left_out: int = 0, age_s: int = 0) -> None:
        """A row was answered, None without a plan; the options left so many clusters out."""
        self._rows[source] += 1
        self._left_out += left_out
        if source is PlanSource.STORE:
            self._ages[bisect_left(AGES_S, age_s)] += 1
            self._ages_sum_s += age_s

    def collect(self) -> Iterable[Metric]:
        """The families as they stand now."""
        rows = CounterMetricFamily(
            "serendip_plan_rows",
            "Rows of plans answered, by where the plan came from; none: the row failed.",
            labels=("source",),
        )
        for source, count in self._rows.items():
            rows.add_metric((source.value if source else "none",), count)
        yield rows
        left_out = CounterMetricFamily(
            "serendip_plans_left_out", "Clusters of plans that a request's options left out."
        )
        left_out.add_metric((), self._left_out)
        yield left_out
        stored = GaugeMetricFamily(
            "serendip_plans_store_count", "Plans in the store that is served."
        )
        stored.add_metric((), self._stored)
        yield stored
        ages = HistogramMetricFamily(
            "serendip_plan_age_seconds",
            "Ages of the stored plans that were answered, a row each.",
        )
        ages.add_metric((), list(self._buckets()), self._ages_sum_s)
        yield ages

    def _buckets(self) -> Iterable[tuple[str, float]]:
        upto = 0
        for edge, count in zip(_EDGES, self._ages, strict=True):
            upto += count
            yield edge, upto
