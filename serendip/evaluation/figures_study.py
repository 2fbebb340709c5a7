"""What the paper's figures 3 to 5 are made of here: worlds, starts, arms, claims and budget.

All of it was fixed before any figure was looked at, and none of it was chosen by what came out:
steps and looks follow from the time that there is. The paper is arXiv 2506.08283, whose figures
compare prompts, numbers of frames, and thumbnails with frames. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from serendip.config import Config
from serendip.planning.style import STYLES, Style, make_style

_CODE = ("catalog", "tree", "curation", "planning", "evaluation/figures_run.py")

Measure = Literal["recall_at_1", "recall", "match_rate"]
MEASURES: tuple[Measure, ...] = ("recall_at_1", "recall", "match_rate")
POOL_FRAMES = 8  # frames decoded a training item: as many as the arm with most shows
GROUNDS, DONE = "grounds", "done.json"  # the folder of what runs share; written last in each
SCRATCH, CAPTIONED = "from scratch", "captioned"


@dataclass(frozen=True)
class Arm:
    """A way to put an item to the model.

    Attributes:
        frames: shown where the style shows frames.
    """

    name: str
    style: Style
    frames: int = 0


def _without(*slots: str) -> Style:
    """The style of pictures and words, without some of its slots."""
    lines = STYLES["video_text"].template.splitlines()
    kept = [line for line in lines if not any(f"{{{slot}}}" in line for slot in slots)]
    return make_style(f"video_text without {' and '.join(slots)}", "\n".join(kept))


_FRAMES = (1, 2, 4, 8)
_PICTURES = 2  # frames beside the thumbnail in figure 3

ARMS = {
    arm.name: arm
    for arm in (
        Arm("cluster", STYLES["cluster"]),
        Arm("title", _without("thumbnail", "frames")),
        Arm("video", STYLES["video"], _PICTURES),
        Arm("video + title", STYLES["video_text"], _PICTURES),
        Arm("video + title, reasoning", STYLES["video_cot"], _PICTURES),
        *(Arm(f"{n} frame{'s' * (n > 1)}", _without("thumbnail"), n) for n in _FRAMES),
        Arm("thumbnail", _without("frames")),
    )
}
PROMPTS = ("cluster", "title", "video", "video + title", "video + title, reasoning")
FRAMES = ("1 frame", "2 frames", "4 frames", "8 frames")
COVER = ("1 frame", "thumbnail")

# Figure -> what it is about, and the arms that are its lines.
FIGURES = {
    3: ("prompt types", PROMPTS),
    4: ("sampled frames, with the title and without thumbnail", FRAMES),
    5: ("thumbnail against one sampled frame, with the title", COVER),
}


@dataclass(frozen=True)
class Claim:
    """An ordering.

    Attributes:
        better, worse: arms, as the paper orders them.
        measures: what it is judged on.
        course: on the mean over all looks, which says who was faster, and not at the end.
        papers: whether the paper says it; else it is a question of ours.
    """

    figure: int
    text: str
    better: str
    worse: str
    measures: tuple[Measure, ...] = ("recall_at_1", "recall")
    course: bool = False
    papers: bool = True


CLAIMS = (
    Claim(3, "video above text", "video", "cluster"),
    Claim(3, "video + text below video alone", "video", "video + title"),
    Claim(3, "reasoning above direct", "video + title, reasoning", "video + title"),
    Claim(
        3, "reasoning faster to match", "video + title, reasoning", "video + title",
        ("match_rate",), course=True,
    ),
    Claim(3, "the title with pictures above the title alone", "video + title", "title",
          papers=False),
    Claim(4, "2 frames above 1", "2 frames", "1 frame"),
    Claim(4, "4 frames above 2", "4 frames", "2 frames"),
    Claim(4, "8 frames above 4", "8 frames", "4 frames"),
    Claim(4, "8 frames above 1", "8 frames", "1 frame"),
    Claim(5, "thumbnail above one frame", "thumbnail", "1 frame"),
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Everything that a result depends on.

    Attributes:
        code: hash of the code that makes worlds and runs (``hash_code``).
        worlds: what each world changes in the synthetic world's settings.
        starts: which arms are trained from where.
        looks: fine-tuning steps after which an arm is judged; the last one ends the training.
        judged: held-out items at most that each look judges, the same for all arms.
        sizes: further settings of the synthetic world, the same for all worlds.
    """

    code: str
    worlds: dict[str, dict[str, Any]]
    starts: dict[str, tuple[str, ...]]
    seeds: int
    looks: tuple[int, ...]
    batch_size: int = 16
    judged: int = 160
    pretrain_steps: int = 250
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.looks[-1]

    def config(self, world: str, seed: int, folder: Path) -> Config:
        """The settings of a world, whose files lie in ``folder``."""
        return Config.model_validate(
            {
                "name": world,
                "seed": seed,
                "data_dir": str(folder / "data"),
                "artifacts_dir": str(folder / "artifacts"),
                "synth": {**self.sizes, **self.worlds[world]},
                "planner": {
                    "style": "video_text",
                    "frames": POOL_FRAMES,
                    "steps": self.steps,
                    "batch_size": self.batch_size,
                    # Rows beside the pairs would help the arm that reasons alone.
                    "word_rows": 0,
                    "reasoning_rows": 0,
                    "pretrain_steps": self.pretrain_steps,
                },
                "plans": {"clusters": 1, "batch_size": self.judged},
            }
        )

    def grounds(self) -> Iterator[Ground]:
        """Every world of every seed."""
        for seed in range(self.seeds):
            for world in self.worlds:
                yield Ground(self, world, seed)

    def runs(self) -> Iterator[Run]:
        """Every training run; those of one ground follow each other."""
        for ground in self.grounds():
            for start, arms in self.starts.items():
                for arm in arms:
                    yield Run(ground, start, ARMS[arm])


@dataclass(frozen=True)
class Ground:
    """What the runs of a world and a seed share: data, tree, pairs, and the two starts."""

    study: Study
    world: str
    seed: int

    @property
    def key(self) -> str:
        """Changes with everything that the ground depends on."""
        config = self.study.config(self.world, self.seed, Path()).model_dump(mode="json")
        planner = config.pop("planner")
        # What a run alone depends on leaves the ground as it is.
        kept = {k: v for k, v in planner.items() if k not in ("steps", "batch_size")}
        config.pop("plans")
        return f"{self.world}-{self.seed}-{_digest([self.study.code, config, kept])}"


@dataclass(frozen=True)
class Run:
    """One arm, trained from one start on one ground."""

    ground: Ground
    start: str
    arm: Arm

    @property
    def key(self) -> str:
        """Changes with everything that the result depends on."""
        study = self.ground.study
        config = study.config(self.ground.world, self.ground.seed, Path()).model_dump(mode="json")
        parts = [study.code, config, self.start, asdict(self.arm), study.looks, study.judged]
        return f"{self.ground.world}-{self.ground.seed}-{_digest(parts)}"


def hash_code() -> str:
    """10 hexadecimal digits that change with any file of the rooms whose code makes a result."""
    room = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for name in _CODE:
        paths = [room / name] if name.endswith(".py") else sorted((room / name).rglob("*.*"))
        for path in paths:
            if path.suffix in (".py", ".sql", ".txt"):
                whole.update(f"{path.relative_to(room)}:".encode() + path.read_bytes())
    return whole.hexdigest()[:10]


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


_WORLDS = {"easy": {"second_theme": "named"}, "harder": {"second_theme": "shift"}}


def full_study(seeds: int) -> Study:
    """The study that fits 40 minutes on 2 cores with three seeds.

    From scratch, prompt types alone: figures 4 and 5 are about what is seen, and a model that was
    never shown a caption sees next to nothing in that time.
    """
    return Study(
        code=hash_code(),
        worlds=_WORLDS,
        starts={SCRATCH: PROMPTS, CAPTIONED: tuple(ARMS)},
        seeds=seeds,
        looks=(20, 40, 70, 110, 160, 220),
    )


def quick_study() -> Study:
    """The same made small: it shows that the command works, and nothing else."""
    return Study(
        code=hash_code(),
        worlds=_WORLDS,
        starts={CAPTIONED: ("video", "cluster")},
        seeds=1,
        looks=(2, 4),
        batch_size=4,
        judged=16,
        pretrain_steps=4,
        sizes={"items_per_topic": 8, "interactions": 30_000, "users": 300, "captions": 200},
    )
