"""Imports MovieLens into a data folder (``serendip import``): films as items, ratings as log.

Three layouts are told apart by their files: MovieLens's own ml-1m (movies.dat, ratings.dat),
its csv kinds such as ml-latest-small and ml-25m (movies.csv, ratings.csv), and tables with
posters (items.parquet, interactions.parquet). A rating's time is when it was given, not when
the film was watched. Knows no media beyond copying a poster's bytes.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from serendip.catalog.schema import (
    CREATED_AT,
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    SATISFACTION,
    TEXT,
    THUMBNAIL,
    TIMESTAMP,
    TITLE,
    USER_ID,
    check_known,
    check_table,
    check_unique,
    open_parquet,
    unreadable,
)
from serendip.core import InvalidData, InvalidRequest

_SEPARATOR = "::"
_NO_GENRES = "(no genres listed)"

_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
# MovieLens sorts titles by their first noun: "Matrix, The", also inside parentheses.
_ARTICLES = (
    "The|An?|Le|La|Les|L'|Une?|Il|Lo|Gli|El|Los|Las|Una|Uno|Der|Die|Das|Den|Det|Ein|Eine|O|Os"
)
_ARTICLE_LAST = re.compile(rf"^(\s*(?:a\.k\.a\.\s+)?)(.*\S), ({_ARTICLES})(\s*)$")


def import_movielens(source: Path, data_dir: Path) -> dict[str, int]:
    """Writes items.parquet and interactions.parquet of a MovieLens folder into ``data_dir``.

    Satisfaction is the rating on the scale of its kind: (rating - 1) / 4 for ml-1m,
    (rating - 0.5) / 4.5 for the csv kinds; tables with posters bring their own. A film's text
    is its genres, and its plot where there is one; created_at is the first of January of its
    year, 0 where the title tells none. Interactions are sorted by user, then time; ties keep
    the order of the source.

    Returns:
        Row counts by file name.

    Raises:
        InvalidRequest: the folder is of none of the three kinds, or is ``data_dir`` itself.
        InvalidData: a line or row that cannot be read, with its number.
    """
    if source.resolve() == data_dir.resolve():
        raise InvalidRequest(
            "must not be the folder that is imported",
            field="data_dir",
            value=str(data_dir),
            remedy="Name another data_dir.",
        )
    items, log = _reader_of(source)(source)
    items = check_table(items, ITEMS)
    check_unique(items.column(ITEM_ID), f"{ITEMS.file}:{ITEM_ID}")
    log = _sorted(check_table(log, INTERACTIONS))
    check_known(log.column(ITEM_ID), items.column(ITEM_ID), f"{INTERACTIONS.file}:{ITEM_ID}")
    data_dir.mkdir(parents=True, exist_ok=True)
    _write(items, data_dir / ITEMS.file)
    _write(log, data_dir / INTERACTIONS.file)
    return {ITEMS.file: items.num_rows, INTERACTIONS.file: log.num_rows}


def readable_title(title: str) -> str:
    """A title as people read it.

    >>> readable_title("Matrix, The (1999)")
    'The Matrix (1999)'
    >>> readable_title("Enfer, L' (1994)")
    "L'Enfer (1994)"
    """
    return re.sub(r"[^()]+", lambda part: _article_first(part[0]), title).strip()


def _article_first(part: str) -> str:
    found = _ARTICLE_LAST.match(part)
    if found is None:
        return part
    before, rest, article, after = found.groups()
    return f"{before}{article}{'' if article.endswith(chr(39)) else ' '}{rest}{after}"


_Tables = tuple[pa.Table, pa.Table]


def _reader_of(source: Path) -> Callable[[Path], _Tables]:
    for files, read in _KINDS.items():
        if all((source / name).is_file() for name in files):
            return read
    looked_for = "; ".join(" and ".join(files) for files in _KINDS)
    raise InvalidRequest(
        f"is no MovieLens folder: it has none of {looked_for}",
        field="source_path",
        value=str(source),
        remedy="Name the folder that the MovieLens archive unpacks to.",
    )


# --- the three kinds ---------------------------------------------------------------------


def _read_posters(source: Path) -> _Tables:
    films = _parquet(
        source / "items.parquet",
        ("item_id", "title_raw", "genres", "plot", "year", "image_jpeg", "image_is_placeholder"),
    )
    is_poster = pc.invert(films.column("image_is_placeholder"))
    items = _items(
        films.column("item_id").to_pylist(),
        films.column("title_raw").to_pylist(),
        films.column("genres").to_pylist(),
        films.column("plot").to_pylist(),
        films.column("year").to_pylist(),
    ).append_column(
        THUMBNAIL, pc.if_else(is_poster, films.column("image_jpeg"), pa.scalar(None, pa.binary()))
    )
    rows = _parquet(
        source / "interactions.parquet", ("user_id", "item_id", "timestamp", "satisfaction")
    )
    log = _log(
        rows.column("user_id"),
        rows.column("item_id"),
        rows.column("timestamp"),
        rows.column("satisfaction"),
    )
    return items, log


def _read_dat(source: Path) -> _Tables:
    text = (source / "movies.dat").read_text(encoding="latin-1")
    # Not splitlines: Latin-1 has letters that it takes for line ends.
    lines = text.rstrip("\n").split("\n")
    films = [_fields(line.split(_SEPARATOR), "movies.dat", row) for row, line in enumerate(lines)]
    data = (source / "ratings.dat").read_bytes()
    ratings = _csv(
        data.replace(_SEPARATOR.encode(), b","),
        source / "ratings.dat",
        {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": _INT},
        has_header=False,
    )
    return _films(films), _ratings(ratings, "ratings.dat", lowest=1.0, highest=5.0)


def _read_csv(source: Path) -> _Tables:
    try:
        text = (source / "movies.csv").read_text(encoding="utf-8")
        lines = list(csv.reader(io.StringIO(text, newline="")))[1:]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InvalidData(
            f"cannot be read ({e})", field="movies.csv", remedy="Unpack the archive again."
        ) from e
    films = [_fields(line, "movies.csv", row) for row, line in enumerate(lines)]
    ratings = _csv(
        source / "ratings.csv",
        source / "ratings.csv",
        {"userId": _INT, "movieId": _INT, "rating": pa.float64(), "timestamp": _INT},
        has_header=True,
    )
    return _films(films), _ratings(ratings, "ratings.csv", lowest=0.5, highest=5.0)


_INT = pa.int64()

_KINDS: dict[tuple[str, str], Callable[[Path], _Tables]] = {
    ("movies.dat", "ratings.dat"): _read_dat,
    ("movies.csv", "ratings.csv"): _read_csv,
    ("items.parquet", "interactions.parquet"): _read_posters,
}


def _fields(fields: list[str], file: str, row: int) -> list[str]:
    if len(fields) != 3:
        raise InvalidData(
            "must have a number, a title and genres",
            field=file,
            row=row,
            value=fields,
            remedy="Unpack the archive again.",
        )
    return fields


def _films(films: list[list[str]]) -> pa.Table:
    ids, titles, genres = zip(*films, strict=True) if films else ((), (), ())
    years = [int(found[1]) if (found := _YEAR.search(t)) else None for t in titles]
    return _items(ids, titles, genres, [None] * len(films), years).append_column(
        THUMBNAIL, pa.nulls(len(films), pa.binary())
    )


def _items(
    ids: Iterable[object],
    titles: Iterable[str],
    genres: Iterable[str | None],
    plots: Iterable[str | None],
    years: Iterable[int | None],
) -> pa.Table:
    return pa.table(
        {
            ITEM_ID: pa.array(map(str, ids), pa.string()),
            TITLE: pa.array(map(readable_title, titles), pa.string()),
            TEXT: pa.array(map(_text, genres, plots), pa.string()),
            CREATED_AT: pa.array(map(_created_at, years), pa.int64()),
        }
    )


def _text(genres: str | None, plot: str | None) -> str:
    listed = "" if genres in (None, _NO_GENRES) else str(genres).replace("|", ", ") + "."
    return " ".join(part for part in (listed, plot) if part)


def _created_at(year: int | None) -> int:
    return 0 if not year else int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000


def _ratings(ratings: pa.Table, file: str, lowest: float, highest: float) -> pa.Table:
    rating = ratings.column("rating")
    scale = pc.divide(pc.subtract(rating, lowest), highest - lowest)
    inside = pc.and_(pc.greater_equal(scale, 0.0), pc.less_equal(scale, 1.0))
    row = pc.index(pc.fill_null(inside, False), False).as_py()
    if row >= 0:
        raise InvalidData(
            f"must lie in {lowest:g} to {highest:g}",
            field=f"{file}:rating",
            row=row,
            value=rating[row].as_py(),
            remedy="Bring ratings on MovieLens's own scale.",
        )
    return _log(
        ratings.column("userId"), ratings.column("movieId"), ratings.column("timestamp"), scale
    )


def _log(
    user: pa.ChunkedArray,
    item: pa.ChunkedArray,
    seconds: pa.ChunkedArray,
    satisfaction: pa.ChunkedArray,
) -> pa.Table:
    return pa.table(
        {
            USER_ID: user.cast(pa.string()),
            ITEM_ID: item.cast(pa.string()),
            TIMESTAMP: pc.multiply(seconds.cast(pa.int64()), 1000),
            SATISFACTION: satisfaction,
        }
    )


def _sorted(log: pa.Table) -> pa.Table:
    # Strings sort slowly: the few names are ranked once, and the many rows sort by rank.
    users = log.column(USER_ID).combine_chunks().dictionary_encode()
    rank = pc.rank(users.dictionary).to_numpy()[users.indices.to_numpy()]
    return log.take(pa.array(np.lexsort((log.column(TIMESTAMP).to_numpy(), rank))))


# --- files -------------------------------------------------------------------------------


def _csv(
    data: bytes | Path, path: Path, types: dict[str, pa.DataType], *, has_header: bool
) -> pa.Table:
    names = None if has_header else list(types)
    try:
        table = pa_csv.read_csv(
            io.BytesIO(data) if isinstance(data, bytes) else data,
            read_options=pa_csv.ReadOptions(column_names=names),
            convert_options=pa_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[]
            ),
        )
    except (pa.ArrowException, OSError) as e:
        raise InvalidData(
            f"cannot be read ({e})", field=path.name, remedy="Unpack the archive again."
        ) from e
    return table


def _parquet(path: Path, columns: tuple[str, ...]) -> pa.Table:
    with open_parquet(path) as file:
        for name in columns:
            if name not in file.schema_arrow.names:
                raise InvalidData(
                    "no such column",
                    field=f"{path.name}:{name}",
                    value=str(path),
                    remedy="Bring the tables with posters, or MovieLens's own folder.",
                )
        try:
            return file.read(columns=list(columns))
        except (pa.ArrowException, OSError) as e:
            raise unreadable(path, e) from e


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
