"""The import of MovieLens, from each of its layouts."""

from __future__ import annotations

import doctest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serendip.catalog import movielens
from serendip.catalog.items import read_items
from serendip.catalog.logs import read_impressions, read_interactions
from serendip.catalog.media import decode_image
from serendip.catalog.movielens import import_movielens, readable_title
from serendip.config import load_config
from serendip.core import InvalidData, InvalidRequest, Item

MOVIES_DAT = """\
1::Toy Story (1995)::Animation|Children's|Comedy
2::Misérables, Les (1958)::Drama
3::Wait\x85 (1999)::Drama
"""
RATINGS_DAT = "10::2::3::978300760\n2::1::5::978300800\n2::2::1::978300700\n"
MOVIES_CSV = """\
movieId,title,genres
1,"Matrix, The (1999)",Action|Sci-Fi
2,Untold,(no genres listed)
"""
RATINGS_CSV = "userId,movieId,rating,timestamp\n7,1,0.5,1000\n7,2,5.0,900\n7,1,2.75,900\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def test_ml_1m(source: Path, tmp_path: Path) -> None:
    (source / "movies.dat").write_text(MOVIES_DAT, encoding="latin-1")
    (source / "ratings.dat").write_text(RATINGS_DAT)
    data = tmp_path / "new" / "data"
    assert import_movielens(source, data) == {"items.parquet": 3, "interactions.parquet": 3}
    assert list(read_items(data)) == [
        Item("1", "Toy Story (1995)", "Animation, Children's, Comedy.", created_at=788918400000),
        Item("2", "Les Misérables (1958)", "Drama.", created_at=-378691200000),
        Item("3", "Wait\x85 (1999)", "Drama.", created_at=915148800000),
    ]
    log = read_interactions(data).to_pylist()
    assert [tuple(row.values()) for row in log] == [
        ("10", "2", 978300760000, 0.5),
        ("2", "2", 978300700000, 0.0),
        ("2", "1", 978300800000, 1.0),
    ]
    assert read_impressions(data) is None
    assert sorted(p.name for p in data.iterdir()) == ["interactions.parquet", "items.parquet"]


def test_the_csv_kinds(source: Path, tmp_path: Path) -> None:
    (source / "movies.csv").write_text(MOVIES_CSV)
    (source / "ratings.csv").write_text(RATINGS_CSV)
    import_movielens(source, tmp_path)
    assert list(read_items(tmp_path)) == [
        Item("1", "The Matrix (1999)", "Action, Sci-Fi.", created_at=915148800000),
        Item("2", "Untold", "", created_at=0),
    ]
    # Ties keep the order of the source.
    assert [tuple(row.values()) for row in read_interactions(tmp_path).to_pylist()] == [
        ("7", "2", 900_000, 1.0),
        ("7", "1", 900_000, 0.5),
        ("7", "1", 1_000_000, 0.0),
    ]


def test_tables_with_posters(source: Path, tmp_path: Path, jpeg: bytes) -> None:
    films = {
        "item_id": [5, 6],
        "title_raw": ["Cure, The (1995)", "Hate (Haine, La) (1995)"],
        "genres": ["Drama", "Drama|Crime"],
        "plot": ["A boy falls ill.", None],
        "year": [1995, 1995],
        "image_jpeg": [jpeg, jpeg],
        "image_is_placeholder": [False, True],
    }
    pq.write_table(pa.table(films), source / "items.parquet")
    rows = {"user_id": [1], "item_id": [6], "timestamp": [10], "satisfaction": [0.25]}
    pq.write_table(pa.table(rows), source / "interactions.parquet")
    import_movielens(source, tmp_path)
    first, second = read_items(tmp_path)
    assert (first.title, first.text) == ("The Cure (1995)", "Drama. A boy falls ill.")
    assert first.thumbnail == jpeg
    assert (second.title, second.text) == ("Hate (La Haine) (1995)", "Drama, Crime.")
    assert second.thumbnail is None
    assert read_interactions(tmp_path).to_pylist() == [
        {"user_id": "1", "item_id": "6", "timestamp": 10_000, "satisfaction": 0.25}
    ]
    with pytest.raises(InvalidRequest, match="must not be the folder"):
        import_movielens(source, source)
    pq.write_table(pa.table(films).drop_columns("plot"), source / "items.parquet")
    with pytest.raises(InvalidData, match="no such column"):
        import_movielens(source, tmp_path)


def test_a_write_that_fails_leaves_the_old_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "movies.csv").write_text(MOVIES_CSV)
    (source / "ratings.csv").write_text(RATINGS_CSV)
    data = tmp_path / "data"
    import_movielens(source, data)
    before = (data / "items.parquet").read_bytes()

    def fail(table: pa.Table, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(movielens.pq, "write_table", fail)
    with pytest.raises(OSError, match="no space left"):
        import_movielens(source, data)
    assert (data / "items.parquet").read_bytes() == before
    assert sorted(p.name for p in data.iterdir()) == ["interactions.parquet", "items.parquet"]


def test_another_folder_is_told_what_was_looked_for(source: Path, tmp_path: Path) -> None:
    (source / "movies.dat").touch()
    with pytest.raises(InvalidRequest, match=r"movies\.csv and ratings\.csv") as caught:
        import_movielens(source, tmp_path / "data")
    assert caught.value.value == str(source)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ratings.csv", "userId,movieId,rating,timestamp\n7,1,5.5,1000\n", "lie in 0.5 to 5"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n7,1,0,1000\n", "lie in 0.5 to 5"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n7,9,5,1000\n", "not in the catalogue"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n7,1,good,1000\n", "cannot be read"),
        ("ratings.csv", "userId,movieId,timestamp\n7,1,1000\n", "cannot be read"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", "no rows"),
        ("movies.csv", "movieId,title,genres\n1,A\n", "must have a number, a title"),
        ("movies.csv", "movieId,title,genres\n1,A,B\n1,C,D\n", "not the first"),
        ("movies.csv", b"movieId,title,genres\n1,\xff,B\n", "cannot be read"),
    ],
)
def test_broken_sources_leave_the_data_as_it_was(
    source: Path, tmp_path: Path, file: str, content: str | bytes, message: str
) -> None:
    (source / "movies.csv").write_text(MOVIES_CSV)
    (source / "ratings.csv").write_text(RATINGS_CSV)
    (source / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidData, match=message):
        import_movielens(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Postino, Il (The Postman) (1994)", "Il Postino (The Postman) (1994)"),
        (
            "Star Maker, The (Uomo delle stelle, L') (1995)",
            "The Star Maker (L'Uomo delle stelle) (1995)",
        ),
        ("Cry, the Beloved Country (1995)", "Cry, the Beloved Country (1995)"),
        ("Pest, A (a.k.a. Plague, The) (1997)", "A Pest (a.k.a. The Plague) (1997)"),
        ("10 Things, Then (1999)", "10 Things, Then (1999)"),
        ("", ""),
    ],
)
def test_titles_read_as_people_say_them(title: str, expected: str) -> None:
    assert readable_title(title) == expected


def test_the_examples_in_the_code() -> None:
    result = doctest.testmod(movielens)
    assert result.attempted == 2
    assert result.failed == 0


def test_the_config_loads() -> None:
    config = load_config(str(Path(__file__).resolve().parents[2] / "configs/movielens.toml"))
    assert (config.name, config.source, config.level, config.level_gap) == (
        "movielens",
        "movielens",
        4,
        2,
    )
    assert config.tree.branching == (2, 4, 4, 4)


def test_real_posters(real_data: Path, tmp_path: Path) -> None:
    counts = import_movielens(real_data / "ml1m_posters", tmp_path)
    assert counts == {"items.parquet": 3883, "interactions.parquet": 586_853}
    items = list(read_items(tmp_path))
    posters = [i.thumbnail for i in items if i.thumbnail is not None]
    assert len(posters) == 3253
    for poster in posters[::50]:
        assert max(decode_image(poster).shape) == 128
    assert read_interactions(tmp_path).num_rows == 586_853
