"""A process on a small, full or read-only disk of its own. Run as a script inside one.

The disk is a tmpfs in a mount namespace that ends with the process; no rights beyond one's own
are needed where the system lets users make one.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import pytest

SIZE = 1 << 20
_MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
_IN_NAMESPACE = ("unshare", "--mount", "--map-root-user")


def run_on_disk(disk: Path, *command: str, size: int = SIZE, cwd: Path | None = None):
    """Runs a command with a disk of ``size`` bytes at ``disk``; skips the test where none can be
    mounted."""
    disk.mkdir(exist_ok=True)
    probe = [*_IN_NAMESPACE, "sh", "-c", _MOUNT, "sh", str(size), str(disk), "true"]
    try:
        said = subprocess.run(probe, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here: a small disk cannot be mounted")
    if said.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {said.stderr.strip()}")
    return subprocess.run(
        [*_IN_NAMESPACE, "sh", "-c", _MOUNT, "sh", str(size), str(disk), *command],
        capture_output=True, text=True, timeout=120, cwd=cwd,
    )  # fmt: skip


def outcome(disk: Path, scene: str, *arguments: str) -> dict:
    """What a scene of this file comes to on such a disk, in a process of its own."""
    run = run_on_disk(disk, sys.executable, __file__, scene, str(disk), *arguments)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


# --- inside ------------------------------------------------------------------------------


def _publish(root: Path, number: int, write, kind: str = "plans", resume: bool = False) -> None:
    from serendip.artifacts import Artifacts

    with Artifacts(root).publish(kind, {"number": number}, {}, resume=resume) as draft:
        write(draft.path)


def _state(root: Path) -> dict:
    """What a reader finds: every version must verify, and current must open."""
    from serendip.artifacts import Artifacts
    from serendip.inventory import list_entries, verify_entries, verify_pointers

    artifacts = Artifacts(root)
    entries = list_entries(artifacts)
    findings = verify_pointers(artifacts) + verify_entries(artifacts, entries)
    return {
        "corrupt": [f.where for f in findings],
        "drafts": [e.name for e in entries if e.state != "published"],
        "current": artifacts.current("plans").config["number"],
    }


def _error(action) -> dict:
    try:
        action()
    except Exception as e:
        traceback.print_exc()
        return {"type": type(e).__name__, "said": str(e), "field": getattr(e, "field", "")}
    return {"type": "", "said": "", "field": ""}


def _small(path: Path) -> None:
    (path / "file").write_text("small")


def full(root: Path, resume: str, *libraries: str) -> dict:
    """For each library: the disk fills up while it writes a draft; then there is room again."""
    found = {}
    for library in libraries:
        store = root / library
        _publish(store, 0, _small)
        resumable = resume == "resume"
        error = _error(partial(_publish, store, 1, WRITERS[library], resume=resumable))
        after = _state(store)
        for leftover in store.glob("plans/*/big*"):
            leftover.unlink()
        _publish(store, 1, _small, resume=resumable)
        found[library] = {"error": error, "after": after, "again": _state(store)}
    return found


def full_at_the_pointer(root: Path) -> dict:
    """The disk is full to the last byte when all is written but what makes it a version."""
    _publish(root, 0, _small)

    def fill(path: Path) -> None:
        _small(path)
        with (root / "ballast").open("wb", buffering=0) as f, contextlib.suppress(OSError):
            while f.write(b"x" * 4096):
                pass

    error = _error(lambda: _publish(root, 1, fill))
    return {"error": error, "after": _state(root)}


def read_only(root: Path) -> dict:
    """The disk turns read-only between two publications; what is there is still served."""
    from serendip.artifacts import Artifacts
    from serendip.inventory import Retention, prune

    _publish(root, 1, _small)
    _publish(root, 0, _small)
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    artifacts = Artifacts(root)
    none = dict.fromkeys(("tree", "pairs", "planner", "plans", "retriever", "release", "report"), 0)
    return {
        "error": _error(lambda: _publish(root, 2, _small)),
        "prune": _error(lambda: prune(artifacts, Retention(none))),
        "reused": artifacts.reuse("plans", {"number": 0}, {}) is not None,
        "after": _state(root),
    }


def limited(root: Path) -> dict:
    """No file may pass a size: the same on any machine, without a mount."""
    _publish(root, 0, _small)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    error = _error(lambda: _publish(root, 1, lambda path: (path / "big").write_bytes(b"x" * SIZE)))
    return {"error": error, "after": _state(root)}


def _plain(path: Path) -> None:
    (path / "big").write_bytes(b"x" * 2 * SIZE)


def _numpy(path: Path) -> None:
    import numpy as np

    np.save(path / "big.npy", np.zeros(SIZE))


def _parquet(path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = np.random.default_rng(0).standard_normal(SIZE)
    pq.write_table(pa.table({"noise": noise}), path / "big.parquet")


def _lmdb(path: Path) -> None:
    import lmdb

    with (
        lmdb.open(str(path / "big.lmdb"), map_size=1 << 30, subdir=False, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        for n in range(2 * SIZE // 1024):
            txn.put(str(n).encode(), b"x" * 1024)


def _safetensors(path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"big": np.zeros(SIZE)}, path / "big.safetensors")


def _duckdb(path: Path) -> None:
    import duckdb

    duckdb.sql(f"COPY (SELECT random() AS r FROM range({SIZE})) TO '{path / 'big.parquet'}'")


def _words_alone(path: Path) -> None:
    """A library that keeps the system's words and loses its number."""
    try:
        _plain(path)
    except OSError as e:
        raise RuntimeError(f"cannot save: {e}") from None


WRITERS = {
    "plain": _plain, "numpy": _numpy, "parquet": _parquet, "lmdb": _lmdb,
    "safetensors": _safetensors, "duckdb": _duckdb, "words": _words_alone,
}  # fmt: skip


if __name__ == "__main__":
    import contextlib

    scene, root = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(globals()[scene](root, *sys.argv[3:])))
