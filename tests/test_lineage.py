"""From a served plan, or any artefact, back to the data and the log; and the verbs that show it."""

import contextlib
import json

import pytest
from parts import ITEMS, UNTIL, publish_all, publish_planner, publish_plans, publish_tree
from typer.testing import CliRunner

from serendip.artifacts import Artifacts
from serendip.cli import app
from serendip.core import InvalidRequest, NotFound
from serendip.inventory import Retention, prune
from serendip.lineage import origin_of, served_plan

FORGET_ALL = Retention(
    dict.fromkeys(("tree", "pairs", "planner", "plans", "retriever", "release", "report"), 0),
    forget_inputs=True,
)


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture
def run(tmp_path, monkeypatch, artifacts):
    """The command, on these artefacts."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(app, ["artifacts", *arguments])

    return invoke


def chain(origin):
    """Kinds from an origin down its first inputs that have any."""
    kinds = [origin.kind]
    while origin.made_of:
        origin = max(origin.made_of, key=lambda o: len(chain(o)))
        kinds.append(origin.kind)
    return kinds


def test_a_served_plan_leads_back_to_the_data(artifacts):
    release = publish_all(artifacts)
    served = served_plan(artifacts, ITEMS[0])
    assert served.release == release.version
    assert [c.node_id for c in served.plan.clusters] == [5, 6]
    assert served.plan.planner_version == release.inputs["planner"]
    assert chain(served.origin) == ["plans", "planner", "pairs", "tree", "data"]
    tree = served.origin
    while tree.kind != "tree":
        tree = max(tree.made_of, key=lambda o: len(chain(o)))
    assert tree.entry.log_until == UNTIL
    assert [(o.kind, o.version) for o in tree.made_of] == [("data", "0" * 12)]


def test_it_is_the_release_s_plan_and_not_the_current_plans_one(artifacts):
    release = publish_all(artifacts)
    tree = publish_tree(artifacts, seed=1)
    newer = publish_plans(artifacts, tree, publish_planner(artifacts, tree, seed=1))
    served = served_plan(artifacts, ITEMS[0])
    assert served.origin.version == release.inputs["plans"] != newer.version


def test_an_item_without_a_plan_says_why(artifacts):
    publish_all(artifacts)
    with pytest.raises(NotFound, match=r"quarantined: no such file.*'i7'.*live"):
        served_plan(artifacts, ITEMS[-1])
    with pytest.raises(NotFound, match="was not in the corpus"):
        served_plan(artifacts, "stranger")


def test_without_a_release_the_verb_to_run_is_named(artifacts):
    with pytest.raises(NotFound, match="serendip release"):
        served_plan(artifacts, ITEMS[0])


def test_what_was_removed_stays_in_the_lineage_as_removed(artifacts):
    publish_all(artifacts, seed=0)
    pairs = artifacts.current("planner").inputs["pairs"]
    publish_all(artifacts, seed=1)
    prune(artifacts, FORGET_ALL)
    origin = origin_of(artifacts, "planner", artifacts.previous_version("planner"))
    (removed,) = [o for o in origin.made_of if o.kind == "pairs"]
    assert (removed.version, removed.removed) == (pairs, True)


def test_a_release_stands_on_its_plans_and_its_retriever(artifacts):
    release = publish_all(artifacts)
    origin = origin_of(artifacts, "release")
    assert origin.version == release.version
    assert {o.kind for o in origin.made_of} == {"plans", "retriever"}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (("release", "f" * 12), NotFound),
        (("release", ""), NotFound),
        (("cake", ""), InvalidRequest),
        (("tree", "../../x"), InvalidRequest),
    ],
)
def test_a_name_of_nothing_is_refused(artifacts, name, error):
    with pytest.raises(error):
        origin_of(artifacts, *name)


# --- the verbs ---------------------------------------------------------------------------


def test_list_shows_what_is_current_and_released_as_a_table_and_as_json(artifacts, run):
    release = publish_all(artifacts)
    shown = run("list").stdout
    (line,) = [x for x in shown.splitlines() if x.split()[:1] == ["plans"]]
    assert release.inputs["plans"] in line
    assert "current" in line
    assert release.version in line
    assert "plans.lmdb 7" in line
    rows = json.loads(run("list", "--json").stdout)
    assert {r["kind"] for r in rows} == {
        "tree", "pairs", "planner", "plans", "retriever", "release",
    }  # fmt: skip
    assert all(r["current"] and r["bytes"] for r in rows)


def test_list_says_which_versions_are_no_versions_yet(artifacts, run):
    with (
        contextlib.suppress(KeyboardInterrupt),
        artifacts.publish("plans", {}, {}, resume=True) as draft,
    ):
        (line,) = [x for x in run("list").stdout.splitlines() if draft.version in x]
        assert "being made" in line
        raise KeyboardInterrupt
    (line,) = [x for x in run("list").stdout.splitlines() if draft.version in x]
    assert " draft " in line


def test_verify_ends_with_1_and_every_finding_if_anything_is_corrupt(artifacts, run):
    publish_all(artifacts)
    sound = run("verify")
    assert (sound.exit_code, sound.stdout) == (0, "6 versions, 0 corrupt\n")
    artifacts.current("planner").file("weights").write_text("w")
    artifacts.current("tree").file("nodes.parquet").unlink()
    broken = run("verify")
    assert broken.exit_code == 1
    assert "weights: differs from its sha256" in broken.stdout
    assert "nodes.parquet: is missing" in broken.stdout
    assert broken.stdout.endswith("6 versions, 2 corrupt\n")
    assert run("verify", "plans").exit_code == 0
    assert run("verify", f"tree/{artifacts.current_version('tree')}").exit_code == 1
    assert len(json.loads(run("verify", "--json").stdout)) == 2


def test_lineage_of_an_item_is_a_tree_for_people_and_json_for_programs(artifacts, run):
    release = publish_all(artifacts)
    shown = run("lineage", "--item", "i0").stdout
    places = [
        shown.index(text)
        for text in (
            f"served by release/{release.version}", "planned at 2023-11-14T22:13:20Z",
            "-1.0000  node 5", f"── plans {release.inputs['plans']}",
            f"── planner {release.inputs['planner']}", "── pairs ",
            f"── tree {release.inputs['tree']}", "── data 000000000000",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert shown.count("log until 2023-11-14T22:13:20Z") == 4
    told = json.loads(run("lineage", "--item", "i0", "--json").stdout)
    assert told["clusters"][0] == {
        "node_id": 5, "description": "node 5 of 0", "score": -1.0, "serendipitous": True,
    }  # fmt: skip
    assert told["planned_at_ms"] == UNTIL
    assert told["origin"]["kind"] == "plans"


def test_lineage_of_an_artefact(artifacts, run):
    publish_all(artifacts)
    assert "tree" in run("lineage", "retriever").stdout
    assert json.loads(run("lineage", "retriever", "--json").stdout)["kind"] == "retriever"
    assert "name one artefact" in str(run("lineage").exception)


def test_prune_removes_nothing_until_told_to_and_says_what_it_removed(artifacts, run, tmp_path):
    kinds = ("tree", "pairs", "planner", "plans", "retriever", "release")
    few = "".join(f"{kind} = 1\n" for kind in kinds)
    (tmp_path / "few.toml").write_text(f"[artifacts.keep]\n{few}")
    for seed in range(3):
        publish_all(artifacts, seed)
    before = run("list").stdout
    said = run("prune", "--config", "few.toml").stdout
    assert "nothing was removed; --yes does it" in said
    assert run("list").stdout == before
    done = run("prune", "--config", "few.toml", "--yes").stdout
    assert done.splitlines()[-1].startswith("removed 6, ")
    assert done.count("beyond artifacts.keep") == 6
    assert run("verify").exit_code == 0
    assert run("prune", "--config", "few.toml", "--yes").stdout == "removed 0, 0 bytes\n"


def test_a_mistake_names_what_there_is(run):
    assert "Name one of tree, pairs" in str(run("verify", "cake").exception)
    assert "nothing published" in str(run("verify", "tree").exception)
