"""Reads every plan of a version, one after the other: what a check of all of them needs.

Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
from google.protobuf.message import DecodeError

from serendip.core import CorruptArtifact
from serendip.v1 import planner_pb2

_NO_ITEM = b"\xff"  # begins no item ID: it is in no UTF-8


def scan_plans(path: Path) -> Iterator[planner_pb2.Plan]:
    """The plans of a store's file as they lie there, by item ID, from one snapshot.

    Raises:
        CorruptArtifact: it is no plan store.
    """
    try:
        with (
            lmdb.open(str(path), readonly=True, subdir=False, lock=False) as env,
            env.begin() as txn,
        ):
            for key, value in txn.cursor():
                if key[:1] != _NO_ITEM:
                    yield planner_pb2.Plan.FromString(value)
    except (lmdb.Error, DecodeError) as e:
        raise CorruptArtifact(
            f"no plan store ({e})",
            field=str(path),
            remedy="Publish the plans again (serendip plan).",
        ) from e
