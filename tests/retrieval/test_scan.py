"""Top-k over slices against scores of every row and a sort."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import CorruptArtifact
from serendip.retrieval.codes import Codes, encode, numpy_bounds
from serendip.retrieval.compiled import compiled_bounds, has_numba
from serendip.retrieval.scan import Costs, Scan, best_of_values, floor_of, reaching

Float32 = npt.NDArray[np.float32]
NONE = np.empty(0, np.int64)
ALWAYS = Costs(coded_start=0, coded_row=0, rescored=0)


def codes_of(matrix: Float32) -> Codes:
    return Codes.of(*encode(matrix), matrix, numpy_bounds)


def all_ways(matrix: Float32) -> list[Scan]:
    """In float32, and by codes wherever they hold."""
    return [Scan(matrix), Scan(matrix, codes_of(matrix), ALWAYS)]


def oracle(matrix: Float32, user: Float32, slices, gone, k: int) -> tuple[list[int], list[float]]:
    scores = np.add.reduce(matrix * user, axis=1)
    inside = {rank for start, end in slices for rank in range(start, end)} - set(gone.tolist())
    best = sorted((-float(scores[r]), r) for r in inside)[:k]
    return [r for _, r in best], [-s for s, _ in best]


def check(scan: Scan, matrix: Float32, user: Float32, slices, gone, k: int) -> None:
    top = scan.best(user, slices, gone, k)
    ranks, scores = oracle(matrix, user, slices, gone, k)
    assert top.ranks.tolist() == ranks
    assert top.scores.tolist() == scores


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
    n, d = draw(st.integers(1, 1500)), draw(st.sampled_from((1, 2, 7, 8, 17, 18, 65, 136, 300)))
    matrix = draw_matrix(draw(st.sampled_from(KINDS)), n, d, rng)
    matrix *= np.float32(10.0 ** draw(st.sampled_from((0, 0, 0, -30, -12, 12, 17))))
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
    for scan in all_ways(matrix):
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
    top = Scan(matrix).best(user, [(0, 4)], NONE, 4)
    assert top.ranks.tolist() == [0, 3]
    assert top.scores.tolist() == [np.inf, 4.0]


def test_a_row_of_overflow_does_not_spoil_the_others() -> None:
    matrix = np.random.default_rng(2).standard_normal((200, 9)).astype(np.float32)
    matrix[7] *= np.float32(1e37)
    user = np.ones(9, np.float32)
    with np.errstate(over="ignore"):
        for scan in all_ways(matrix):
            check(scan, matrix, user, [(3, 150)], np.array([7]), 20)


def test_the_costs_choose_the_way() -> None:
    matrix = np.random.default_rng(3).standard_normal((400, 17)).astype(np.float32)
    asked = []

    def counted(codes, *rest) -> None:
        asked.append(len(codes))
        numpy_bounds(codes, *rest)

    codes = dataclasses.replace(codes_of(matrix), kernel=counted)
    scan = Scan(matrix, codes, Costs(plain_row=2, coded_row=1, coded_start=50, rescored=1))
    # With k = 2 codes cost 50 + 2 + 1 + 16 more, and 1 a row less.
    for slices, k in ([(0, 70)], 2), ([(0, 69)], 2), ([(0, 30), (60, 100)], 2), ([(0, 70)], 3):
        check(scan, matrix, np.ones(17, np.float32), slices, NONE, k)
    assert asked == [70, 30, 40]


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from((1, 2, 17, 30, 65)))
def test_a_bound_is_never_below_the_score(seed, kind, d) -> None:
    rng = np.random.default_rng(seed)
    matrix = draw_matrix(kind, 300, d, rng)
    user = rng.standard_normal(d).astype(np.float32)
    codes = codes_of(matrix)
    bounds = np.empty(300, np.float32)
    codes.bounds(user)(0, 300, bounds)
    exact = matrix.astype(np.float64) @ user.astype(np.float64)
    slack = 4 * (d + 8) * 2.0**-24 * codes.longest * np.linalg.norm(user)
    assert (bounds + slack >= exact).all()
    # And no further above it than two roundings of 8 bits are apart.
    lengths = np.linalg.norm(matrix, axis=1)
    assert (bounds - exact <= slack + 0.03 * np.sqrt(d + 15) * lengths * np.linalg.norm(user)).all()


def kernel(width: int):
    if not has_numba():
        pytest.skip("numba is not installed: pip install 'serendip[fast]'")
    return compiled_bounds(width)


@pytest.mark.parametrize("d", [17, 65])
def test_the_compiled_kernel_does_what_the_readable_one_does(d: int) -> None:
    rng = np.random.default_rng(d)
    matrix = draw_matrix("normal", 5000, d, rng)
    codes = codes_of(matrix)
    fast = dataclasses.replace(codes, kernel=kernel(codes.codes.shape[1]))
    for array in (codes.codes, codes.scales):
        array.flags.writeable = False  # as a memory map is
    user = rng.standard_normal(d).astype(np.float32)
    one, other = np.empty(999, np.float32), np.empty(999, np.float32)
    codes.bounds(user)(1, 1000, one)
    fast.bounds(user)(1, 1000, other)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    check(Scan(matrix, fast, ALWAYS), matrix, user, [(5, 4990)], np.arange(0, 5000, 7), 50)


def test_sums_of_wide_codes_fit_their_integers() -> None:
    matrix = np.ones((3, 4001), np.float32)
    scan = Scan(matrix, codes_of(matrix), ALWAYS)
    check(scan, matrix, np.ones(4001, np.float32), [(0, 3)], NONE, 2)
    fast = dataclasses.replace(codes_of(matrix), kernel=kernel(4000))
    check(Scan(matrix, fast, ALWAYS), matrix, np.ones(4001, np.float32), [(0, 3)], NONE, 2)


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
        Codes.of(*broken(*encode(matrix), matrix), numpy_bounds)
