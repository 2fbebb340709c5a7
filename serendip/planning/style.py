"""Prompt styles: how an item is put to the model, each a template in a readable file.

Knows no item: which slots a template has, and which of them show pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter

from serendip.artifacts import Artifact
from serendip.core import InvalidRequest

# What opens the answer span; from here on the trie decides. On a line of its own, so that it
# tokenises alike whatever the reasoning was.
ANSWER = "\nNext:"
OPENED = ANSWER.lstrip()  # the same where the model's turn begins with it
PROMPT = "prompt.txt"  # the style's template in a planner artefact

_FOLDER = Path(__file__).with_name("prompts")
_MAX_TEMPLATE = 8192  # characters
_REASONING = "---"  # the line between prompt and reasoning
_IMAGES = ("thumbnail", "frames")
_WORDS = ("title", "text", "cluster")
_TRACE = ("topic", "look")


@dataclass(frozen=True)
class Style:
    """How an item is put to the model: a template, read line by line.

    The prompt's lines hold the slots {title}, {text} and {cluster} (the description of the
    item's own cluster) in words, {thumbnail} and {frames} each on a line of their own; after a
    line ``---`` the reasoning's lines hold {topic} (the own cluster's description, as the
    model reads it) and {look} (what it sees). A line whose slots are all empty is left out, and
    so is one that begins with #.

    Attributes:
        template: as it stands in the file; checked by ``make_style``.
    """

    name: str
    template: str

    @cached_property
    def asks(self) -> tuple[str, ...]:
        """The lines of the prompt."""
        return self._lines[0]

    @cached_property
    def thinks(self) -> tuple[str, ...]:
        """The lines of the reasoning; none in a direct style."""
        return self._lines[1]

    @cached_property
    def known(self) -> tuple[str, ...]:
        """The reasoning's first lines, those that need nothing but the topic."""
        named = [set(slots_of(line)) <= {"topic"} for line in self.thinks]
        return self.thinks[: named.index(False)] if False in named else self.thinks

    @cached_property
    def _lines(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        asks: list[str] = []
        thinks: list[str] = []
        into = asks
        for line in self.template.splitlines():
            if line.strip() == _REASONING and into is asks:
                into = thinks
            elif line.strip() and not line.startswith("#"):
                into.append(line.strip())
        return tuple(asks), tuple(thinks)

    @property
    def slots(self) -> frozenset[str]:
        """The slots of the prompt."""
        return frozenset(slot for line in self.asks for slot in slots_of(line))

    @property
    def thumbnail(self) -> bool:
        """Whether the thumbnail is shown."""
        return "thumbnail" in self.slots

    @property
    def frames(self) -> bool:
        """Whether frames are shown."""
        return "frames" in self.slots

    @property
    def looks(self) -> bool:
        """Whether any picture is shown."""
        return self.thumbnail or self.frames

    @property
    def reasons(self) -> bool:
        """Whether the model reasons before it answers."""
        return bool(self.thinks)

    def version(self, frames: int, text_chars: int) -> str:
        """8 hexadecimal digits that change when any prompt of this style would."""
        shown = frames if self.frames else 0, text_chars if "text" in self.slots else 0
        # Plans that began before what is known was given had none of it.
        key = repr((self.asks, self.thinks, self.known, shown, ANSWER))
        return hashlib.sha256(key.encode()).hexdigest()[:8]


def make_style(name: str, template: str) -> Style:
    """A style of a template.

    Raises:
        InvalidRequest: the template cannot be a prompt; the value says which line.
    """
    style = Style(name, template)

    def refuse(message: str, value: object, remedy: str) -> None:
        raise InvalidRequest(message, field=f"prompt template {name}", value=value, remedy=remedy)

    if len(template) > _MAX_TEMPLATE:
        refuse(f"has more than {_MAX_TEMPLATE} characters", len(template), "Shorten it.")
    for lines, known in ((style.asks, _IMAGES + _WORDS), (style.thinks, _TRACE)):
        for line in lines:
            try:
                found = slots_of(line)
            except ValueError as e:
                refuse(f"has a line that cannot be read ({e})", line, "Write {{ for a brace.")
            for slot in found:
                if slot not in known:
                    refuse(
                        "has a slot that is not known there", line,
                        f"Known are {', '.join(f'{{{s}}}' for s in known)}.",
                    )  # fmt: skip
                if slot in _IMAGES and line != f"{{{slot}}}":
                    refuse("has a picture among words", line, f"Put {{{slot}}} on its own line.")
    shown = [slot for line in style.asks for slot in slots_of(line)]
    for slot in sorted(set(shown)):
        if shown.count(slot) > 1:
            refuse("shows something twice", f"{{{slot}}}", "Leave one of them out.")
    if not style.slots:
        refuse("shows nothing of the item", name, "Add a slot, {title} for one.")
    if slots_of(style.asks[0]):
        refuse(
            "does not begin with its instruction", style.asks[0],
            "Begin with a line without a slot: what all prompts share is read once a batch.",
        )  # fmt: skip
    if any(line.startswith(OPENED) for line in style.thinks):
        refuse(f"has a line of reasoning that begins with {OPENED}", name, "Leave it out.")
    return style


def slots_of(line: str) -> list[str]:
    """The slots of a line, in order. Raises ValueError if it cannot be read."""
    found = []
    for _, slot, form, conversion in Formatter().parse(line):
        if slot is not None:
            if not slot.isidentifier() or form or conversion:
                raise ValueError(f"no plain slot: {{{slot}}}")
            found.append(slot)
    return found


STYLES: Mapping[str, Style] = {
    path.stem: make_style(path.stem, path.read_text()) for path in sorted(_FOLDER.glob("*.txt"))
}


def open_style(name: str) -> Style:
    """A built-in style by its name, or a user's by the path of its template.

    Raises:
        InvalidRequest: there is none, or its template cannot be a prompt.
    """
    if name in STYLES:
        return STYLES[name]
    path = Path(name)
    try:
        template = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidRequest(
            f"no such prompt style ({e})",
            field="planner.style",
            value=name,
            remedy=f"Name a template file, or one of {', '.join(STYLES)}.",
        ) from None
    return make_style(path.stem, template)


def style_of(planner: Artifact) -> Style:
    """The style that a planner artefact was trained with. Raises CorruptArtifact."""
    return make_style(
        Path(planner.config["planner"]["style"]).stem, planner.file(PROMPT).read_text()
    )
