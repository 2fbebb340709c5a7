"""Bulk planning on many machines: the same workers as actors of a Ray cluster.

Planner and media must lie where every machine sees them under the same path. Knows nothing of
what a worker does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from serendip.core import InvalidRequest, SerendipError
from serendip.planning.workers import (
    AHEAD,
    Done,
    Lease,
    Setup,
    Worker,
    WorkerGoneError,
    plan_with,
)


def plan_on_ray(setup: Setup, leases: Iterator[Lease]) -> Iterator[Done]:
    """Plans leases with actors: of the cluster at RAY_ADDRESS, else of one started here.

    Raises:
        InvalidRequest: Ray is not installed, or no cluster answers.
        SerendipError: see ``plan_with``.
    """
    try:
        import ray
    except ImportError as e:
        raise InvalidRequest(
            "is not installed",
            field="plans.crew",
            value="ray",
            remedy="pip install 'serendip[ray]', or plan with plans.crew = 'processes'.",
        ) from e
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise InvalidRequest(
                f"no cluster answers ({e})", field="RAY_ADDRESS", remedy="Start it, or unset it."
            ) from e
    free = ray.cluster_resources().get("CPU", 0)
    if free < setup.plans.workers:
        raise InvalidRequest(
            f"needs a CPU each, the cluster has {free:.0f}",
            field="plans.workers",
            value=setup.plans.workers,
            remedy="Lower it, or add machines to the cluster.",
        )
    # Two leases at a time: one is decoded while the model is at the other.
    actor = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=AHEAD)(Worker)

    def ready(hands: list[_Hand]) -> Iterable[_Hand]:
        found, _ = ray.wait([ref for hand in hands for ref in hand.leases])
        return [hand for hand in hands if any(ref in hand.leases for ref in found)]

    try:
        yield from plan_with(lambda: _Hand(actor, setup), ready, leases, setup.plans.workers)
    finally:
        if ours:
            ray.shutdown()


class _Hand:
    """An actor."""

    def __init__(self, actor: Any, setup: Setup) -> None:
        self.leases: dict[Any, Lease] = {}
        self._actor = actor.remote(setup)

    def in_hand(self) -> list[Lease]:
        return list(self.leases.values())

    def give(self, lease: Lease) -> None:
        self.leases[self._actor.plan.remote(lease)] = lease

    def take(self) -> Done:
        import ray

        (ref,), _ = ray.wait(list(self.leases))
        try:
            done: Done = ray.get(ref)
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, SerendipError):
                raise e.cause from None
            raise SerendipError(f"a worker failed ({e.cause})", field="plan") from e
        except ray.exceptions.RayActorError as e:
            if "creation" in str(e):  # the last lines say what was raised there
                said = f"a worker cannot open the planner ({str(e).splitlines()[-1]})"
                raise SerendipError(said, field="plan") from None
            raise WorkerGoneError(str(e).splitlines()[0]) from None
        except ray.exceptions.RayError as e:
            raise WorkerGoneError(str(e).splitlines()[0]) from None
        del self.leases[ref]
        return done

    def close(self) -> None:
        import ray

        ray.kill(self._actor)
