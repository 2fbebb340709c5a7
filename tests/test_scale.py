"""docs/scale.md is what examples/scale.py prints, and its prose says no other number."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scale import INPUTS, parts_of, read_inputs, report, roofline, zipf_share

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()
NUMBER = re.compile(r"(?<![\w.])\.?\d[\d,]*(?:\.\d+)?(?:e\d+)?")


def numbers(text):
    return {n.replace(",", "").rstrip(".") for n in NUMBER.findall(text)}


def run(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "scale.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_block_of_the_page_is_the_script_s_output():
    blocks = run().stdout.strip().split("\n\n")
    assert len(blocks) == 7
    for block in blocks:
        assert block in PAGE


def test_the_prose_has_no_number_of_its_own():
    prose = PAGE
    for block in report(read_inputs([])):
        prose = prose.replace(block, "")
    prose = re.sub(r"`[^`]*`|\d{4}-\d\d-\d\d", "", prose)
    known = numbers("\n".join(report(read_inputs([]))))
    # The shares of the window, coverage and staleness in percent; what a sentence counts; 5 is
    # what an incremental run is asked for; 100M rows is what the inputs say in words.
    known |= {"80", "20", "10", "5", "1", "2", "100"}
    assert {n for n in numbers(prose) if n not in known and f"0{n}" not in known} == set()


def test_inputs_can_be_replaced_and_mistakes_are_named():
    more = run("bulk_per_gpu_s=100").stdout
    assert "| GPU rate used, items/s | 100 | measured |" in more
    for wrong in ("cake=1", "items=none", "items", "items=-1"):
        said = run(wrong)
        assert said.returncode == 2
        assert repr(wrong) in said.stderr
        assert "nic_gbit" in said.stderr


def test_every_input_says_what_it_is():
    assert {given.kind for given in INPUTS.values()} == {
        "asked", "measured", "published", "assumed", "open",
    }  # fmt: skip
    assert all(given.source for given in INPUTS.values())
    assert all((given.value is None) == (given.kind == "open") for given in INPUTS.values())


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_the_share_of_a_zipf_head_agrees_with_counting(exponent):
    weights = [rank**-exponent for rank in range(1, 100_001)]
    left, count = 0.8 * sum(weights), 0
    for weight in weights:
        left -= weight
        count += 1
        if left <= 0:
            break
    assert zipf_share(100_000, 0.8, exponent) == pytest.approx(count / 100_000, rel=0.02)


def test_the_roofline_is_two_operations_a_parameter_and_token_and_the_tower_s():
    v = {
        "images": 2, "image_tokens": 100, "text_tokens": 50, "written_tokens": 25,
        "parameters": 1e9, "gpu_tflops": 100, "prefill_mfu": 0.5, "decode_mfu": 0.1,
        "tower_tflop": 0.5,
    }  # fmt: skip
    # (250 / .5 + 25 / .1) tokens x 2e9 operations and 2 images x .5e12 / .5, over 1e14 a second
    assert roofline(v) == pytest.approx(1 / 0.035)


def test_hours_grow_with_the_corpus_and_shrink_with_the_stale_share():
    v = {name: value for name, value in read_inputs([]).items() if value is not None}
    v["gpu_rate"] = 50.0
    small, large = parts_of(1e6, v), parts_of(2e6, v)
    for a, b in zip(small, large, strict=True):
        of_the_catalogue = a.name in ("tree", "curation and corpus")
        assert b.full_h == pytest.approx(a.full_h * (1 if of_the_catalogue else 2))
    mllm = next(p for p in small if p.name == "MLLM")
    assert mllm.full_h == pytest.approx(1e6 / 50 / 3600)
    assert mllm.incremental_h == pytest.approx(mllm.full_h / 10)
