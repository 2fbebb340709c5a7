"""A synthetic log in daily partitions, written by DuckDB: Zipf items, users in sessions.

Items lie in 4,096 clusters of 256 bases; 70% of a session's items are of its base. One row in 200
shares its time with the one before, one in 1,000 repeats it, one in 1,000 names an item that the
catalogue does not have.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb

from serendip.progress import progress

ITEMS, CLUSTERS, BASES = 1_000_000, 4096, 256
DAYS, SESSION = 20, 20
ITEMS_FILE = "placed.parquet"

_ROWS = """
SELECT
  printf('u%010d', hash(s * 7 + {day} * 1000003) % {users}) AS user_id,
  CASE WHEN hash(k + 13) % 1000 = 0 THEN 'gone' ELSE printf('i%010d', item_no) END AS item_id,
  CAST(1700000000000 + ({day} * 86400 + hash(s + 77) % 80000 + (t % {session}) * 60
    + hash(t + 5) % 55) * 1000 AS BIGINT) AS timestamp,
  CAST(hash(k * 7 + {day}) % 1001 AS DOUBLE) / 1000 AS satisfaction
FROM (
  SELECT *, CASE
      WHEN hash(k * 5 + {day}) % 10 < 7
        THEN rank - rank % {clusters} + hash(s + 3) % {bases} * {siblings} + rank % {siblings}
      ELSE rank
    END % {items} AS item_no
  FROM (
    SELECT *, CAST(FLOOR(EXP(hash(k * 31 + {day} * 97) % 1000003 / 1000003.0 * LN({items})))
        AS BIGINT) AS rank,
      CASE WHEN hash(k + 3) % 200 = 0 AND k % {session} > 0 THEN k - 1 ELSE k END AS t
    FROM (
      SELECT j // {session} AS s,
        CASE WHEN hash(j + 9) % 1000 = 0 AND j % {session} > 0 THEN j - 1 ELSE j END AS k
      FROM (SELECT (i * 7368787) % {per_day} AS j FROM range({per_day}) _(i))
    )
  )
)
"""


def log(folder: Path, rows: int) -> Path:
    """The data folder of a log of ``rows``, made once: interactions/day=NN/ and placed.parquet."""
    target = folder / f"{rows}"
    if target.is_dir():
        return target
    partial = folder / f".{rows}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "interactions").mkdir(parents=True)
    siblings = CLUSTERS // BASES
    with (
        duckdb.connect() as db,
        progress(f"log of {rows:,} rows", DAYS) as tick,
    ):
        db.execute("SET enable_progress_bar = false")
        db.execute(
            f"COPY (SELECT printf('i%010d', i) AS item_id, CAST(i AS INT) AS item_no, "
            f"CAST(i % {CLUSTERS} AS INT) AS node_id, "
            f"CAST(i % {CLUSTERS} // {siblings} AS INT) AS base_id "
            f"FROM range({ITEMS}) _(i)) TO '{partial / ITEMS_FILE}'"
        )
        for day in range(DAYS):
            query = _ROWS.format(
                day=day, users=max(1, rows // 100), session=SESSION, clusters=CLUSTERS,
                bases=BASES, siblings=siblings, items=ITEMS, per_day=rows // DAYS,
            )  # fmt: skip
            part = partial / "interactions" / f"day={day:02d}"
            part.mkdir()
            db.execute(f"COPY ({query}) TO '{part / 'part-0.parquet'}'")
            tick()
    partial.rename(target)
    return target
