"""The plan store in Redis: one server, or a primary with replicas, shared by many readers.

Under a prefix, one version beside the other::

    PREFIX:current              the version that readers follow
    PREFIX:versions             whole versions, the newest first
    PREFIX:VERSION:info         hash: what the version holds; it is there when the version is whole
    PREFIX:VERSION:BUCKET       hash: item ID -> serialised plan
    PREFIX:partial              hash: version -> buckets of what is being written or removed
    PREFIX:lock                 the one writer

An item's bucket is its crc32 modulo the number of buckets: about a thousand plans each, so that no
key is huge and a version is removed by name. Redis must not evict (maxmemory-policy noeviction, or
a volatile one: no key here expires but the lock).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path

from serendip.core import (
    CorruptArtifact,
    InvalidData,
    InvalidRequest,
    NotFound,
    NotReady,
    SerendipError,
)
from serendip.planning.lmdb_store import LmdbStore
from serendip.planning.plan_store import StoreInfo, checked_rows, key_of
from serendip.progress import progress

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.lock import Lock
    from redis.retry import Retry
except ImportError as e:
    raise SerendipError(
        "plans in Redis need redis-py", remedy="pip install 'serendip[redis]'"
    ) from e

PREFIX = "serendip:plans"

_PLANS_A_BUCKET = 1000
_BATCH = 2000  # commands a round trip
_LOCK_S = 60.0  # a writer that says nothing for so long is taken for dead
_REMEDY = "Write the version again (serendip plan --redis URL)."


def connect(url: str, *, timeout_s: float = 1.0, retries: int = 1) -> redis.Redis:
    """A client of ``redis://HOST:PORT/DB``, ``rediss://...`` or ``unix://PATH``.

    Args:
        timeout_s: of a connection and of an answer.
        retries: of a call whose connection was lost, at once. A writer must have none: a row that
            is sent again looks like a second plan of its item.

    Raises:
        InvalidRequest: the URL is none.
        NotReady: nobody answers there.
    """
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), retries),
        )
    except ValueError as e:
        raise InvalidRequest(str(e), field="redis", value=url) from e
    with _typed(client):
        client.ping()
    return client


def current_version(client: redis.Redis, *, prefix: str = PREFIX) -> str | None:
    """The version that readers follow, or None. Raises NotReady."""
    with _typed(client):
        found = client.get(f"{prefix}:current")
    return None if found is None else found.decode()


def copy_to_redis(path: Path, url: str) -> None:
    """Writes the plans of an LMDB store into Redis, and makes them current there.

    Raises:
        CorruptArtifact: no store at ``path``.
        InvalidRequest, NotReady, SerendipError: as ``connect`` and ``write_redis``.
    """
    with (
        closing(LmdbStore(path)) as store,
        closing(connect(url, timeout_s=30, retries=0)) as client,
    ):
        write_redis(client, store.rows(), store.info())


# --- write -------------------------------------------------------------------------------


def write_redis(
    client: redis.Redis,
    plans: Iterable[tuple[str, bytes]],
    info: StoreInfo,
    *,
    prefix: str = PREFIX,
    keep: int = 3,
) -> None:
    """Writes a version and, when it is whole, makes it current; then removes the oldest.

    Readers of the versions before go on undisturbed as long as theirs is kept. A version that is
    there already, and whole, is made current as it is.

    Args:
        client: one that does not retry.
        plans: item ID and serialised plan, in any order.
        keep: how many versions stay, the new one included; at least 1. A server reads the
            version of its release, so that more of them must stay than are planned between two
            releases.

    Raises:
        InvalidRequest: an item ID is not 1 to 256 bytes, or another process is writing.
        InvalidData: an item has two plans, or there are not ``info.count`` of them.
        NotReady: Redis cannot be reached.
        SerendipError: it refuses to write: its memory is full, or it is a replica.
    """
    if keep < 1:
        raise InvalidRequest("must be at least 1", field="keep", value=keep)
    buckets = info.count // _PLANS_A_BUCKET + 1
    with _typed(client), _sole_writer(client, prefix) as lock:
        for version, left in client.hgetall(f"{prefix}:partial").items():
            _remove(client, prefix, version.decode(), int(left))
        is_new = not _is_whole(client, prefix, info.version)
        if is_new:
            _remove(client, prefix, info.version, buckets)  # what eviction has left of it
            client.hset(f"{prefix}:partial", info.version, buckets)
        try:
            with client.pipeline() as swap:
                if is_new:
                    _write_buckets(client, lock, f"{prefix}:{info.version}", plans, info, buckets)
                    said = {"said": info.encode(), "buckets": buckets}
                    swap.hset(f"{prefix}:{info.version}:info", mapping=said)
                    swap.hdel(f"{prefix}:partial", info.version)
                swap.lrem(f"{prefix}:versions", 0, info.version)
                swap.lpush(f"{prefix}:versions", info.version)
                swap.set(f"{prefix}:current", info.version)
                swap.execute()
        except BaseException:
            with suppress(redis.RedisError):
                if is_new:
                    _remove(client, prefix, info.version, buckets)
            raise
        for old in client.lrange(f"{prefix}:versions", keep, -1):
            left = int(client.hget(f"{prefix}:{old.decode()}:info", "buckets") or 0)
            client.hset(f"{prefix}:partial", old, left)  # should this be killed on the way
            _remove(client, prefix, old.decode(), left)


def _write_buckets(
    client: redis.Redis,
    lock: Lock,
    begins: str,
    plans: Iterable[tuple[str, bytes]],
    info: StoreInfo,
    buckets: int,
) -> None:
    written = 0
    with progress("write plans", info.count) as tick:
        rows = checked_rows(plans)
        while batch := list(islice(rows, _BATCH)):
            pipe = client.pipeline(transaction=False)
            for key, plan in batch:
                pipe.hset(f"{begins}:{zlib.crc32(key) % buckets}", key, plan)
            new = pipe.execute()
            if 0 in new:
                raise InvalidData(
                    "an item has one plan",
                    field="item_id",
                    value=batch[new.index(0)][0].decode(),
                    remedy="Leave one of its rows.",
                )
            lock.reacquire()
            written += len(batch)
            tick(len(batch))
    if written != info.count:
        raise InvalidData(f"must be {info.count} plans", field="plans", value=written)


def _is_whole(client: redis.Redis, prefix: str, version: str) -> bool:
    try:
        RedisStore(client, version, prefix=prefix)
    except (NotFound, CorruptArtifact):
        return False
    return True


def _remove(client: redis.Redis, prefix: str, version: str, buckets: int) -> None:
    """Removes a version: first what says that it is there, so that no reader takes a plan that is
    gone for an item without one.
    """
    # Not as a transaction: where memory is full, Redis takes no more of those.
    client.unlink(f"{prefix}:{version}:info")
    client.lrem(f"{prefix}:versions", 0, version)
    for at in range(0, buckets, _BATCH):
        names = (f"{prefix}:{version}:{n}" for n in range(at, min(at + _BATCH, buckets)))
        client.unlink(*names)
    client.hdel(f"{prefix}:partial", version)


@contextmanager
def _sole_writer(client: redis.Redis, prefix: str) -> Iterator[Lock]:
    lock = client.lock(f"{prefix}:lock", timeout=_LOCK_S, blocking=False)
    if not lock.acquire():
        raise InvalidRequest(
            "another process is writing plans",
            field=prefix,
            remedy=f"Wait for it to end; one that was killed counts for {_LOCK_S:.0f} s.",
        )
    try:
        yield lock
    finally:
        with suppress(redis.RedisError):
            lock.release()


# --- read --------------------------------------------------------------------------------


class RedisStore:
    """A PlanStore over one version in Redis; the client is the caller's to close."""

    def __init__(self, client: redis.Redis, version: str, *, prefix: str = PREFIX) -> None:
        """Opens a version.

        Raises:
            NotFound: it is not there, or not whole yet.
            CorruptArtifact: plans of it are missing: Redis has evicted them.
            NotReady: Redis cannot be reached.
        """
        self._client = client
        self._begins = f"{prefix}:{version}:"
        self._closed = False
        with _typed(client):
            said, buckets = client.hmget(f"{self._begins}info", "said", "buckets")
            if said is None or buckets is None:
                raise self._gone()
            self._info = StoreInfo.decode(said, self._begins)
            self._buckets = int(buckets)
            pipe = client.pipeline(transaction=False)
            for n in range(self._buckets):
                pipe.hlen(f"{self._begins}{n}")
            count = sum(pipe.execute())
        if count != self._info.count:
            raise CorruptArtifact(
                f"must hold {self._info.count} plans",
                field=self._begins,
                value=count,
                remedy=f"{_REMEDY} Redis must not evict (maxmemory-policy noeviction).",
            )

    def get(self, item_id: str) -> bytes | None:
        """The item's serialised plan, or None: see PlanStore."""
        key = key_of(item_id, "item_id")
        with _typed(self._open()) as client:
            found: bytes | None = client.hget(self._bucket(key), key)
            if found is None:
                self._check_there()
        return found

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        """One plan or None an item, in order, in one round trip: see PlanStore."""
        keys = [key_of(item_id, "item_ids") for item_id in item_ids]
        with _typed(self._open()) as client:
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.hget(self._bucket(key), key)
            found: list[bytes | None] = pipe.execute()
            if None in found:
                self._check_there()
        return found

    def info(self) -> StoreInfo:
        """What the store holds."""
        return self._info

    def close(self) -> None:
        """Refuses reads from now on."""
        self._closed = True

    def _bucket(self, key: bytes) -> str:
        return f"{self._begins}{zlib.crc32(key) % self._buckets}"

    def _check_there(self) -> None:
        """Raises NotFound if what was not found may have been removed with its version."""
        if not self._client.exists(f"{self._begins}info"):
            raise self._gone()

    def _gone(self) -> NotFound:
        return NotFound("no such version in Redis", field=self._begins, remedy=_REMEDY)

    def _open(self) -> redis.Redis:
        if self._closed:
            raise NotReady("the plan store is closed", field=self._begins)
        return self._client


@contextmanager
def _typed(client: redis.Redis) -> Iterator[redis.Redis]:
    """Turns what redis-py raises into the typed errors."""
    try:
        yield client
    except redis.exceptions.LockError as e:
        raise InvalidRequest(
            "another process has begun to write plans", remedy="Let one write at a time."
        ) from e
    except (redis.ConnectionError, redis.TimeoutError) as e:
        raise NotReady(f"Redis cannot be reached ({e})", field="redis") from e
    except redis.RedisError as e:
        reason = str(e).rpartition("caused error: ")[2]  # less the command, which holds a plan
        raise SerendipError(
            f"Redis refuses ({reason})",
            field="redis",
            remedy="It must be a primary with memory for one more version.",
        ) from e
