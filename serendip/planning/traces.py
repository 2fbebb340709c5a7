"""Reasoning traces by a teacher: asked once, kept, cleaned, dropped where they give the label away.

    <artefacts>/traces/<teacher>.jsonl      a line an answer: {"key": ..., "answer": ...}

The key is a hash of what was asked: the words and the pixels. A line is one write, so that a run
that is killed loses what was under way alone; a line that was cut off is asked again.

A trace is there to say what the pictures show. One that repeats the label teaches the planner to
guess, and to call the guess a reason. So a trace is compared with the *distinctive* words of its
row's label: those of the target's description that are neither in the own cluster's description
nor in the item's title and text; English stop words and plural endings do not count. It is
dropped, and the row trained without one, if

- it holds the label's description as it stands, or
- more than half of the distinctive words; if the teacher was shown the label, any of them.

That finds copies, not paraphrases. Where the pictures do show what the label names, an honest trace
may be dropped with them. The facts say how often a trace names its own row's label, and how often
that of another row of the same own cluster, drawn at random: of a teacher that never saw a label,
the two differ by what the pictures tell alone. Knows no artefact and no training.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serendip.config import Config
from serendip.core import InvalidRequest, SerendipError
from serendip.planning.examples import Example
from serendip.planning.mllm import Mllm
from serendip.planning.prompt import Content, Prompt, build_prompt
from serendip.planning.style import OPENED, Style, make_style, slots_of
from serendip.planning.teacher import Teacher, open_teacher, state_of
from serendip.progress import console, progress
from serendip.tree.words import words_of

FOLDER = "traces"
_PROMPTS = Path(__file__).with_name("teacher_prompts")
_TARGET = "{target}"
_NAMED_SHARE = 0.5  # of a label's distinctive words
_MAX_CHARS = 4000  # of an answer that are read
_HOPELESS = 16  # questions refused, and none ever answered, after which no more are asked

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"<\|[^|>]{1,40}\|>|</?s>|\[/?INST\]|\*\*")
_OPENED = re.compile(rf"\b{re.escape(OPENED)}", re.IGNORECASE)
_LABELLED = re.compile(r"^\W*(?:look|answer|trace|sentence)\s*[:：]\s*", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?…](?=[\s\"')]|$)|[。！？]")
_CLAUSE = re.compile(r"[,;:](?=\s)|\s[–—-](?=\s)|[，；：、]")


# --- asking ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """How a teacher is asked about an item.

    Attributes:
        template: as a prompt style's, with {target} for the label where the teacher is shown it.
    """

    name: str
    template: str

    @classmethod
    def open(cls, name: str) -> Questions:
        """A built-in template by its name, or a user's by its path.

        Raises:
            InvalidRequest: there is none, or it cannot be a prompt.
        """
        path = Path(name) if name.endswith(".txt") else _PROMPTS / f"{name}.txt"
        try:
            template = path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidRequest(
                f"no such template ({e})", field="teacher.prompt", value=name,
                remedy="Name blind, with_target, or a template file.",
            ) from None  # fmt: skip
        questions = cls(path.stem, template)
        style = make_style(path.stem, template.replace(_TARGET, "an interest"))
        if not style.looks or style.reasons:
            raise InvalidRequest(
                "shows no picture" if not style.looks else "has a line ---", value=name,
                field="teacher.prompt", remedy="A teacher is asked what pictures show, in a prompt "
                "with {thumbnail} or {frames} and no reasoning.",
            )  # fmt: skip
        return questions

    @property
    def shows_target(self) -> bool:
        """Whether the teacher is shown the label."""
        return _TARGET in self.template

    def ask(self, content: Content, target: str, text_chars: int) -> Prompt:
        """The prompt about an item. Raises InvalidRequest if there is nothing that it shows."""
        escaped = target.replace("{", "{{").replace("}", "}}")
        style = Style(self.name, self.template.replace(_TARGET, escaped))
        return replace(build_prompt(content, style, text_chars), opening="")


def teacher_settings(config: Config) -> dict[str, object]:
    """What the traces depend on, for a planner's manifest; nothing where there is no teacher.

    Raises:
        InvalidRequest: the template cannot be used.
    """
    if not config.planner.teacher:
        return {}
    asked = {**config.teacher.recipe(), "template": Questions.open(config.teacher.prompt).template}
    if state := state_of(Path(config.planner.teacher)):
        asked["files"] = state
    return {"teacher": asked}


def ask_teacher(
    config: Config, style: Style, examples: Sequence[Example], root: Path
) -> tuple[list[Example], dict[str, object]]:
    """The examples with what the teacher says as their looks, as it said it; and the facts.

    What was answered before is not asked again. A refusal leaves the look empty.

    Args:
        root: the artefacts' folder.

    Raises:
        InvalidRequest: the style has no place for a trace.
        SerendipError: the teacher cannot be asked, or refuses everything.
    """
    if not style.looks or "look" not in {s for line in style.thinks for s in slots_of(line)}:
        raise InvalidRequest(
            f"the prompt style {style.name} has no place for a trace",
            field="planner.teacher",
            value=config.planner.teacher,
            remedy="Name video_cot, a template with pictures and {look}, or no teacher.",
        )
    questions = Questions.open(config.teacher.prompt)
    frames, chars = config.teacher.frames, config.planner.text_chars
    teacher = open_teacher(config.planner.teacher, config.teacher)
    cache = Answers(root / FOLDER, f"{teacher.name} {config.teacher.max_tokens}")
    keys: list[str] = []
    wanted: dict[str, Prompt] = {}
    for example in examples:
        prompt = questions.ask(example.content.thinned(frames), example.target, chars)
        keys.append(_key(prompt))
        if keys[-1] not in cache:
            wanted.setdefault(keys[-1], prompt)
    refused = _ask(teacher, cache, wanted, len(set(keys)))
    told = [replace(e, look=cache.get(key, "")) for e, key in zip(examples, keys, strict=True)]
    asked, cached = len(wanted), len(set(keys)) - len(wanted)
    console.print(
        f"  traces: {asked} asked, {cached} kept from before, {refused} refused; in {cache.path}"
    )
    facts = {"teacher": teacher.name, "template": questions.name, "asked": asked,
             "cached": cached, "refused": refused}  # fmt: skip
    return told, facts


def _ask(teacher: Teacher, cache: Answers, wanted: Mapping[str, Prompt], total: int) -> int:
    """Asks what is wanted and keeps what is answered; returns how many were refused."""
    names, refused, reason = list(wanted), 0, ""
    if not wanted:
        return 0
    with progress("traces", total, done=total - len(wanted)) as tick:
        for answer in teacher.ask(list(wanted.values())):
            tick()
            if answer.text is not None:
                cache.add(names[answer.at], answer.text)
                continue
            refused, reason = refused + 1, answer.reason
            if not cache and refused >= min(_HOPELESS, len(wanted)):
                raise SerendipError(
                    f"refused the first {refused} questions ({reason})",
                    field="planner.teacher",
                    value=teacher.name,
                    remedy="Serve an image-text model with room for the prompt.",
                )
    if refused:
        console.print(f"  traces: the last refusal: {reason}")
    return refused


def _key(prompt: Prompt) -> str:
    """sha256 of a prompt's words and pixels, in hexadecimal."""
    whole = hashlib.sha256(repr(prompt.messages).encode())
    for image in prompt.images:
        whole.update(repr(image.shape).encode())
        whole.update(image.tobytes())
    return whole.hexdigest()


class Answers(dict[str, str]):
    """A teacher's answers by key, in memory and in one file."""

    def __init__(self, folder: Path, teacher: str) -> None:
        """Reads what is there; a line that cannot be read is as if it were not there."""
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(teacher.encode()).hexdigest()[:8]
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", teacher).strip("-.")[-60:]
        self.path = folder / f"{readable}-{digest}.jsonl"
        data = self.path.read_bytes() if self.path.exists() else b""
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            try:
                row = json.loads(line)
                key, answer = row["key"], row["answer"]
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(key, str) and isinstance(answer, str):
                self[key] = answer

    def add(self, key: str, answer: str) -> None:
        """Keeps an answer: in the file when this returns."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=False).encode()
        with self.path.open("ab", buffering=0) as f:
            f.write((b"\n" if self._torn else b"") + line + b"\n")
        self._torn = False
        self[key] = answer


# --- keeping -----------------------------------------------------------------------------


def keep_traces(
    config: Config, mllm: Mllm, examples: Sequence[Example]
) -> tuple[list[Example], dict[str, object]]:
    """The examples with their looks cleaned, bounded and rid of leaks; and the facts.

    Facts: rows; kept, of which shortened; empty, too_long (no sentence ends within the bound) and
    leaked, whose looks are left empty; names_label, names_other_label: shares of the traces,
    before leaks are dropped, that give away their own label, and another row's of the same own
    cluster; label_words, other_label_words: the mean shares of distinctive words that they name.
    None where there is nothing to take a share of.
    """
    strict = Questions.open(config.teacher.prompt).shows_target
    outcome = Counter(kept=0, shortened=0, empty=0, too_long=0, leaked=0)
    rng = np.random.default_rng([config.seed, 98])
    kept: list[Example] = []
    siblings: defaultdict[int, list[Example]] = defaultdict(list)
    for example in examples:
        siblings[example.own_id].append(example)
    own, other = [], []
    for example in examples:
        trace, how = clean_trace(example.look, mllm, config.planner.trace_tokens)
        if trace:
            mine = naming(trace, example, example.target)
            own.append(mine)
            target = _other_target(siblings[example.own_id], example, rng)
            if target is not None:
                other.append(naming(trace, example, target))
            if mine.leaks(strict):
                trace, how = "", "leaked"
        outcome["kept"] += bool(trace)
        if how != "kept":
            outcome[how] += 1
        kept.append(replace(example, look=trace))
    facts: dict[str, object] = {"rows": len(examples), **outcome, "saw_target": strict}
    for name, found in (("label", own), ("other_label", other)):
        facts[f"names_{name}"] = _mean([n.leaks(strict) for n in found])
        facts[f"{name}_words"] = _mean([n.share for n in found])
    console.print(
        f"  traces: {outcome['kept']} of {len(examples)} rows have one; "
        f"{outcome['leaked']} gave the label away, {outcome['empty']} were empty, "
        f"{outcome['too_long']} too long"
    )
    return kept, facts


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _other_target(
    rows: Sequence[Example], example: Example, rng: np.random.Generator
) -> str | None:
    """The label of one of these rows, drawn at random; None where all have the example's."""
    others = [row for row in rows if row.node_id != example.node_id]
    return others[int(rng.integers(len(others)))].target if others else None


def clean_trace(answer: str, mllm: Mllm, most_tokens: int) -> tuple[str, str]:
    """(a trace fit to be trained on, how it came about): kept, shortened, empty or too_long.

    One line, without the teacher's thoughts, markup, the tokenizer's special tokens, and whatever
    follows ``Next:``, which would open the answer. A trace that is too long ends with the last
    sentence, or else clause, that is within the bound.

    Args:
        most_tokens: of the model that is trained.
    """
    text = unicodedata.normalize("NFC", _THOUGHT.sub(" ", answer))[:_MAX_CHARS]
    text = mllm.plain(_MARKUP.sub(" ", text))
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = _LABELLED.sub("", _OPENED.split(text)[0]).strip(" \"'“”")
    if not any(c.isalpha() for c in text):
        return "", "empty"

    def fits(part: str) -> bool:
        return len(mllm.tokens(f" {part}")) <= most_tokens

    if fits(text):
        return text, "kept"
    for ends in (_SENTENCE, _CLAUSE):
        for end in reversed(list(ends.finditer(text))):
            part = text[: end.end() if ends is _SENTENCE else end.start()].rstrip()
            if any(c.isalpha() for c in part) and fits(part):
                return part, "shortened"
    return "", "too_long"


@dataclass(frozen=True)
class Naming:
    """How far a trace names a label.

    Attributes:
        whole: it holds the description as it stands.
        share: of the label's distinctive words that it holds; 0 where there are none.
    """

    whole: bool
    share: float

    def leaks(self, strict: bool) -> bool:
        """Whether the label counts as given away; ``strict``: by any distinctive word."""
        return self.whole or self.share > (0 if strict else _NAMED_SHARE)


def naming(trace: str, example: Example, target: str) -> Naming:
    """How far a trace of an example's item names a description."""
    known = _stems(f"{example.own} {example.content.title} {example.content.text}")
    distinctive = _stems(target) - known
    held = distinctive & _stems(trace)
    # A label without words of its own cannot be told from the item's own words.
    whole = bool(distinctive) and _flat(target) in _flat(trace)
    return Naming(whole, len(held) / len(distinctive) if distinctive else 0.0)


def _stems(text: str) -> set[str]:
    """Words without plural endings."""
    return {w.removesuffix("s") if len(w) > 3 else w for w in words_of(text)}


def _flat(text: str) -> str:
    """Lower case, words and single spaces alone, with one at either end."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    return f" {' '.join(words)} "
