"""Counting many ages at once counts what observing each of them would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from planner_server.plan_metrics import AGES_S, PlanMetrics
from serendip.core import PlanSource

NAME = "serendip_plan_age_seconds"
AGES = st.one_of(st.sampled_from(AGES_S), st.integers(-5, 2 * AGES_S[-1]))


def histogram(registry, name):
    """Its samples, but for the time at which it was made."""
    (family,) = (f for f in registry.collect() if f.name == name)
    return [
        (s.name, float(s.labels.get("le", 0)), s.value)
        for s in family.samples
        if not s.name.endswith("_created")
    ]


@given(st.lists(st.lists(AGES, max_size=40), max_size=4), st.lists(AGES, max_size=4))
def test_ages_are_counted_as_a_histogram_observes_them(calls, rows):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    metrics = PlanMetrics(ours)
    oracle = Histogram(NAME, "Ages.", buckets=AGES_S, registry=theirs)
    for ages in calls:
        for age in ages:
            oracle.observe(max(0, age))
        metrics.stored(list(ages))
    for age in rows:
        oracle.observe(max(0, age))
        metrics.row(PlanSource.STORE, age_s=max(0, age))
    assert histogram(ours, NAME) == histogram(theirs, NAME)
    assert ours.get_sample_value("serendip_plan_rows_total", {"source": "store"}) == len(
        [*rows, *(age for ages in calls for age in ages)]
    )


def test_every_source_is_there_before_its_first_row():
    registry = CollectorRegistry()
    PlanMetrics(registry)
    for source in ("store", "live", "fallback", "none"):
        assert registry.get_sample_value("serendip_plan_rows_total", {"source": source}) == 0


def test_rows_what_was_left_out_and_the_store_are_told():
    registry = CollectorRegistry()
    metrics = PlanMetrics(registry)
    metrics.serves(120)
    metrics.row(PlanSource.LIVE, left_out=2)
    metrics.row(PlanSource.FALLBACK, left_out=1)
    metrics.row(None)
    metrics.serves(130)
    page = generate_latest(registry).decode()
    for line in (
        'serendip_plan_rows_total{source="live"} 1.0',
        'serendip_plan_rows_total{source="fallback"} 1.0',
        'serendip_plan_rows_total{source="none"} 1.0',
        'serendip_plan_rows_total{source="store"} 0.0',
        "serendip_plans_left_out_total 3.0",
        "serendip_plans_store_count 130.0",
        "serendip_plan_age_seconds_count 0.0",
    ):
        assert line + "\n" in page
