"""The rounds: every server under every load, and the ranker in process, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serendip.core import RetrievalQuery
from serendip.progress import console
from serendip.retrieval.ranker import ClusterRanker
from serving import load, servers
from serving.in_process import rows_a_second
from serving.load import FEW, MANY, ONE, SIXTEEN, Load, Ran, at_rate
from serving.material import Size
from serving.servers import Kind, Server

OURS, BATCH = "retriever server", "retriever server, 32 users a call"
ECHO, PLAIN, MLSERVER, PYTRITON = (
    "grpc.aio, no work", "grpc.aio, one by one", "MLServer", "PyTriton",
)  # fmt: skip
BATCHES = (1, 8, 16, 32)  # of the ranker in process


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        seconds: of each run, about.
        rates: calls a second of the open loops.
        checked: users of the cross-check.
    """

    size: Size
    rounds: int
    seconds: float
    rates: tuple[int, ...]
    checked: int


@dataclass
class Found:
    """What the rounds found, one entry a round.

    Attributes:
        runs: by server, then load.
        in_process: (rows a second, CPU microseconds a row) of the ranker at its best batch: for
            the one user that the load repeats, and for the 32 of a batch.
    """

    runs: dict[str, dict[str, list[Ran]]] = field(default_factory=dict)
    one: list[tuple[float, float]] = field(default_factory=list)
    rows: list[tuple[float, float]] = field(default_factory=list)
    by_batch: dict[int, list[float]] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)

    def median(self, server: str, at: Load, what: Callable[[Ran], float]) -> float:
        return float(np.median([what(ran) for ran in self.runs[server][str(at)]]))


@dataclass(frozen=True)
class Setting:
    """The ranker in process, and what is asked of everyone.

    Attributes:
        bodies: one user's request, by the environment of the peer that reads it; None: protos.
        batch: the request of ROWS users in one call.
    """

    ranker: ClusterRanker
    one: RetrievalQuery
    rows: list[RetrievalQuery]
    bodies: Mapping[str, bytes]
    batch: bytes

    def body(self, kind: Kind) -> bytes:
        return self.bodies[kind.apart.name if kind.apart else ""]


def measure_round(
    turn: int,
    started: Sequence[Server],
    setting: Setting,
    plan: Plan,
    found: Found,
    guesses: dict[tuple[str, str], float],
) -> None:
    """Every server under every load, and the ranker in process; another order every round."""
    order = [*started, None]
    order = order[turn % len(order) :] + order[: turn % len(order)]
    for server in order:
        if server is None:
            measure_in_process(setting, plan, found)
            continue
        closed = [MANY] if server.kind.name == ECHO else [ONE, SIXTEEN, MANY]
        rated = [] if server.kind.name == ECHO else [at_rate(rate) for rate in plan.rates]
        for at in closed + rated:
            measure_run(server, server.kind.name, setting, at, plan, found, guesses)
        if server.kind.name == OURS:
            measure_run(server, BATCH, setting, FEW, plan, found, guesses)


def measure_run(
    server: Server,
    name: str,
    setting: Setting,
    at: Load,
    plan: Plan,
    found: Found,
    guesses: dict[tuple[str, str], float],
) -> None:
    """One run of about the plan's seconds, after a short one that warms up and guesses."""
    in_flight = at.connections * at.streams
    if (name, str(at)) not in guesses:
        few = Load(at.connections, min(at.streams, 16))
        guesses[name, str(at)] = run(server, setting, few, 3 * in_flight, name).rate
    guess = at.rate or guesses[name, str(at)]
    # An open loop of a server that falls behind ends late: at most twice the time.
    guess = min(guess, 2 * guesses[name, str(at)])
    calls = max(2 * in_flight if not at.rate else 1, int(guess * plan.seconds))
    try:
        ran = run(server, setting, at, calls, name)
    except load.Void as e:
        found.void.append(str(e))
        console.print(f"void: {e}")
        return
    found.runs.setdefault(name, {}).setdefault(str(at), []).append(ran)


def run(server: Server, setting: Setting, at: Load, calls: int, name: str = "") -> Ran:
    """One run of one user's request; of 32 users' for BATCH."""
    if name == BATCH:
        return load.run(server, servers.RETRIEVE_BATCH, setting.batch, at, calls)
    return load.run(server, server.kind.method, setting.body(server.kind), at, calls)


def measure_in_process(setting: Setting, plan: Plan, found: Found) -> None:
    """The ranker at several batches, on the servers' core."""
    seconds = plan.seconds / len(BATCHES)
    one = {b: rows_a_second(setting.ranker, [setting.one] * b, b, seconds) for b in BATCHES}
    rows = {b: rows_a_second(setting.ranker, setting.rows, b, seconds) for b in BATCHES}
    found.one.append(max(one.values()))
    found.rows.append(max(rows.values()))
    for batch, (rate, _) in rows.items():
        found.by_batch.setdefault(batch, []).append(rate)
