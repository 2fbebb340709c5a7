"""The planner on vLLM: our engine's plans, and what keeps the two engines' plans apart.

What the planner makes of vLLM is tested on a stand-in for it; vLLM itself runs where
``./build.sh vllm-env`` has made its environment.
"""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import parts
import pytest
import tiny_planner
import vllm_stand_in

from serendip.artifacts import Artifacts
from serendip.config import Config, PlannerConfig, PlansConfig
from serendip.core import InvalidRequest, SerendipError
from serendip.planning import rows
from serendip.planning.bulk import publish_plans
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content
from serendip.planning.style import STYLES, make_style

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
    command = ["-m", "serendip.cli", "plan", "--engine"]
    for engine, message in (("vllm", "is not installed here"), ("vlm", "is no engine")):
        said = subprocess.run([sys.executable, *command, engine], capture_output=True, text=True)
        assert said.returncode == 2
        assert message in said.stderr
        assert len(said.stderr.splitlines()) == 1


def test_plans_of_the_two_engines_are_not_taken_for_each_other(tmp_path, monkeypatch):
    _, tree, artifact = publish(tmp_path, monkeypatch)

    def made_of(**plans):
        return rows.plans_made_of(tree.version, artifact, PlansConfig.model_validate(plans))

    ours, vllm = made_of(), made_of(engine="vllm")
    assert ours != vllm
    assert vllm != made_of(engine="vllm", vllm={"dtype": "bfloat16"})
    # What changes the time alone, and the other engine's settings, make nothing stale.
    assert vllm == made_of(engine="vllm", vllm={"eager": True, "memory": 0.5, "cache_gb": 1})
    assert ours == made_of(vllm={"dtype": "bfloat16"})
    kept = PlansConfig.model_validate(rows.search_of(PlansConfig(engine="vllm")))
    assert kept.engine == "vllm"


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: ./build.sh vllm-env makes it")
def test_vllm_itself_plans_as_our_engine_does(small_world, tmp_path):
    agreed = vllm_bench.run(small_world.config, tmp_path, PYTHON, items=64)
    assert agreed["greedy"] >= 0.99
    assert agreed["match_rate"] == 1.0
