"""The SQL engine for what one machine does not hold: Spark (extra ``spark``).

``spark-submit``, or ``SPARK_MASTER``, names a cluster; otherwise Spark runs in a process of this
machine. The folders of data and artefacts must then be ones that all of the cluster sees.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serendip.core import InvalidRequest
from serendip.curation.engine import read_parts


class SparkEngine:
    """An Engine (engine.py) on Spark 4, whose tables are parquet files in the scratch folder."""

    def __init__(self, scratch: Path, memory_limit: str, threads: int):
        """``threads`` 0: as many as there are cores; both hold for a local Spark alone."""
        try:
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as e:
            raise InvalidRequest(
                "Spark is not installed",
                field="curation.engine",
                value="spark",
                remedy="pip install 'serendip[spark]'; Spark needs Java 17 as well.",
            ) from e
        self._scratch = scratch
        self._ours = SparkSession.getActiveSession() is None
        cores = os.cpu_count() or 1
        builder = SparkSession.builder.appName("serendip")
        for key, value in {
            "spark.driver.memory": memory_limit.removesuffix("B").lower(),
            "spark.local.dir": str(scratch),
            "spark.sql.shuffle.partitions": str(4 * (threads or cores)),
            "spark.sql.ansi.enabled": "true",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
        }.items():
            builder = builder.config(key, value)
        master = os.environ.get("SPARK_MASTER")
        if master or "PYSPARK_GATEWAY_PORT" not in os.environ:
            builder = builder.master(master or f"local[{threads or '*'}]")
        try:
            self._spark = builder.getOrCreate()
        except (PySparkException, RuntimeError, OSError) as e:
            raise InvalidRequest(
                f"Spark does not start ({_first_line(e)})",
                field="curation.engine",
                value="spark",
                remedy="It needs Java 17: see that `java -version` works.",
            ) from e

    def view(self, name: str, source: pa.Table | Sequence[Path]) -> None:
        if isinstance(source, pa.Table):
            path = self._scratch / f"{name}.parquet"
            pq.write_table(source, path)
            source = [path]
        with _errors():
            # Partitions are read for their files: nothing of a log stands in a folder's name.
            reader = self._spark.read.option("recursiveFileLookup", "true")
            reader.parquet(*map(_literal, source)).createOrReplaceTempView(name)

    def table(self, name: str, query: str) -> None:
        folder = self._scratch / name
        with _errors():
            self._spark.sql(query).write.mode("overwrite").parquet(str(folder.resolve()))
            self._spark.read.parquet(_literal(folder)).createOrReplaceTempView(name)

    def drop(self, name: str) -> None:
        self._spark.catalog.dropTempView(name)
        shutil.rmtree(self._scratch / name)

    def fetch(self, query: str) -> pa.Table:
        folder = self._scratch / "fetched"
        self.write(query, folder)
        table = read_parts([folder] if folder.is_file() else list(folder.iterdir()))
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        return table

    def write(self, query: str, path: Path) -> int:
        folder = path.resolve().with_name(f".{path.name}.parts")
        with _errors():
            self._spark.sql(query).write.mode("overwrite").parquet(str(folder))
        parts = sorted(folder.glob("part-*.parquet"))
        rows = [pq.ParquetFile(part).metadata.num_rows for part in parts]
        # Empty parts, but one that keeps the columns where there is no other.
        kept = [part for part, n in zip(parts, rows, strict=True) if n] or parts[:1]
        if len(kept) == 1:
            kept[0].replace(path)
        else:
            path.mkdir()
            for i, part in enumerate(kept):
                part.replace(path / f"part-{i:05d}.parquet")
        shutil.rmtree(folder)
        return sum(rows)

    def close(self) -> None:
        if self._ours:
            self._spark.stop()


def _literal(path: Path) -> str:
    """A path to read, with what Spark would take for a pattern escaped."""
    return re.sub(r"([\\\[\]{}*?])", r"\\\1", str(path.resolve()))


@contextmanager
def _errors() -> Iterator[None]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as e:
        raise InvalidRequest(
            f"Spark gave up ({_first_line(e)})",
            field="curation.engine",
            value="spark",
            remedy="Its own log says more. Memory: curation.memory_limit; space: "
            "curation.temp_dir.",
        ) from e


def _first_line(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines or [type(e).__name__])[0][:300]
