"""What is listed, verified and removed; nothing that somebody needs is ever removed."""

import contextlib
import json
import os
import time

import pytest
from parts import publish_all, publish_planner, publish_plans, publish_tree

from serendip.artifacts import KINDS, MANIFEST, Artifacts
from serendip.inventory import (
    DAY_S,
    Retention,
    list_entries,
    prune,
    removable,
    verify_entries,
    verify_pointers,
)

NONE = dict.fromkeys(KINDS, 0)
INPUTS = {"data": "0" * 12}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def publish(artifacts, kind="report", number=0, inputs=INPUTS, **options):
    with artifacts.publish(kind, {"number": number}, inputs, **options) as draft:
        (draft.path / "file").write_text(str(number))
    age(draft.path / MANIFEST, 1000 - number)  # versions of one second are told apart by this
    return draft.version


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def leave_draft(artifacts, kind, number, inputs=INPUTS):
    """What a run that was stopped leaves; returns its version."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        artifacts.publish(kind, {"draft": number}, inputs, resume=True) as draft,
    ):
        (draft.path / "half").write_text("x" * 10)
        raise KeyboardInterrupt
    return draft.version


def findings(artifacts):
    return verify_pointers(artifacts) + verify_entries(artifacts, list_entries(artifacts))


def versions(artifacts, kind):
    return {e.version for e in list_entries(artifacts) if e.kind == kind}


# --- list --------------------------------------------------------------------------------


def test_every_version_is_listed_with_what_names_it(artifacts):
    first = publish_all(artifacts)
    second = publish_all(artifacts, seed=1)
    entries = {e.name: e for e in list_entries(artifacts)}
    tree = entries[f"tree/{first.inputs['tree']}"]
    assert (tree.state, tree.current, tree.releases) == ("published", False, (first.version,))
    assert not tree.busy
    assert tree.rows == {"items.parquet": 8}
    plans = entries[f"plans/{second.inputs['plans']}"]
    assert plans.current
    assert set(plans.made_of) == {f"{k}/{plans.inputs[k]}" for k in ("tree", "planner", "pairs")}
    assert len(entries) == 12


def test_a_draft_is_listed_as_one_and_says_what_it_is_made_of(artifacts):
    version = leave_draft(artifacts, "plans", 0)
    (draft,) = list_entries(artifacts)
    assert (draft.version, draft.state, draft.inputs) == (version, "draft", INPUTS)
    assert not draft.busy
    with artifacts.publish("plans", {"draft": 0}, INPUTS, resume=True):
        (draft,) = list_entries(artifacts)
        assert (draft.state, draft.busy) == ("draft", True)


# --- verify ------------------------------------------------------------------------------


def test_a_sound_store_has_no_findings(artifacts):
    publish_all(artifacts)
    assert findings(artifacts) == []


def test_all_that_is_wrong_is_found_at_once(artifacts):
    release = publish_all(artifacts)
    tree = artifacts.current("tree")
    tree.file("nodes.parquet").write_text("changed")
    tree.file("items.parquet").unlink()
    (tree.path / "stray").write_text("")
    (artifacts.current("planner").path / MANIFEST).write_text("{")
    (artifacts.current("plans").path / MANIFEST).unlink()
    (artifacts.root / "retriever" / "current").write_text("f" * 12)
    found = {f.where: (f.what.split(".")[0], f.corrupt) for f in findings(artifacts)}
    name = f"tree/{tree.version}"
    assert found[f"{name}/nodes.parquet"] == ("differs from its sha256", True)
    assert found[f"{name}/items.parquet"] == ("is missing", True)
    assert found[f"{name}/stray"] == ("is named by no manifest", False)
    assert found[f"planner/{release.inputs['planner']}"][0].startswith("manifest is no JSON")
    assert found["retriever/current"] == (f"names version {'f' * 12!r}, which is not there", True)
    gone = f"its plans {release.inputs['plans']} is not there any more"
    assert found[f"release/{release.version}"] == (gone, True)
    assert found["plans/current"][1]


def test_another_format_matters_where_it_is_current_or_released(artifacts):
    old, new = publish(artifacts, number=0), publish(artifacts, number=1)
    for version in (old, new):
        path = artifacts.root / "report" / version / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    found = {f.where: f.corrupt for f in findings(artifacts)}
    assert found == {f"report/{old}/{MANIFEST}": False, f"report/{new}/{MANIFEST}": True}


def test_an_input_that_was_removed_is_worth_knowing_and_no_corruption(artifacts):
    publish(artifacts, inputs={"tree": "a" * 12})
    (found,) = findings(artifacts)
    assert (found.what, found.corrupt) == (f"its tree {'a' * 12} is not there any more", False)


# --- retention ---------------------------------------------------------------------------


def test_the_newest_are_kept_by_count_and_the_current_one_always(artifacts):
    made = [publish(artifacts, number=n) for n in range(5)]
    artifacts.make_current("report", made[0])
    gone = prune(artifacts, Retention({**NONE, "report": 2}))
    assert {r.name for r in gone} == {f"report/{v}" for v in made[1:3]}
    assert versions(artifacts, "report") == {made[0], made[3], made[4]}
    assert findings(artifacts) == []


def test_what_is_said_beforehand_is_what_is_done(artifacts):
    for number in range(3):
        publish(artifacts, number=number)
    retention = Retention({**NONE, "report": 1})
    before = removable(artifacts, retention)
    assert len(versions(artifacts, "report")) == 3
    done = prune(artifacts, retention)
    assert [(r.name, r.bytes, r.why) for r in done] == [(r.name, r.bytes, r.why) for r in before]
    assert len(done) == 2
    assert all(r.bytes > 100 for r in done)
    assert list((artifacts.root / "report").glob(".*")) == []
    assert removable(artifacts, retention) == []


def test_the_current_and_the_previous_release_keep_all_that_they_are_made_of(artifacts):
    releases = [publish_all(artifacts, seed=s) for s in range(3)]
    gone = {r.name for r in prune(artifacts, Retention(NONE))}
    first = releases[0]
    assert gone == {
        f"release/{first.version}",
        *(f"{kind}/{version}" for kind, version in first.inputs.items()),
        *(n for n in gone if n.startswith("pairs/")),
    }
    for release in releases[1:]:
        for kind, version in release.inputs.items():
            artifacts.open(kind, version)
    assert len(versions(artifacts, "pairs")) == 2
    assert findings(artifacts) == []


def test_a_release_that_is_kept_by_count_keeps_its_parts(artifacts):
    releases = [publish_all(artifacts, seed=s) for s in range(3)]
    prune(artifacts, Retention({**NONE, "release": 3}))
    for kind, version in releases[0].inputs.items():
        artifacts.open(kind, version)
    assert len(versions(artifacts, "pairs")) == 2  # what only explains an old release may go
    assert not any(f.corrupt for f in findings(artifacts))


def test_what_served_artefacts_were_made_of_goes_only_when_the_user_says_so(artifacts):
    publish_all(artifacts, seed=0)
    release = publish_all(artifacts, seed=1)
    publish_tree(artifacts, seed=2)
    assert not any(r.name.startswith("pairs/") for r in removable(artifacts, Retention(NONE)))
    gone = {r.name for r in prune(artifacts, Retention(NONE, forget_inputs=True))}
    assert len([n for n in gone if n.startswith("pairs/")]) == 1  # the other one is current
    assert not gone & {f"{k}/{v}" for k, v in release.inputs.items()}
    assert not any(f.corrupt for f in findings(artifacts))


def test_a_tree_that_was_read_for_its_items_is_kept_as_one(artifacts):
    tree = publish_tree(artifacts)
    publish_tree(artifacts, seed=1)
    publish(artifacts, inputs={"tree_items": tree.version})
    (report,) = [e for e in list_entries(artifacts) if e.kind == "report"]
    assert report.made_of == (f"tree/{tree.version}",)
    assert prune(artifacts, Retention(NONE)) == []


def test_a_version_whose_manifest_cannot_be_read_takes_no_place_of_a_sound_one(artifacts):
    made = [publish(artifacts, number=n) for n in range(3)]
    (artifacts.root / "report" / made[1] / MANIFEST).write_text("{")
    gone = prune(artifacts, Retention({**NONE, "report": 2}))
    assert [(r.name, r.why) for r in gone] == [(f"report/{made[1]}", "its manifest cannot be read")]


def test_an_old_draft_goes_and_a_young_one_keeps_what_it_is_made_of(artifacts):
    tree = publish_tree(artifacts)
    publish_planner(artifacts, tree)
    old = leave_draft(artifacts, "plans", 0)
    young = leave_draft(artifacts, "plans", 1, {"tree": tree.version})
    publish_tree(artifacts, seed=1)
    for path in (artifacts.root / "plans" / old, artifacts.root / "plans" / old / "half"):
        age(path, DAY_S + 60)
    gone = prune(artifacts, Retention(NONE))
    assert [(r.name, r.why) for r in gone] == [(f"plans/{old}", "a draft that was given up")]
    assert gone[0].bytes == 10
    assert versions(artifacts, "plans") == {young}
    assert tree.version in versions(artifacts, "tree")


def test_a_draft_that_is_being_made_is_never_touched_nor_what_it_is_made_of(artifacts):
    tree = publish_tree(artifacts)
    publish_tree(artifacts, seed=1)
    with artifacts.publish("plans", {}, {"tree": tree.version}) as draft:
        (draft.path / "file").write_text("long ago")
        for path in (draft.path, draft.path / "file"):
            age(path, 10 * DAY_S)
        assert prune(artifacts, Retention(NONE, draft_age_s=0)) == []
    assert artifacts.current("plans").inputs == {"tree": tree.version}


def test_a_version_that_is_being_made_again_is_not_removed(artifacts):
    version = publish(artifacts, number=0)
    publish(artifacts, number=1)
    with artifacts.publish("report", {"number": 0}, INPUTS):
        assert prune(artifacts, Retention(NONE)) == []
    assert artifacts.current_version("report") == version


def test_remains_of_killed_processes_are_swept(artifacts):
    version = publish(artifacts)
    folder = artifacts.root / "report"
    (folder / f".{'a' * 12}.1.gone").mkdir()
    (folder / f".{'a' * 12}.1.gone" / "file").write_text("half removed")
    (folder / ".current.4242").write_text("half written")
    (folder / f".{'b' * 12}.lock").write_text("{}")
    (folder / f".{version}.again").mkdir()
    for name in (".current.4242", f".{'b' * 12}.lock", f".{version}.again"):
        age(folder / name, 2 * DAY_S)
    gone = prune(artifacts, Retention({**NONE, "report": 1}))
    assert {r.name.split("/")[1] for r in gone} == {
        f".{'a' * 12}.1.gone", ".current.4242", f".{'b' * 12}.lock", f".{version}.again",
    }  # fmt: skip
    assert {p.name for p in folder.iterdir()} == {version, "current"}


def test_a_version_that_is_half_removed_does_not_exist(artifacts, monkeypatch):
    kept, gone = publish(artifacts, number=1), publish(artifacts, number=0)
    artifacts.make_current("report", kept)
    monkeypatch.setattr("serendip.inventory.shutil.rmtree", lambda path, **_: None)  # killed here
    prune(artifacts, Retention(NONE))
    assert versions(artifacts, "report") == {kept}
    assert not artifacts.exists("report", gone)
    assert findings(artifacts) == []


def test_a_version_that_goes_while_a_stage_looks_at_it_is_made_again(artifacts, monkeypatch):
    version = publish(artifacts, number=0)
    publish(artifacts, number=1)
    opened = artifacts.open

    def pruned_meanwhile(*args, **options):
        found = opened(*args, **options)
        prune(artifacts, Retention(NONE))
        return found

    monkeypatch.setattr(artifacts, "open", pruned_meanwhile)
    assert artifacts.reuse("report", {"number": 0}, INPUTS) is None
    assert artifacts.current_version("report") != version


def test_plans_of_an_older_planner_go_with_their_planner(artifacts):
    tree = publish_tree(artifacts)
    old = publish_planner(artifacts, tree, seed=0)
    publish_plans(artifacts, tree, old)
    new = publish_planner(artifacts, tree, seed=1)
    plans = publish_plans(artifacts, tree, new)
    prune(artifacts, Retention(NONE))
    assert versions(artifacts, "planner") == {new.version}
    assert versions(artifacts, "plans") == {plans.version}
