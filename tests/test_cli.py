"""The command line: every mistake is one line that names field, value and remedy."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serendip.cli import app, main


def serendip(*arguments, cwd):
    """The command as a person runs it."""
    command = [sys.executable, "-m", "serendip.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def catalogue(tmp_path):
    """A valid data folder, with a configuration for it; tests break one thing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.toml").write_text(
        'source = "files"\ndata_dir = "data"\n[tree]\nbranching = [1, 1, 2, 2]\nmin_df = 1\n'
    )
    n = 12
    words = ["oven rye bread", "oven cake sugar", "bike hill mud", "bike track speed"]
    items = pa.table(
        {
            "item_id": [f"i{k}" for k in range(n)],
            "title": [words[k % 4] for k in range(n)],
            "text": [""] * n,
            "thumbnail": pa.array([None] * n, pa.string()),
            "video": pa.array([None] * n, pa.string()),
            "created_at": pa.array([0] * n, pa.int64()),
        }
    )
    log = pa.table(
        {
            "user_id": ["u"] * n,
            "item_id": [f"i{k}" for k in range(n)],
            "timestamp": pa.array(range(0, n * 1000, 1000), pa.int64()),
            "satisfaction": [0.5] * n,
        }
    )
    write(tmp_path, "items", items)
    write(tmp_path, "interactions", log)
    return tmp_path, items, log


def write(folder, name, table):
    pq.write_table(table, folder / "data" / f"{name}.parquet")


def replaced(table, column, values):
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_a_tree_of_the_user_s_own_catalogue_is_built_and_its_path_is_printed(catalogue):
    folder, *_ = catalogue
    run = serendip("tree", "--config", "mine.toml", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert (folder / run.stdout.strip() / "manifest.json").is_file()


BROKEN = {
    "a missing column": (
        lambda items, log: {"items": items.drop_columns(["title"])},
        ["items.parquet:title"],
    ),
    "a wrong type": (
        lambda items, log: {"interactions": replaced(log, "timestamp", ["x"] * 12)},
        ["interactions.parquet:timestamp"],
    ),
    "satisfaction outside [0, 1]": (
        lambda items, log: {
            "interactions": replaced(log, "satisfaction", [0.5] * 7 + [1.5] + [0.5] * 4)
        },
        ["interactions.parquet:satisfaction", "row 7", "1.5"],
    ),
    "an unknown item in the log": (
        lambda items, log: {"interactions": replaced(log, "item_id", ["i0"] * 11 + ["ghost"])},
        ["interactions.parquet:item_id", "row 11", "'ghost'"],
    ),
    "duplicate items": (
        lambda items, log: {"items": replaced(items, "item_id", [f"i{k % 11}" for k in range(12)])},
        ["items.parquet:item_id", "row 11", "'i0'"],
    ),
    "an empty log": (
        lambda items, log: {"interactions": log.slice(0, 0)},
        ["interactions.parquet"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_data_is_one_line_and_publishes_nothing(catalogue, monkeypatch, name):
    folder, items, log = catalogue
    change, named = BROKEN[name]
    for file, table in change(items, log).items():
        write(folder, file, table)
    monkeypatch.chdir(folder)
    run = CliRunner().invoke(app, ["tree", "--config", "mine.toml"])
    assert all(text in str(run.exception) for text in named), run.exception
    assert not (folder / "artifacts" / "tree" / "current").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "pairs: nothing published yet|tree: nothing published yet"),
        (["tree", "--config", "none.toml"], "--config: no such file, got 'none.toml'"),
        (["tree"], "items.parquet"),
        (["release"], "tree: nothing published yet"),
        (["loadtest", "data"], "release: nothing published yet"),
        (["loadtest", "data", "--config", "none.toml"], "--config: no such file"),
        (["import", "netflix", "."], "kind: cannot be imported, got 'netflix'"),
        (["import", "movielens", "."], "movies.dat"),
        (["evaluate", "--seed", "1", "figures"], "--seed: is of evaluate alone, got 1"),
        (["recommend", "i0", "--planner", "127.0.0.1:1"], "127.0.0.1:1|unavailable|connect"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(tmp_path, arguments, said):
    run = serendip(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert any(part in run.stderr for part in said.split("|")), run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().count("\n") == 0


def test_every_verb_explains_itself():
    text = CliRunner().invoke(app, ["--help"]).output
    for verb in (
        "synth", "import", "tree", "curate", "finetune", "plan", "retriever", "release",
        "evaluate", "serve", "recommend", "artifacts", "loadtest",
    ):  # fmt: skip
        assert verb in text


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("serendip.catalog.synth.synthesise", interrupt)
    monkeypatch.setattr("sys.argv", ["serendip", "synth"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "serendip: interrupted; run the same command to go on\n"
