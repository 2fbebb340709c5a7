"""Restricted top-k: ours and other libraries' on the same requests, in turns, in one process.

    python -m peers.slices PLAN

PLAN is a JSON object of retrieve.Plan. Prints one JSON object. Each peer is made, measured in turns
with ours, and let go, so that two copies of the items are in memory at most.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common.timing import interleaved, keep_memory
from retrieval.growth import growth
from retrieval.ways import (
    Answers,
    Way,
    agreement,
    brute_force,
    full_scan,
    gemv_gb_per_s,
    ours,
)  # fmt: skip
from retrieval.world import Request, World, make_trained_like, world

from serendip.retrieval.codes import Codes, encode
from serendip.retrieval.compiled import write_bounds

MOST = 4  # clusters a request
CHECKED = 16  # requests whose items are compared with brute force


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Times and shares of equal items of all ways; see retrieve.Plan."""
    import faiss

    faiss.omp_set_num_threads(1)
    keep_memory()
    found: dict[str, Any] = {"narrow": {}, "wide": {}}
    for items in plan["items"]:
        said(f"{items:,} items")
        of = world(items, plan["leaves"])
        found["narrow"][str(items)] = narrow(of, plan, items == plan["items"][0])
    wide_world = "noise"
    for wide_world in ("noise", "trained-like"):
        if wide_world == "trained-like":
            make_trained_like(of)
        found["wide"][wide_world] = wide(of, plan, wide_world == "noise", found)
    if plan["graph_items"]:
        found["graph"] = graph(plan)
    return found


def narrow(of: World, plan: dict[str, Any], small: bool) -> dict[str, Any]:
    """Requests of 1 to 4 leaves, batch by batch."""
    k = plan["k"]
    mine = {"ours": ours(of, k)}
    rows: dict[str, Any] = {}
    peers: dict[str, Callable[[], Way]] = {
        "full scan and mask": lambda: full_scan(of, k),
        "ours without numba": lambda: ours(of, k, only_numpy=True),
        "faiss IVF, preassigned": lambda: ivf(of, k),
        "faiss IVF SQ8, preassigned": lambda: ivf(of, k, coded=True),
        "faiss flat, IDSelectorRange": lambda: flat(of, k, by_range=True),
        "faiss flat, IDSelectorBatch": lambda: flat(of, k, by_range=False),
    }
    for name, make in peers.items():
        said(name)
        began = time.process_time()
        peer = make()
        rows[name] = {"made_s": time.process_time() - began, "batches": {}}
        slow = name in ("full scan and mask", "faiss flat, IDSelectorBatch")
        for size in plan["slow_batches"] if slow and not small else plan["batches"]:
            of_size = of.requests(max(size, CHECKED if slow else 1024), MOST, size)
            batches = [of_size[at : at + size] for at in range(0, len(of_size), size)]
            rows[name]["batches"][str(size)] = pair(
                of, mine, peer, batches, k, plan["slow_repetitions" if slow else "repetitions"]
            )
        del peer
    gb = gemv_gb_per_s(of.matrix, of.requests(1, 1, 0)[0].user)
    bytes_of = min(1 << 20, len(of.matrix) // 2) * of.matrix.shape[1] * 4
    batches = {size: cut(of.requests(1024, MOST, size), size) for size in plan["batches"]}
    times = interleaved(
        {"gemv": gb} | {str(size): taker(mine["ours"], b) for size, b in batches.items()},
        plan["repetitions"],
    )
    bandwidth = bytes_of / np.median(times["gemv"]) / 1e9
    share = {}
    for size, of_size in batches.items():
        requests = [r for b in of_size for r in b]
        asked = (
            sum(end - start for r in requests for start, end in r.slices) * 4 * of.matrix.shape[1]
        )
        share[str(size)] = (
            asked / len(of_size) / float(np.median(times[str(size)])) / 1e9 / bandwidth
        )
    return {"rows": rows, "gemv_gb_per_s": bandwidth, "bandwidth_share": share}


def wide(of: World, plan: dict[str, Any], noise: bool, found: dict[str, Any]) -> dict[str, Any]:
    """Requests of one slice of many leaves, one at a time: float32, codes, peers."""
    k, together = plan["k"], plan["wide_leaves"]
    said("codes")
    began = time.process_time()
    codes, scales = encode(of.matrix)
    encoded = time.process_time() - began
    began = time.process_time()
    coded = Codes.of(codes, scales, of.matrix)
    opened = time.process_time() - began
    requests = of.requests(256, together, 1)
    batches = cut(requests, 1)
    plain, by_codes = {"ours": ours(of, k)}, {"ours": ours(of, k, coded)}
    result: dict[str, Any] = {
        "rows": int(np.mean([r.slices[0][1] - r.slices[0][0] for r in requests])),
        "encoded_s": encoded,
        "opened_s": opened,
        "ways": {"codes": pair(of, by_codes, plain["ours"], batches, k, plan["repetitions"])},
        "looked_again": looked_again(coded, of, requests, k),
    }
    if not noise:
        return result
    found["growth"] = growth(of, coded, plan["repetitions"])
    peers: dict[str, Callable[[], Way]] = {
        "ours without numba": lambda: ours(of, k, only_numpy=True),
        "faiss flat, IDSelectorRange": lambda: flat(of, k, by_range=True),
        "faiss IVF, preassigned": lambda: ivf(of, k),
        "faiss IVF SQ8, preassigned": lambda: ivf(of, k, coded=True),
    }
    for name, make in peers.items():
        said(name)
        peer = make()
        result["ways"][name] = pair(of, plain, peer, batches, k, plan["repetitions"])
        del peer
    return result


def pair(
    of: World, mine: dict[str, Way], peer: Way, batches: list[list[Request]], k: int, times: int
) -> dict[str, Any]:
    """CPU seconds a batch of ours and a peer's in turns, and how often items are the right ones."""
    checked = list(itertools.chain(*batches))[:CHECKED]
    right = [brute_force(of, request, k) for request in checked]
    for name, way in mine.items():
        for got, expected in zip(way(checked), right, strict=True):
            if not np.array_equal(got, expected):
                raise SystemExit(f"{name} is wrong")
    calls = {name: taker(way, batches) for name, way in (mine | {"peer": peer}).items()}
    got = interleaved(calls, times)
    return {name: t.tolist() for name, t in got.items()} | {
        "peer_equal": agreement(peer, checked, right)
    }


def cut(requests: list[Request], size: int) -> list[list[Request]]:
    return [requests[at : at + size] for at in range(0, len(requests), size)]


def taker(way: Way, batches: Sequence[list[Request]]) -> Callable[[], object]:
    """Each call takes the next batch, so that no slice is in the cache because it was just read."""
    turns = itertools.cycle(batches)
    return lambda: way(next(turns))


def looked_again(codes: Codes, of: World, requests: list[Request], k: int) -> dict[str, float]:
    """How tight the bounds by codes are: items a request that a bound cannot rule out."""
    within = []
    for r in requests[:CHECKED]:
        ((start, end),) = r.slices
        bounds = np.empty(end - start, np.float32)
        write_bounds(codes, r.user, start, bounds)
        scores = np.add.reduce(of.matrix[start:end] * r.user, axis=1)
        within.append(int((bounds >= np.partition(scores, -k)[-k]).sum()))
    return {"mean": float(np.mean(within)), "most": float(np.max(within))}


# --- peers -----------------------------------------------------------------------------------


def ivf(of: World, k: int, *, coded: bool = False) -> Way:
    """faiss's inverted lists, one a leaf, told which to look into."""
    import faiss

    columns, leaves = of.matrix.shape[1], len(of.start) - 1
    quantizer = faiss.IndexFlatIP(columns)
    quantizer.add(np.zeros((leaves, columns), np.float32))
    if coded:
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, columns, leaves, faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        index.train(of.matrix[:: max(1, len(of.matrix) // 100_000)])
    else:
        index = faiss.IndexIVFFlat(quantizer, columns, leaves, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
    leaf = of.leaf_of
    for at in range(0, len(leaf), 1 << 18):
        x, lists = of.matrix[at : at + (1 << 18)], leaf[at : at + (1 << 18)].copy()
        ids = np.arange(at, at + len(x))
        index.add_core(len(x), faiss.swig_ptr(x), faiss.swig_ptr(ids), faiss.swig_ptr(lists), None)
    index.parallel_mode = 0

    def way(batch: Sequence[Request]) -> Answers:
        most = max(len(r.clusters) for r in batch)
        lists = np.full((len(batch), most), -1, np.int64)
        for row, r in zip(lists, batch, strict=True):
            row[: len(r.clusters)] = r.clusters
        users = np.stack([r.user for r in batch])
        index.nprobe = most
        _, ids = index.search_preassigned(users, k, lists, np.zeros(lists.shape, np.float32))
        return list(ids)

    return way


def flat(of: World, k: int, *, by_range: bool) -> Way:
    """faiss's flat index with a selector of IDs."""
    import faiss

    index = faiss.IndexFlatIP(of.matrix.shape[1])
    for at in range(0, len(of.matrix), 1 << 18):
        index.add(of.matrix[at : at + (1 << 18)])

    def ranged(request: Request) -> np.ndarray:
        scores, ids = [], []
        for start, end in request.slices:
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(start, end))
            s, i = index.search(request.user[None], k, params=chosen)
            scores.append(s[0])
            ids.append(i[0])
        if len(ids) == 1:
            return ids[0]
        best = np.argsort(-np.concatenate(scores), kind="stable")[:k]
        return np.concatenate(ids)[best]

    def batched(request: Request) -> np.ndarray:
        ids = np.concatenate([np.arange(start, end) for start, end in request.slices])
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(ids))
        return index.search(request.user[None], k, params=chosen)[1][0]

    one = ranged if by_range else batched
    return lambda batch: [one(r) for r in batch]


def graph(plan: dict[str, Any]) -> dict[str, Any]:
    """hnswlib with a filter, on fewer items: building a graph takes minutes a million."""
    try:
        import hnswlib
    except ImportError as e:
        return {"failed": str(e)}
    items, k = plan["graph_items"], plan["k"]
    of = world(items, max(1, items * plan["leaves"] // 1_000_000))
    said(f"hnswlib, {items:,} items")
    index = hnswlib.Index("ip", of.matrix.shape[1])
    index.init_index(items, M=16, ef_construction=100, random_seed=0)
    index.set_num_threads(1)
    began = time.process_time()
    index.add_items(of.matrix)
    made = time.process_time() - began
    index.set_ef(10 * k)

    def way(batch: Sequence[Request]) -> Answers:
        answers = []
        for r in batch:
            inside = r.slices

            def passes(rank: int, inside: Any = inside) -> bool:
                return any(start <= rank < end for start, end in inside)

            try:
                ids, _ = index.knn_query(r.user[None], k, num_threads=1, filter=passes)
                answers.append(ids[0].astype(np.int64))
            except RuntimeError:  # it found fewer than k
                answers.append(np.empty(0, np.int64))
        return answers

    mine = {"ours": ours(of, k)}
    batches = cut(of.requests(CHECKED, MOST, 1), 1)
    got = pair(of, mine, way, batches, k, 3)
    checked = list(itertools.chain(*batches))
    recall = [
        len(set(a.tolist()) & set(brute_force(of, r, k).tolist())) / k
        for a, r in zip(way(checked), checked, strict=True)
    ]
    return {"items": items, "made_s": made, "recall": float(np.mean(recall)), **got}


def said(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
