"""The plan store in LMDB: a file is whole or is none, and goes on being read once removed."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from stores import info_of, plans_of

from serendip.core import CorruptArtifact, SerendipError
from serendip.planning.lmdb_store import FILE, LmdbStore, write_lmdb


@pytest.fixture
def path(tmp_path):
    made = tmp_path / FILE
    write_lmdb(made, plans_of(3000), info_of(3000))
    return made


def test_plans_that_do_not_fit_into_memory_are_sorted_on_disk(tmp_path, path):
    spilled = tmp_path / "spilled"
    write_lmdb(spilled, plans_of(3000), info_of(3000), run_bytes=50_000)
    assert spilled.read_bytes() == path.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {FILE, "spilled"}


def test_a_file_that_was_removed_is_read_on(path):
    with closing(LmdbStore(path)) as store:
        path.unlink()
        assert store.get_many([i for i, _ in plans_of(3000)]) == [p for _, p in plans_of(3000)]


def test_a_file_is_open_once_and_closed_with_its_last_store(path):
    first, second = LmdbStore(path), LmdbStore(path.parent / "." / FILE)
    first.close()
    assert second.get("i0") is not None
    assert is_mapped(path)
    second.close()
    assert not is_mapped(path)


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a store" * 1000)
    with pytest.raises(CorruptArtifact, match="serendip plan"):
        LmdbStore(tmp_path / FILE)
    for none in ("absent", "."):
        with pytest.raises(CorruptArtifact, match="no plan store"):
            LmdbStore(tmp_path / none)


@pytest.mark.parametrize("kept", [0, 100, 4096, 8192, 0.5, -1])
def test_a_file_that_is_cut_off_is_refused(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else kept])
    with pytest.raises(CorruptArtifact, match=r"plans\.lmdb"):
        LmdbStore(path)


def put(path, key, value):
    with (
        lmdb.open(str(path), subdir=False, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        txn.delete(key) if value is None else txn.put(key, value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"\xffinfo", None, "older, or not whole"),
        (b"\xffinfo", b"{}", "does not say what it holds"),
        (b"\xffinfo", b"\xff\xff", "does not say what it holds"),
        (b"\xffinfo", b"[]", "does not say what it holds"),
        (
            b"\xffinfo",
            json.dumps(dict.fromkeys(("version", "tree_version", "planner_version", "count"), "x")),
            "count is none",
        ),
        (b"i7", None, "must hold 3000 plans, got 2999"),
    ],
)
def test_a_file_that_does_not_hold_what_it_says_is_refused(path, key, value, message):
    put(path, key, value.encode() if isinstance(value, str) else value)
    with pytest.raises(CorruptArtifact, match=message):
        LmdbStore(path)


# A limit on the size of a file stands in for a full disk: writes fail in the middle, for root too.
WRITE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stores import info_of, plans_of
from serendip.core import SerendipError
from serendip.planning.lmdb_store import write_lmdb
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    write_lmdb(Path(sys.argv[2]), plans_of(3000), info_of(3000), run_bytes=int(sys.argv[4]))
except SerendipError as e:
    print(e)
"""


@pytest.mark.parametrize(
    ("limit", "run_bytes", "fails_in"),
    [(100_000, 1 << 20, "mdb_"), (10_000, 50_000, "File too large")],
    ids=["writing", "sorting"],
)
def test_a_disk_that_fills_up_leaves_what_was_there(path, limit, run_bytes, fails_in):
    before = path.read_bytes()
    words = [str(Path(__file__).parent), str(path), str(limit), str(run_bytes)]
    ended = subprocess.run(
        [sys.executable, "-c", WRITE, *words], capture_output=True, text=True, check=True
    )
    assert f"{FILE}: cannot be written" in ended.stdout
    assert fails_in in ended.stdout
    assert "twice over" in ended.stdout
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [FILE]
    write_lmdb(path, plans_of(3000), info_of(3000))


def read_only(tmp_path):
    if os.geteuid() == 0:  # whom permissions do not stop
        return Path("/proc/self")
    tmp_path.chmod(0o555)
    return tmp_path


@pytest.mark.parametrize("folder", [read_only, lambda tmp_path: tmp_path / "absent"])
def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path, folder):
    for run_bytes in (1 << 20, 1000):
        with pytest.raises(SerendipError, match=r"cannot be written.*must be writable"):
            write_lmdb(folder(tmp_path) / FILE, plans_of(10), info_of(10), run_bytes=run_bytes)


def test_what_a_killed_build_left_is_cleared_away(path):
    path.with_suffix(".partial").write_bytes(b"half")
    path.with_suffix(".runs").mkdir()
    (path.with_suffix(".runs") / "000000").write_bytes(b"half")
    write_lmdb(path, plans_of(20), info_of(20), run_bytes=1000)
    assert [p.name for p in path.parent.iterdir()] == [FILE]
    with closing(LmdbStore(path)) as store:
        assert store.info().count == 20


MEASURE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stores import info_of
from serendip.planning.lmdb_store import write_lmdb
plans = ((f"{n * 7919 % 30_000:08d}", bytes(3000)) for n in range(30_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_lmdb(Path(sys.argv[2]), plans, info_of(30_000), run_bytes=8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_within_its_bound(tmp_path):
    words = [str(Path(__file__).parent), str(tmp_path / FILE)]
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=True
    )
    assert (tmp_path / FILE).stat().st_size > 90 << 20
    assert int(ended.stdout) << 10 < 60 << 20
