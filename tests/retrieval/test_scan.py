"""Top-k over slices against scores of every row and a sort."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
import types

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import CorruptArtifact
from serendip.retrieval import compiled
from serendip.retrieval import scan as scan_module
from serendip.retrieval.codes import Codes, encode
from serendip.retrieval.compiled import has_numba
from serendip.retrieval.scan import Scan, best_of_values, floor_of, reaching

Float32 = npt.NDArray[np.float32]
NONE = np.empty(0, np.int64)
needs_numba = pytest.mark.skipif(
    not has_numba(), reason="numba is not installed: pip install 'serendip[fast]'"
)


def codes_of(matrix: Float32) -> Codes:
    return Codes.of(*encode(matrix), matrix)


def all_ways(matrix: Float32) -> list[Scan]:
    """By numpy; compiled, in float32 and by codes; the compiled ones read memory maps."""
    ways = [Scan(matrix, only_numpy=True)]
    if has_numba():
        matrix = matrix.copy()
        codes = codes_of(matrix)
        for array in (matrix, codes.codes, codes.scales):
            array.flags.writeable = False
        ways += [Scan(matrix), Scan(matrix, codes)]
        assert all(way.compile() for way in ways[1:])
    return ways


def oracle(matrix: Float32, user: Float32, slices, gone, k: int) -> tuple[list[int], list[float]]:
    with np.errstate(all="ignore"):
        scores = np.add.reduce(matrix * user, axis=1)
    inside = {rank for start, end in slices for rank in range(start, end)} - set(gone.tolist())
    best = sorted((-float(scores[r]), r) for r in inside if scores[r] > -np.inf)[:k]
    return [r for _, r in best], [-s for s, _ in best]


def check(scan: Scan, matrix: Float32, user: Float32, slices, gone, k: int) -> None:
    top = scan.best(user, slices, gone, k)
    ranks, scores = oracle(matrix, user, slices, gone, k)
    assert top.ranks.tolist() == ranks
    # Their bits: 0 and -0 are not the same.
    assert (
        top.scores.view(np.uint32).tolist() == np.array(scores, np.float32).view(np.uint32).tolist()
    )


KINDS = ("normal", "few values", "same rows", "near rows", "constant columns", "zeros", "one huge")


def draw_matrix(kind: str, n: int, d: int, rng: np.random.Generator) -> Float32:
    x = rng.standard_normal((n, d)).astype(np.float32)
    if kind == "few values":
        x = rng.integers(-1, 2, (n, d)).astype(np.float32)
    if kind == "same rows":
        x = x[rng.integers(0, max(1, n // 8), n)]
    if kind == "near rows":  # as equal as float32 allows: rounding decides who is first
        x = x[:1] * (1 + rng.integers(-2, 3, (n, d)) * np.float32(2**-23))
    if kind == "constant columns":
        x[:, ::2] = x[0, ::2]
    if kind == "zeros":
        x[rng.random(n) < 0.7] = 0
    if kind == "one huge":
        x[n // 2] *= np.float32(1e6)
    return np.ascontiguousarray(x, np.float32)


@st.composite
def questions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.one_of(st.integers(1, 1500), st.integers(1500, 9000)))
    d = draw(st.sampled_from((1, 7, 9, 17, 65, 129, 300)))
    matrix = draw_matrix(draw(st.sampled_from(KINDS)), n, d, rng)
    matrix *= np.float32(10.0 ** draw(st.sampled_from((0, 0, 0, -38, -30, -12, 12, 17, 21))))
    user = rng.standard_normal(d).astype(np.float32)
    user *= np.float32(10.0 ** draw(st.sampled_from((0, 0, 0, -20, -12, 12, 17))))
    user[rng.random(d) < draw(st.sampled_from((0, 0, 0.5, 1)))] = 0
    cuts = sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=8)))
    slices = list(zip(cuts[::2], cuts[1::2], strict=False))  # some are empty
    slices = draw(st.permutations(slices))
    share = draw(st.sampled_from((0, 0.1, 1)))
    gone = np.flatnonzero(rng.random(n) < share)
    return matrix, user, slices, gone, draw(st.sampled_from((1, 2, 10, 50, 7000)))


@settings(max_examples=120, deadline=None)
@given(questions())
def test_all_ways_find_what_the_oracle_finds(question) -> None:
    matrix, user, slices, gone, k = question
    with np.errstate(all="ignore"):
        for scan in all_ways(matrix):
            check(scan, matrix, user, slices, gone, k)
            check(scan, matrix, user, slices, gone, k)


def test_a_score_does_not_depend_on_what_stands_around_the_row() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3000, 65)).astype(np.float32)
    matrix[1::2] = matrix[::2]  # pairs of equal rows
    user = rng.standard_normal(65).astype(np.float32)
    for scan in all_ways(matrix):
        whole = scan.best(user, [(0, 3000)], NONE, 3000)
        score = dict(zip(whole.ranks.tolist(), whole.scores.tolist(), strict=True))
        assert whole.ranks[1::2].tolist() == (whole.ranks[::2] + 1).tolist()
        for start, end in ((0, 1), (1, 2), (7, 12), (100, 999), (1001, 3000)):
            part = scan.best(user, [(start, end)], NONE, 50)
            assert [score[r] for r in part.ranks.tolist()] == part.scores.tolist()


@pytest.mark.parametrize("spread", [0, 1e-5, 1e-3])
def test_codes_that_can_hardly_tell_rows_apart_are_still_exact(spread: float) -> None:
    # One large direction that all rows share, and small differences below a step of the codes:
    # far more than the first look are within the bounds of the k-th.
    rng = np.random.default_rng(1)
    matrix = np.full((5000, 33), 3, np.float32)
    matrix += np.float32(spread) * rng.standard_normal(matrix.shape, np.float32)
    user = rng.standard_normal(33).astype(np.float32)
    for scan in all_ways(matrix):
        check(scan, matrix, user, [(0, 5000)], NONE, 20)


def test_no_overflow_and_no_missing_number_is_returned() -> None:
    matrix = np.array([[3e38, 3e38], [3e38, -3e38], [-3e38, -3e38], [1, 1]], np.float32)
    user = np.array([2, 2], np.float32)
    for scan in all_ways(matrix):
        top = scan.best(user, [(0, 4)], NONE, 4)
        assert top.ranks.tolist() == [0, 3]
        assert top.scores.tolist() == [np.inf, 4.0]


def test_a_row_of_overflow_does_not_spoil_the_others() -> None:
    matrix = np.random.default_rng(2).standard_normal((200, 9)).astype(np.float32)
    matrix[7] *= np.float32(1e37)
    user = np.ones(9, np.float32)
    with np.errstate(over="ignore"):
        for scan in all_ways(matrix):
            check(scan, matrix, user, [(3, 150)], np.array([7]), 20)


@pytest.mark.parametrize("d", [2, 5, 15, 16, 63, 64, 127, 128, 130, 257])
def test_rows_of_any_length_are_summed_as_numpy_does(d: int) -> None:
    rng = np.random.default_rng(d)
    matrix = rng.standard_normal((600, d)).astype(np.float32)
    matrix[:100] = 0
    matrix[50:100] *= -1
    user = -np.abs(rng.standard_normal(d).astype(np.float32))
    for one in (Scan(matrix, only_numpy=True), Scan(matrix)):
        one.compile()
        check(one, matrix, user, [(0, 600)], np.array([3, 599]), 600)


@pytest.mark.parametrize("order", ["rising", "falling", "peak", "equal"])
def test_no_order_of_rows_is_a_special_one(order: str) -> None:
    n = 40_000
    value = {
        "rising": np.arange(n), "falling": n - np.arange(n),
        "peak": n - np.abs(np.arange(n) - n // 2), "equal": np.ones(n),
    }[order]  # fmt: skip
    matrix = np.ascontiguousarray(value.astype(np.float32)[:, None] * np.ones(9, np.float32))
    for scan in all_ways(matrix):
        for k in (1, 50, 3000):
            check(scan, matrix, np.ones(9, np.float32), [(5, n)], np.arange(0, n, 3), k)


def before_a_wall(array: npt.NDArray) -> npt.NDArray:
    """A copy that ends where memory may not be read."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    area = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(area.ctypes.data + size), page, 0) == 0
    copy = area[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


@needs_numba
@pytest.mark.parametrize("d", [7, 16, 65])
def test_nothing_behind_the_last_row_is_read(d: int) -> None:
    matrix = before_a_wall(np.random.default_rng(d).standard_normal((1003, d), np.float32))
    codes, scales = (before_a_wall(array) for array in encode(matrix))
    for one in (Scan(matrix), Scan(matrix, Codes.of(codes, scales, matrix))):
        assert one.compile()
        for start in (0, 990, 998, 999, 1000, 1001, 1002):
            check(one, matrix, matrix[0], [(start, 1003)], NONE, 5)


@needs_numba
def test_a_scan_that_is_asked_often_is_compiled_in_a_thread(monkeypatch) -> None:
    monkeypatch.setattr(compiled, "_kernels", {})
    monkeypatch.setattr(scan_module, "_COMPILED_AT", 3)
    matrix = np.random.default_rng(3).standard_normal((400, 5)).astype(np.float32)
    one = Scan(matrix)
    for _ in range(3):
        assert one._compiled is None
        check(one, matrix, np.ones(5, np.float32), [(0, 400)], NONE, 7)
    (thread,) = (t for t in threading.enumerate() if t.name == "compile-scan")
    while thread.is_alive():
        check(one, matrix, np.ones(5, np.float32), [(0, 400)], NONE, 7)
        time.sleep(0.01)
    assert one._compiled is not None
    check(one, matrix, np.ones(5, np.float32), [(0, 400)], NONE, 7)
    assert Scan(matrix)._compiled is not None  # of its kind there is one now


def test_without_numba_numpy_scans(monkeypatch) -> None:
    monkeypatch.setattr(compiled, "has_numba", lambda: False)
    assert not Scan(np.ones((9, 5), np.float32)).compile()
    monkeypatch.undo()
    assert not Scan(np.ones((9, 1025), np.float32)).compile()  # nor where rows are so long


@needs_numba
def test_a_numpy_that_sums_in_another_order_scans_alone(monkeypatch) -> None:
    matrix = np.random.default_rng(4).standard_normal((400, 65)).astype(np.float32)
    assert Scan(matrix).compile()
    backwards = types.SimpleNamespace(reduce=lambda x, axis: x[:, ::-1].cumsum(axis=axis)[:, -1])
    monkeypatch.setattr(np, "add", backwards)
    assert not Scan(matrix).compile()


values = st.lists(st.sampled_from((-np.inf, -1.0, 0.0, 0.5, 2.0)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(values, st.integers(1, 50), st.integers(1, 400))
def test_values_are_ranked_like_scores(few: list[float], k: int, repeats: int) -> None:
    of = np.asarray(few * repeats, np.float32)
    top = best_of_values(of, [(0, len(of))], NONE, k)
    best = sorted((-v, i) for i, v in enumerate(of.tolist()) if v > -np.inf)[:k]
    assert top.ranks.tolist() == [i for _, i in best]
    assert top.scores.tolist() == [-v for v, _ in best]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9000), st.integers(1, 300), st.booleans())
def test_a_floor_lets_enough_and_not_many_more_pass(seed, n, count, ties) -> None:
    rng = np.random.default_rng(seed)
    of = rng.standard_normal(n).astype(np.float32)
    if ties:
        of = np.round(of)
    floor = floor_of(of, count)
    passed = reaching(of, floor)
    assert passed.tolist() == np.flatnonzero(of >= floor).tolist()
    assert len(passed) >= min(n, count)
    if not ties:
        assert len(passed) <= 2 * count + 50


# --- codes -----------------------------------------------------------------------------------


@needs_numba
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from((1, 2, 17, 30, 65)))
def test_a_bound_is_never_below_the_score(seed, kind, d) -> None:
    rng = np.random.default_rng(seed)
    matrix = draw_matrix(kind, 300, d, rng)
    user = rng.standard_normal(d).astype(np.float32)
    codes = codes_of(matrix)
    bounds = np.empty(300, np.float32)
    slack = compiled.write_bounds(codes, user, 0, bounds)
    exact = matrix.astype(np.float64) @ user.astype(np.float64)
    assert slack <= 4.1 * (d + 8) * 2.0**-24 * codes.longest * np.linalg.norm(user) + 1e-30
    assert (bounds + slack >= exact).all()
    # And no further above it than two roundings of 8 bits are apart.
    lengths = np.linalg.norm(matrix, axis=1)
    assert (bounds - exact <= slack + 0.03 * np.sqrt(d + 15) * lengths * np.linalg.norm(user)).all()


@needs_numba
def test_codes_spare_most_rows() -> None:
    # A row that is not read may be anything: here it is no number.
    rng = np.random.default_rng(5)
    matrix = draw_matrix("normal", 20_000, 65, rng)
    codes, user = codes_of(matrix), rng.standard_normal(65).astype(np.float32)
    right = Scan(matrix, only_numpy=True).best(user, [(0, 20_000)], NONE, 400)
    spoilt = np.full_like(matrix, np.nan)
    spoilt[right.ranks] = matrix[right.ranks]
    spoilt[:2000] = matrix[:2000]  # no k-th score rules these out
    one = Scan(spoilt, codes)
    assert one.compile()
    top = one.best(user, [(0, 20_000)], NONE, 10)
    assert top.ranks.tolist() == right.ranks[:10].tolist()


def test_sums_of_wide_codes_fit_their_integers() -> None:
    for d in (1009, 1024, 4001):
        matrix = np.ones((5, d), np.float32)
        for one in (Scan(matrix, only_numpy=True), Scan(matrix, codes_of(matrix))):
            assert one.compile() in (False, d <= 1024)
            check(one, matrix, np.ones(d, np.float32), [(1, 5)], NONE, 2)


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (lambda c, s, m: (c[:-1], s, m), "items8.npy"),
        (lambda c, s, m: (c.astype(np.int16), s, m), "items8.npy"),
        (lambda c, s, m: (c, s.astype(np.float64), m), "items8_scales.npy"),
        (lambda c, s, m: (c, s * np.float32([-1, 1]), m), "items8_scales.npy"),
        (lambda c, s, m: (c, s + np.float32([0, 1]), m), "items8_scales.npy"),
        (lambda c, s, m: (c, s * np.float32([np.inf, 1]), m), "items8_scales.npy"),
        (lambda c, s, m: (np.roll(c, 1, axis=0), s, m), "items8.npy"),
        (lambda c, s, m: (c, s * np.float32([1.1, 1]), m), "items8.npy"),
    ],
)
def test_codes_of_another_matrix_are_refused(broken, field: str) -> None:
    matrix = np.random.default_rng(4).standard_normal((100, 17)).astype(np.float32)
    with pytest.raises(CorruptArtifact, match=field):
        Codes.of(*broken(*encode(matrix), matrix))
