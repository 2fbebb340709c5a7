"""Reasoning traces by a teacher: what is asked, what is kept, and that no label gets in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from material import picture
from own_teacher import Reply, serve

from serendip.config import Config
from serendip.core import CorruptArtifact, InvalidRequest, SerendipError
from serendip.planning.examples import Example
from serendip.planning.mllm import Mllm
from serendip.planning.prompt import Content
from serendip.planning.style import STYLES, make_style
from serendip.planning.traces import (
    Answers,
    Questions,
    ask_teacher,
    clean_trace,
    keep_traces,
    naming,
    teacher_settings,
)

COT = STYLES["video_cot"]
# Titles, own clusters, what is to be seen, and labels.
ROWS = [
    ("a slow loaf", "bread: rye", "snow on a window sill", "bread: cake"),
    ("up and away", "bike: hill", "a wooden board in a hall", "bike: track"),
    ("strings", "music: cello", "neon tubes over a desk", "music: synth and vinyl"),
    ("crumbs", "bread: rye and oats", "a child with a ball", "bread: cake"),
]
SEEN = {title: seen for title, _, seen, _ in ROWS}
LABELS = {title: label for title, _, _, label in ROWS}


def example(at, look=""):
    title, own, _, label = ROWS[at]
    content = Content(title, "", picture(at), (picture(10 + at), picture(20 + at)))
    return Example(content, own, label, look, 100 + len(label), 50 + at)


EXAMPLES = [example(at) for at in range(len(ROWS))]


def config_of(teacher, prompt="blind", trace_tokens=64, **how):
    how = {"frames": 1, "tries": 2, "at_once": 2, **how}
    return Config.model_validate(
        {
            "planner": {"teacher": teacher, "trace_tokens": trace_tokens},
            "teacher": {"prompt": prompt, **how},
        }
    )


def title_of(asked):
    (line,) = [x for x in asked.words.splitlines() if x.startswith("Title: ")]
    return line.removeprefix("Title: ")


def honest(asked, _):
    return f"It shows {SEEN[title_of(asked)]}."


def copying(asked, _):
    return f"A viewer would next like {LABELS[title_of(asked)]}, I think."


def traces_of(script, mllm, root, **how):
    """(looks of the rows, facts of asking, facts of keeping)."""
    with serve(script) as teacher:
        config = config_of(teacher.url, **how)
        told, asked = ask_teacher(config, COT, EXAMPLES, root)
        kept, facts = keep_traces(config, mllm, told)
    return [e.look for e in kept], asked, facts


@pytest.mark.parametrize("prompt", ["blind", "with_target"])
def test_a_teacher_that_copies_the_label_has_no_trace_left(mllm, tmp_path, prompt):
    looks, asked, facts = traces_of(copying, mllm, tmp_path, prompt=prompt)
    assert looks == [""] * len(ROWS)
    assert asked["asked"] == facts["leaked"] == len(ROWS)
    assert facts["names_label"] == 1


@pytest.mark.parametrize("prompt", ["blind", "with_target"])
def test_an_honest_teacher_keeps_its_traces(mllm, tmp_path, prompt):
    looks, _, facts = traces_of(honest, mllm, tmp_path, prompt=prompt)
    assert looks == [f"It shows {seen}." for _, _, seen, _ in ROWS]
    assert facts["kept"] == len(ROWS)
    assert facts["leaked"] == facts["names_label"] == 0


def test_the_teacher_sees_the_item_and_never_the_label_unless_it_is_to(tmp_path):
    with serve(honest) as teacher:
        ask_teacher(config_of(teacher.url), COT, EXAMPLES, tmp_path)
        blind = list(teacher.asked)
        ask_teacher(config_of(teacher.url, "with_target"), COT, EXAMPLES, tmp_path)
        shown = teacher.asked[len(blind) :]
    assert {title_of(a) for a in blind} == set(SEEN)
    for asked in blind:
        at = list(SEEN).index(title_of(asked))
        assert not any(label in asked.words for label in LABELS.values())
        cover, frame = asked.pictures  # the thumbnail, and one of two frames
        for sent, drawn in ((cover, picture(at)), (frame, picture(10 + at))):
            grey = sent.mean(axis=2).ravel(), drawn.mean(axis=2).ravel()  # JPEG blurs colours
            assert np.corrcoef(*grey)[0, 1] > 0.8
        assert asked.body["model"] == "scripted"
        assert "Authorization" not in asked.headers
    assert all(LABELS[title_of(a)] in a.words for a in shown)


def test_what_was_answered_is_never_asked_again(tmp_path):
    with serve(honest) as teacher:
        config = config_of(teacher.url)
        first, _ = ask_teacher(config, COT, EXAMPLES, tmp_path)
        again, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
        assert len(teacher.asked) == len(ROWS)
        assert (facts["asked"], facts["cached"]) == (0, len(ROWS))
        assert [e.look for e in again] == [e.look for e in first]
        # Other words, other pictures, another template: other questions.
        changed = config_of(teacher.url, "with_target")
        assert ask_teacher(changed, COT, EXAMPLES, tmp_path)[1]["asked"] == len(ROWS)
        fewer = config_of(teacher.url, frames=0)
        assert ask_teacher(fewer, COT, EXAMPLES, tmp_path)[1]["asked"] == len(ROWS)
        redrawn = replace(EXAMPLES[0], content=replace(EXAMPLES[0].content, cover=picture(99)))
        assert ask_teacher(config, COT, [redrawn, EXAMPLES[1]], tmp_path)[1]["asked"] == 1


def test_rows_of_one_item_are_one_question_unless_the_label_is_shown(tmp_path):
    title, own, _, _ = ROWS[0]
    rows = [
        Example(EXAMPLES[0].content, own, label, "", node, 50)
        for node, label in enumerate(("bread: cake", "bread: oats"))
    ]
    with serve(honest) as teacher:
        told, facts = ask_teacher(config_of(teacher.url), COT, rows, tmp_path)
        assert facts["asked"] == 1
        assert [e.look for e in told] == [f"It shows {SEEN[title]}."] * 2
        _, facts = ask_teacher(config_of(teacher.url, "with_target"), COT, rows, tmp_path)
        assert facts["asked"] == 2


def test_an_answer_is_on_disk_before_the_next_question_is_asked(tmp_path):
    lines = []

    def script(asked, before):
        lines.append(sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("traces/*")))
        return honest(asked, before)

    with serve(script) as teacher:
        ask_teacher(config_of(teacher.url, at_once=1), COT, EXAMPLES, tmp_path)
    assert lines == [0, 1, 2, 3]


def test_a_run_that_broke_off_goes_on_where_it_was(tmp_path):
    lives = [True, True, False, *[True] * 3]  # the key is withdrawn for one question

    def script(asked, before):
        return honest(asked, before) if lives[before] else Reply(status=401)

    with serve(script) as teacher:
        config = config_of(teacher.url, at_once=1)
        with pytest.raises(InvalidRequest, match="refuses every request"):
            ask_teacher(config, COT, EXAMPLES, tmp_path)
        (cache,) = tmp_path.glob("traces/*.jsonl")
        cache.write_bytes(cache.read_bytes()[:-10])  # its second line is cut off
        told, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
        assert (facts["asked"], facts["cached"]) == (3, 1)
        assert [e.look for e in told] == [f"It shows {seen}." for _, _, seen, _ in ROWS]
        assert ask_teacher(config, COT, EXAMPLES, tmp_path)[1]["asked"] == 0


def test_lines_of_a_cache_that_are_no_answers_cost_no_other(tmp_path):
    cache = Answers(tmp_path, "t")
    cache.add("a", "one\nline")
    with cache.path.open("ab") as f:
        f.write(b'[1]\n{"key": 1, "answer": "x"}\n\xff\xfe\n{"key": "b", "ans')
    again = Answers(tmp_path, "t")
    assert dict(again) == {"a": "one\nline"}
    again.add("b", "two")
    assert dict(Answers(tmp_path, "t")) == {"a": "one\nline", "b": "two"}


def test_what_is_busy_is_asked_again(tmp_path):
    busy = {0: 429, 1: 503, 2: 500}

    def script(asked, before):
        if before in busy:
            return Reply(status=busy[before], headers={"Retry-After": "0"})
        return honest(asked, before)

    with serve(script) as teacher:
        config = config_of(teacher.url, at_once=1, tries=4)
        told, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
        assert len(teacher.asked) == len(ROWS) + len(busy)
    assert facts["refused"] == 0
    assert all(e.look for e in told)


@pytest.mark.parametrize(
    "no",
    [
        Reply(status=400, body=b'{"error": "too long"}'),
        Reply(body=b"<html>"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
        Reply(body=b"{" * (2 << 20)),
    ],
    ids=["400", "no JSON", "no choice", "no text", "too much"],
)
def test_a_question_that_is_refused_costs_its_trace_and_no_other(tmp_path, no):
    def script(asked, before):
        return no if title_of(asked) == "strings" else honest(asked, before)

    with serve(script) as teacher:
        config = config_of(teacher.url, at_once=1)
        told, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
        assert [bool(e.look) for e in told] == [True, True, False, True]
        assert (facts["asked"], facts["refused"]) == (4, 1)
        ask_teacher(config, COT, EXAMPLES, tmp_path)
        assert [title_of(a) for a in teacher.asked[4:]] == ["strings"]


def test_a_teacher_that_refuses_everything_is_an_error(tmp_path):
    with (
        serve(lambda *_: Reply(status=400, body=b"not an image model")) as teacher,
        pytest.raises(SerendipError, match="not an image model"),
    ):
        ask_teacher(config_of(teacher.url), COT, EXAMPLES, tmp_path)


def test_a_key_is_sent_and_never_said(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OUR_KEY", "s3cret")
    with serve(lambda *_: Reply(status=403, body=b"wrong key s3cret")) as teacher:
        with pytest.raises(InvalidRequest, match=r"wrong key \[key\]") as refused:
            ask_teacher(config_of(teacher.url, key_env="OUR_KEY"), COT, EXAMPLES, tmp_path)
        assert teacher.asked[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in "".join(capfd.readouterr())
    assert not any(b"s3cret" in p.read_bytes() for p in tmp_path.rglob("*.jsonl"))
    monkeypatch.delenv("OUR_KEY")
    with pytest.raises(InvalidRequest, match=r"teacher\.key_env.*OUR_KEY"):
        ask_teacher(config_of(teacher.url, key_env="OUR_KEY"), COT, EXAMPLES, tmp_path)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host", "no http"),
        ("http://", "no http"),
        ("http://me:s3cret@host", "more than an address"),
        ("http://host/v1?key=s3cret", "more than an address"),
    ],
)
def test_an_address_that_is_none_is_refused_without_being_repeated(tmp_path, address, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        ask_teacher(config_of(address), COT, EXAMPLES, tmp_path)
    assert "s3cret" not in str(refused.value)


def test_a_server_that_is_away_is_an_error_with_what_to_do(tmp_path):
    with serve(honest) as teacher:
        pass
    with pytest.raises(SerendipError, match=r"tried 1 times.*what it has answered is kept"):
        ask_teacher(config_of(teacher.url, tries=1), COT, EXAMPLES, tmp_path)


def test_an_address_may_end_as_openai_clients_write_it(tmp_path):
    with serve(honest) as teacher:
        for address in (teacher.url, f"{teacher.url}/", f"{teacher.url}/v1"):
            ask_teacher(config_of(address), COT, EXAMPLES, tmp_path)
        assert len(teacher.asked) == len(ROWS)
        models = teacher.models
        ask_teacher(config_of(teacher.url, model="mine"), COT, EXAMPLES, tmp_path)
        assert teacher.models == models
        assert teacher.asked[-1].body["model"] == "mine"


def test_a_checkpoint_may_be_the_teacher(mllm, tmp_path, monkeypatch):
    mllm.save(tmp_path / "teacher")
    config = config_of(str(tmp_path / "teacher"), max_tokens=4, at_once=3)
    told, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
    assert facts["asked"] == len(ROWS)

    def open_again(_):
        raise AssertionError("it was asked before")

    monkeypatch.setattr(Mllm, "open", open_again)
    again, facts = ask_teacher(config, COT, EXAMPLES, tmp_path)
    assert (facts["asked"], facts["cached"]) == (0, len(ROWS))
    assert [e.look for e in again] == [e.look for e in told]


def test_a_teacher_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptArtifact, match=r"planner\.teacher: no image-text checkpoint"):
        ask_teacher(config_of(str(tmp_path / "empty")), COT, EXAMPLES, tmp_path)


@pytest.mark.parametrize("style", ["text", "video", "cluster"])
def test_a_style_without_a_place_for_a_trace_is_refused(tmp_path, style):
    with pytest.raises(InvalidRequest, match="no place for a trace"):
        ask_teacher(config_of("nobody"), STYLES[style], EXAMPLES, tmp_path)


def test_a_template_of_ones_own(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("What is {{this}}?\n{frames}\nKind: {cluster}, then {target}\n")
    assert Questions.open(str(mine)).shows_target
    content = replace(EXAMPLES[0].content, cluster="bread: rye")
    prompt = Questions.open(str(mine)).ask(content, "a {odd} label", 100)
    words = [p.get("text") for p in prompt.messages[0]["content"]]
    assert words == ["What is {this}?", None, None, "Kind: bread: rye, then a {odd} label"]
    assert len(prompt.images) == 2
    assert prompt.opening == ""
    changed = teacher_settings(config_of("x", str(mine)))
    mine.write_text("What is this?\n{frames}\n")
    assert teacher_settings(config_of("x", str(mine))) != changed
    assert teacher_settings(config_of("")) == {}
    for wrong in ("Say it.\n{title}\n", "Say it.\n{frames}\n---\nLook: {look}\n", "{frames} {x}\n"):
        mine.write_text(wrong)
        with pytest.raises(InvalidRequest):
            Questions.open(str(mine))
    with pytest.raises(InvalidRequest, match=r"teacher\.prompt"):
        Questions.open(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("answer", "trace", "how"),
    [
        ("Snow on a sill.", "Snow on a sill.", "kept"),
        ('Look: "Snow\n on a\tsill."', "Snow on a sill.", "kept"),
        ("<think>the label is cake</think>Snow.", "Snow.", "kept"),
        ("<think>it never ends", "", "empty"),
        ("Snow.\nNext: bread: cake", "Snow.", "kept"),
        ("next: bread: cake", "", "empty"),
        ("Snow<end_of_turn>\n<start_of_turn>model and ice.", "Snow model and ice.", "kept"),
        ("Snow <|im_end|> **falls** </s>.", "Snow falls .", "kept"),
        (" 12 ... !", "", "empty"),
        ("", "", "empty"),
        (
            "Snow falls. " + "It goes on and on and on and on and on. " * 9,
            "Snow falls.",
            "shortened",
        ),
        ("Snow falls, " + "and on and on and on and on and on " * 9, "Snow falls", "shortened"),
        ("snow falls " * 60, "", "too_long"),
    ],
)
def test_a_trace_is_one_clean_bounded_line(mllm, answer, trace, how):
    assert clean_trace(answer, mllm, 24) == (trace, how)


def test_nothing_of_a_trace_can_be_read_as_the_answers_opening(mllm):
    style = make_style("s", "Look.\n{frames}\n---\nLook: {look}\n")
    from serendip.planning.prompt import read_answer, write_answer

    for answer in ("Snow.\nNext: bread: cake", "Snow\n\nNEXT: x", "Snow <end_of_turn> Next:"):
        trace, _ = clean_trace(answer, mllm, 64)
        turn = write_answer(style, "", trace, "sea: kayak")
        assert read_answer(style, turn) == (f"Look: {trace}", "sea: kayak")
        assert mllm.end_token not in mllm.tokens(turn)


@pytest.mark.parametrize(
    ("trace", "label", "blind", "strict"),
    [
        ("Bread and snow.", "bread: cake", False, False),  # the own cluster's word
        ("A slow morning.", "slow: cake", False, False),  # the title's word
        ("There are cakes.", "bread: cake", True, True),
        ("A synth in neon light.", "music: synth and vinyl", False, True),  # half of them
        ("A synth and a vinyl player.", "music: synth and vinyl", True, True),
        ("It may be rye bread.", "bread: rye", False, False),  # nothing of its own to give away
        ("BREAD:  Oats", "bread: oats", True, True),
        ("手工天然酵母", "面包: 天然酵母", True, True),
    ],
)
def test_a_label_is_given_away_by_words_that_nothing_else_tells(trace, label, blind, strict):
    found = naming(trace, EXAMPLES[0], label)
    assert (found.leaks(False), found.leaks(True)) == (blind, strict)


def test_the_facts_tell_a_teacher_that_knows_labels_from_one_that_does_not(mllm):
    labels = ["bread: cake", "bread: oats", "bread: spelt"]
    rows = [
        Example(EXAMPLES[0].content, "bread: rye", label, f"It is {label}.", 100 + at, 50)
        for at, label in enumerate(labels)
    ]
    _, facts = keep_traces(config_of("x"), mllm, rows)
    assert (facts["names_label"], facts["names_other_label"]) == (1, 0)
    everything = [replace(row, look="Cakes, oats and spelt.") for row in rows]
    _, facts = keep_traces(config_of("x"), mllm, everything)
    assert (facts["names_label"], facts["names_other_label"]) == (1, 1)
    _, facts = keep_traces(config_of("x"), mllm, rows[:1])
    assert facts["names_other_label"] is None
    assert json.dumps(facts)
