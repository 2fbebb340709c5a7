"""The planner on vLLM: our engine's plans, and what keeps the two engines' plans apart.

What the planner makes of vLLM is tested on a stand-in for it; vLLM itself runs where
``./build.sh vllm-env`` has made its environment.
"""

import importlib
import pickle
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import parts
import pytest
import tiny_planner
import torch
import vllm_stand_in

from serendip import cli
from serendip.artifacts import Artifacts
from serendip.config import Config, PlannerConfig, PlansConfig
from serendip.core import InvalidRequest, Item, SerendipError
from serendip.planning import embedded
from serendip.planning.bulk import publish_plans
from serendip.planning.mllm import Mllm
from serendip.planning.plan_store import decode_plan
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, load_content
from serendip.planning.rows import plans_made_of, search_of
from serendip.planning.style import STYLES, make_style
from serendip.planning.workers import Task, Worker

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CONTENTS = [Content("rye bread", "and butter"), Content("a hill"), Content("sea", "deep")]
PLANS = {"max_reasoning_tokens": 4, "clusters": 3, "beams": 4}


@pytest.fixture
def on_stand_in(monkeypatch):
    with vllm_stand_in.installed(monkeypatch):
        for name in ("SERENDIP_TRIE", "SERENDIP_TRIE_TOKENIZER"):
            monkeypatch.setenv(name, "")  # restored at the end
        yield importlib.import_module("serendip.planning.vllm_planner").VllmPlanner


def publish(root, monkeypatch, template=STYLES["text"].template):
    """A tree and a planner that is shown words alone."""
    monkeypatch.setattr(tiny_planner, "CONFIG", PlannerConfig(style="text", text_chars=40))
    monkeypatch.setitem(STYLES, "text", make_style("text", template))
    return tiny_planner.publish(root)


@pytest.mark.parametrize("reasons", [True, False])
def test_it_plans_what_our_engine_plans(on_stand_in, tmp_path, monkeypatch, reasons):
    lines = "Suggest an interest.\nTitle: {title}\nText: {text}\n"
    template = lines + ("---\nTopic: {topic}\n" if reasons else "")
    _, tree, artifact = publish(tmp_path, monkeypatch, template)
    own = [tree.node_of(parts.ITEMS[0], parts.LEVEL), None, tree.node_of("i7", parts.LEVEL)]
    ours = Planner.open(artifact, tree.nodes, PlansConfig(**PLANS, runtime="torch"))
    theirs = on_stand_in.open(artifact, tree.nodes, PlansConfig(**PLANS, engine="vllm"))
    assert theirs.style.reasons == reasons
    for a, b in zip(ours.plan(CONTENTS, own), theirs.plan(CONTENTS, own), strict=True):
        assert bool(a.reasoning) == reasons
        assert (a.reasoning, a.own_node_id) == (b.reasoning, b.own_node_id)
        assert [c.node_id for c in a.clusters] == [c.node_id for c in b.clusters]
        scores = [c.score for c in a.clusters]
        assert [c.score for c in b.clusters] == pytest.approx(scores, abs=1e-4)
    # One question a round for the whole batch.
    assert theirs.llm.asked[0] == len(CONTENTS)
    assert len(theirs.llm.asked) < 6


def test_an_engine_without_the_processor_is_found_out(on_stand_in, tmp_path, monkeypatch):
    _, tree, artifact = publish(tmp_path, monkeypatch)
    planner = on_stand_in.open(artifact, tree.nodes, PlansConfig(**PLANS, engine="vllm"))
    monkeypatch.setattr(planner.llm.processor, "apply", lambda _, logits: logits)
    with pytest.raises(SerendipError, match=r"plans\.engine: has not opened its answer"):
        planner.plan(CONTENTS, [None] * 3)


def test_free_text_is_the_other_engine_s(on_stand_in, tmp_path, monkeypatch):
    _, tree, artifact = publish(tmp_path, monkeypatch)
    planner = on_stand_in.open(artifact, tree.nodes, PlansConfig(**PLANS, engine="vllm"))
    with pytest.raises(InvalidRequest, match=r"plans\.engine: .*'vllm'"):
        planner.write_free(CONTENTS, [None] * 3)


def test_what_vllm_says_against_a_checkpoint_is_told(on_stand_in, tmp_path, monkeypatch):
    _, tree, artifact = publish(tmp_path, monkeypatch)
    plans = PlansConfig.model_validate({**PLANS, "engine": "vllm", "vllm": {"dtype": "float16"}})

    def refuse(*_, dtype, **__):
        raise ValueError(f"no {dtype} here\nand much more")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    with pytest.raises(SerendipError, match=r"vLLM does not start \(no float16 here\)"):
        on_stand_in.open(artifact, tree.nodes, plans)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_where_vllm_is_not_installed_the_setting_is_refused_with_the_way_out(tmp_path):
    config = Config.model_validate({"artifacts_dir": str(tmp_path), "plans": {"engine": "vllm"}})
    expected = r"plans\.engine: is not installed here.*pip install 'serendip\[vllm\]'"
    with pytest.raises(InvalidRequest, match=expected):
        publish_plans(config, Artifacts(config.artifacts_path))
    for engine, message in (("vllm", expected), ("vlm", "--engine: is no engine")):
        with pytest.raises(InvalidRequest, match=message):
            cli.plan(engine=engine)


def test_plans_of_the_two_engines_are_not_taken_for_each_other(tmp_path, monkeypatch):
    _, tree, artifact = publish(tmp_path, monkeypatch)

    def made_of(**plans):
        return plans_made_of(tree.version, artifact, PlansConfig.model_validate(plans))

    ours, vllm = made_of(), made_of(engine="vllm")
    assert ours != vllm
    assert vllm != made_of(engine="vllm", vllm={"dtype": "bfloat16"})
    # What changes the time alone, and the other engine's settings, make nothing stale.
    assert vllm == made_of(engine="vllm", vllm={"eager": True, "memory": 0.5, "cache_gb": 1})
    assert ours == made_of(vllm={"dtype": "bfloat16"})
    kept = PlansConfig.model_validate(search_of(PlansConfig(engine="vllm")))
    assert kept.engine == "vllm"


@pytest.mark.full
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: ./build.sh vllm-env makes it")
def test_vllm_itself_plans_as_our_engine_does(tmp_path, monkeypatch):
    def sharp(*arguments, **options):
        """Random weights, but scores that differ by more than two engines' rounding."""
        made = build_embedded(*arguments, **options)
        with torch.no_grad():
            made.model.lm_head.weight.mul_(8)
        return made

    build_embedded = embedded.build_embedded
    monkeypatch.setattr(embedded, "build_embedded", sharp)
    _, tree, artifact = tiny_planner.publish(tmp_path)
    plans = PlansConfig.model_validate(
        {**PLANS, "max_reasoning_tokens": 8, "vllm": {"cache_gb": 0.5, "eager": True}}
    )
    setup = replace(tiny_planner.setup_of(artifact, tree, load_content), plans=plans)
    words = ("rye", "hill", "sea", "node 4")
    items = [
        Item(
            f"i{n}", f"{words[n % 4]} {n}", thumbnail=tiny_planner.picture(tmp_path / f"{n}.png", n)
        )
        for n in range(128)
    ]
    assert isinstance(items[7].thumbnail, Path)
    items[7].thumbnail.write_bytes(b"no picture")
    own = tree.nodes.at_level(parts.LEVEL)
    tasks = [Task(item, own[n % len(own)], f"key {n}") for n, item in enumerate(items)]
    leases = [tasks[:64], tasks[64:]]

    def planned():
        worker = Worker(setup)
        found = [row for lease in leases for row in worker.plan(lease).rows]
        worker.close()
        return found

    ours = planned()
    process = Mllm._process

    def causal(*arguments, **options):
        """As vLLM's CPU backend reads an image: its tokens one after the other."""
        batch = process(*arguments, **options)
        return batch | {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}

    monkeypatch.setattr(Mllm, "_process", causal)
    as_on_a_cpu = planned()
    given = tmp_path / "given", tmp_path / "made"
    on_vllm = replace(setup, plans=plans.model_copy(update={"engine": "vllm"}))
    given[0].write_bytes(pickle.dumps((on_vllm, leases)))
    script = Path(__file__).with_name("plan_on_vllm.py")
    subprocess.run([PYTHON, script, *given], check=True)
    theirs = pickle.loads(given[1].read_bytes())

    assert [(r.item_id, r.stale_key, r.reason) for r in theirs] == [
        (r.item_id, r.stale_key, r.reason) for r in ours
    ]
    assert [r.item_id for r in theirs if r.plan is None] == ["i7"]
    plans_of = [
        [decode_plan(r.plan) for r in rows if r.plan] for rows in (ours, as_on_a_cpu, theirs)
    ]
    same = [
        a.clusters[0].node_id == c.clusters[0].node_id for a, _, c in zip(*plans_of, strict=True)
    ]
    assert sum(same) / len(same) >= 0.99
    for _, a, b in zip(*plans_of, strict=True):
        assert a.reasoning == b.reasoning
        assert [c.node_id for c in a.clusters] == [c.node_id for c in b.clusters]
        scores = [c.score for c in a.clusters]
        assert [c.score for c in b.clusters] == pytest.approx(scores, abs=1e-4)
