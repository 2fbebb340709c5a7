"""Sorting in bounded memory gives what sorting in memory gives."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serendip.planning.sorted_rows import sort_rows

rows_of = st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=300)), max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of, run_bytes=st.integers(1, 4000))
def test_runs_merge_to_what_sorted_gives(rows, run_bytes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sort") / "runs"
    assert list(sort_rows(iter(rows), folder, run_bytes=run_bytes)) == sorted(rows)


def test_what_fits_into_memory_touches_no_disk(tmp_path):
    rows = [(b"%d" % n, b"") for n in range(100)]
    assert list(sort_rows(rows, tmp_path / "runs")) == sorted(rows)
    assert not (tmp_path / "runs").exists()


def test_a_run_is_as_large_as_it_may_be(tmp_path):
    rows = [(b"%04d" % n, bytes(1000)) for n in range(1000)]
    list(sort_rows(rows, tmp_path / "runs", run_bytes=100_000))
    sizes = [path.stat().st_size for path in (tmp_path / "runs").iterdir()]
    assert 11 <= len(sizes) <= 13
    assert max(sizes) < 110_000
