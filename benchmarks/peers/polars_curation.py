"""The same curation and corpus in Polars: lazy, streaming, in the form that was fastest there.

    python -m peers.polars_curation DATA OUT

As in the SQL, what ties is set apart, and the rest is neighbours in one sorted frame. Sorted by
user_id as it is: to make integers of it first cost more CPU time than it saved, and the in-memory
engine more than the streaming one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import polars as pl

GAP_MS, MIN_SUPPORT_Q, SHRINKAGE, CONTEXTS = 1_800_000, 1_000_000, 5.0, 20
HELD_OUT_BELOW = f"{round(0.15 * 2**32):08x}"
MAX_TIED_PAIRS, COVERAGE, LAST = 10_000, 800, 4_102_444_800_000
Q = 1_000_000


def main() -> None:
    """Writes what curation.ours writes, under the same names."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    items = pl.scan_parquet(data / "placed.parquet")
    log = pl.scan_parquet(data / "interactions/*/*.parquet", hive_partitioning=False)
    rows = check(log)
    events = ordered(log, items)
    # The sorted frame feeds three sums: collected together, it is computed once.
    by_a_tie = pl.col("by_a_tie")
    totals, pairs, tied, counted = pl.collect_all(
        [
            events.filter(pl.col("kind") > 0).group_by("kind").agg(*summed()),
            events.filter(pl.col("kind") == SERENDIPITOUS)
            .group_by("item_no", "next_node")
            .agg(*summed()),
            events.filter(by_a_tie).select("user_id", "timestamp", "item_no", "s"),
            log.group_by("item_id").agg(pl.len().cast(pl.Int64).alias("events")),
        ],
        engine="streaming",
    )
    catalogue = items.collect()
    kinds, more = steps_of_ties(tied, catalogue)
    totals = pl.concat([totals, kinds]).group_by("kind").agg(pl.col("weight", "s").sum())
    pairs = (
        pl.concat([pairs, more]).group_by("item_no", "next_node").agg(pl.col("weight", "s").sum())
    )
    write(out, rows, totals, pairs, repeats(tied), counted, catalogue)


SIMILAR, SERENDIPITOUS, OTHER = 1, 2, 3
NAMES = {SIMILAR: "similar", SERENDIPITOUS: "serendipitous", OTHER: "other"}


def check(log: pl.LazyFrame) -> int:
    """Counts what breaks a column; there is nothing in this log."""
    user, item = (pl.col(name).str.len_bytes() for name in ("user_id", "item_id"))
    broken = log.select(
        pl.len().alias("rows"),
        (~user.is_between(1, 256)).fill_null(True).sum().alias("user_id"),
        (~item.is_between(1, 256)).fill_null(True).sum().alias("item_id"),
        (~pl.col("timestamp").is_between(0, LAST)).fill_null(True).sum().alias("timestamp"),
        (~pl.col("satisfaction").is_between(0, 1)).fill_null(True).sum().alias("satisfaction"),
    ).collect(engine="streaming")
    rows, *counts = broken.row(0)
    assert not any(counts)
    return int(rows)


def ordered(log: pl.LazyFrame, items: pl.LazyFrame) -> pl.LazyFrame:
    """Every event of a catalogued item, its kind of pair, and whether it is by a tie."""
    events = log.join(items, on="item_id").select(
        "user_id", "timestamp", "item_no", "node_id", "base_id",
        (pl.col("satisfaction") * Q + 0.5).floor().cast(pl.Int32).alias("s"),
    )  # fmt: skip
    events = events.sort("user_id", "timestamp")
    time = pl.col("timestamp")

    def of_user(k: int) -> pl.Expr:
        same = pl.col("user_id") == pl.col("user_id").shift(k)
        return pl.when(same).then(time.shift(k))

    events = events.with_columns(
        before=of_user(1), before2=of_user(2), then=of_user(-1), then2=of_user(-2),
        next_item=pl.col("item_no").shift(-1), next_node=pl.col("node_id").shift(-1),
        next_base=pl.col("base_id").shift(-1), next_s=pl.col("s").shift(-1),
    )  # fmt: skip
    then = pl.col("then")
    in_tie = ((time == then) | (time == pl.col("before"))).fill_null(False)
    before_tie = (then == pl.col("then2")).fill_null(False)
    after_tie = (pl.col("before") == pl.col("before2")).fill_null(False)
    pair = ((then - time <= GAP_MS) & (pl.col("item_no") != pl.col("next_item"))).fill_null(False)
    return events.with_columns(
        by_a_tie=in_tie | before_tie | after_tie,
        kind=pl.when(in_tie | before_tie | ~pair)
        .then(0)
        .when(pl.col("node_id") == pl.col("next_node"))
        .then(SIMILAR)
        .when(pl.col("base_id") == pl.col("next_base"))
        .then(SERENDIPITOUS)
        .otherwise(OTHER),
    )


def summed() -> tuple[pl.Expr, pl.Expr]:
    """Weight and satisfaction of pairs that weigh one each, in millionths."""
    return (
        (pl.len().cast(pl.Int64) * Q).alias("weight"),
        pl.col("next_s").cast(pl.Int64).sum().alias("s"),
    )


def steps_of_ties(tied: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What pairs of sets of equal timestamps add: by kind, and by (item_no, next_node)."""
    key = ["user_id", "timestamp"]
    once = tied.group_by(*key, "item_no", "s").agg(pl.len().alias("times"))
    sets = once.group_by(key).agg(
        pl.len().cast(pl.Int64).alias("size"), pl.col("times").sum().alias("events")
    )
    follows = pl.col("timestamp", "size", "events").shift(-1).over("user_id", order_by="timestamp")
    sets = sets.with_columns(follows.name.prefix("next_")).filter(
        (pl.col("next_timestamp") - pl.col("timestamp") <= GAP_MS)
        & ((pl.col("events") > 1) | (pl.col("next_events") > 1))
        & (pl.col("size") * pl.col("next_size") <= MAX_TIED_PAIRS)
    )
    placed = once.join(items.drop("item_id"), on="item_no")
    joined = (
        sets.join(placed, on=key)
        .join(placed, left_on=["user_id", "next_timestamp"], right_on=key, suffix="_b")
        .filter(pl.col("item_no") != pl.col("item_no_b"))
        .with_columns(
            weight=(1e6 / (pl.col("size") * pl.col("next_size")).cast(pl.Float64) + 0.5)
            .floor()
            .cast(pl.Int64),
            kind=pl.when(pl.col("node_id") == pl.col("node_id_b"))
            .then(SIMILAR)
            .when(pl.col("base_id") == pl.col("base_id_b"))
            .then(SERENDIPITOUS)
            .otherwise(OTHER),
        )
        .with_columns(
            s=(((pl.col("weight") * pl.col("s_b")).cast(pl.Float64) + 5e5) / 1e6)
            .floor()
            .cast(pl.Int64)
        )
        .rename({"node_id_b": "next_node"})
    )
    sums = pl.col("weight", "s").sum()
    of_pairs = joined.filter(pl.col("kind") == SERENDIPITOUS).group_by("item_no", "next_node")
    return joined.group_by("kind").agg(sums), of_pairs.agg(sums)


def repeats(tied: pl.DataFrame) -> pl.DataFrame:
    """How often each item's events repeat another."""
    return (
        tied.group_by(tied.columns)
        .agg((pl.len().cast(pl.Int64) - 1).alias("repeats"))
        .group_by("item_no")
        .agg(pl.col("repeats").sum())
    )


def write(
    out: Path,
    rows: int,
    totals: pl.DataFrame,
    pairs: pl.DataFrame,
    repeated: pl.DataFrame,
    counted: pl.DataFrame,
    items: pl.DataFrame,
) -> None:
    """The small tables: scores, training, labels, transitions, comparison, corpus."""
    # Polars divides by a constant by multiplying: other last digits than a division by a column.
    support = pl.col("weight").cast(pl.Float64) / (pl.col("weight") * 0 + 1e6)
    totals.with_columns(
        kind=pl.col("kind").replace_strict(NAMES), support=support,
        satisfaction=pl.col("s").cast(pl.Float64) / pl.col("weight"),
    ).select("kind", support_q="weight", support="support", satisfaction="satisfaction").sort(
        "kind"
    ).write_parquet(out / "comparison.parquet")  # fmt: skip

    hashes = [hashlib.md5(i.encode()).hexdigest()[:8] for i in items["item_id"]]
    items = items.with_columns(held_out=pl.Series(hashes) < HELD_OUT_BELOW)
    held_out = items.filter("held_out").select("item_id").sort("item_id")
    held_out.write_parquet(out / "held_out.parquet")

    prior_q = float(pairs["s"].sum()) * 1e6 / float(pairs["weight"].sum())
    best = ["satisfaction", "support"]
    scores = (
        pairs.filter(pl.col("weight") >= MIN_SUPPORT_Q)
        .with_columns(
            support=support,
            satisfaction=(pl.col("s").cast(pl.Float64) + SHRINKAGE * prior_q)
            / (pl.col("weight").cast(pl.Float64) + SHRINKAGE * 1e6),
        )
        .join(items, on="item_no")
        .select(
            "item_id", "support", "satisfaction", "held_out",
            own_id="node_id", node_id="next_node",
        )
        .sort("item_id", *best, "node_id", descending=[False, True, True, False])
        .with_columns(rank_in_item=pl.int_range(1, pl.len() + 1).over("item_id"))
    )  # fmt: skip
    scores.write_parquet(out / "scores.parquet")
    training = scores.filter(~pl.col("held_out")).sort(
        "node_id", *best, "item_id", descending=[False, True, True, False]
    )
    training = training.with_columns(
        rank_in_cluster=pl.int_range(1, pl.len() + 1).over("node_id")
    ).filter(pl.col("rank_in_cluster") <= CONTEXTS)
    training.drop("held_out", "rank_in_item").write_parquet(out / "training.parquet")
    scores.filter(pl.col("held_out") & (pl.col("rank_in_item") == 1)).drop(
        "held_out", "rank_in_item"
    ).write_parquet(out / "labels.parquet")
    million = pl.col("q") * 0 + 1e6
    support_q = (pl.col("support") * 1e6 + 0.5).floor().cast(pl.Int64)
    weighted_q = (pl.col("support") * pl.col("satisfaction") * 1e6 + 0.5).floor().cast(pl.Int64)
    scores.filter(~pl.col("held_out")).group_by("own_id", "node_id").agg(
        support_q.sum().alias("q"), (weighted_q * Q).sum().alias("w")
    ).select(
        "own_id", "node_id", support=pl.col("q") / 1e6,
        satisfaction=pl.col("w").cast(pl.Float64) / pl.col("q").cast(pl.Float64) / million,
    ).sort("own_id", "node_id").write_parquet(out / "transitions.parquet")  # fmt: skip

    known = counted.join(items.select("item_id", "item_no"), on="item_id")
    traffic = (
        known.join(repeated, on="item_no", how="left")
        .select("item_id", impressions=pl.col("events") - pl.col("repeats").fill_null(0))
        .sort("impressions", "item_id", descending=[True, False])
    )
    covered, total = pl.col("impressions").cum_sum(), traffic["impressions"].sum()
    traffic.filter((covered - pl.col("impressions")) * 1000 < COVERAGE * total).write_parquet(
        out / "corpus.parquet"
    )
    said = {
        "rows_read": rows,
        "unknown_rows": rows - int(known["events"].sum()),
        "duplicates": int(repeated["repeats"].sum()),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
