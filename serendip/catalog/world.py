"""The planted structure of the synthetic world, and the log that its users leave.

Each item has a topic, told by its title, and a second theme, which only its frames show. It leads
to the *target*, a topic of the item's own group: users who come from the item are delighted by it.
In the easy world the theme is the target's facet; in the harder one it says how many facets after
its own that one is, and fewer pictures show it. The logging policy knows nothing of that: it is a
plain relevance recommender. What is planted here is written to truth.parquet, which
evaluation alone opens. Knows no file format and draws no picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.catalog.lexicon import FACETS, NOISE, levels
from serendip.config import SynthConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Share of a topic's items whose second theme names its first, second and third sibling.
_THEME_PRIOR = (0.56, 0.26, 0.18)
# Words that a title takes from its area, realm, group and topic.
_WORDS_TAKEN = (1, 1, 2, 2)
_NOISE_WORDS = 2
_FACET_WORD = 0.5  # how often a title says its own facet
_WRONG_WORD = 0.03
SHOTS = 5


@dataclass(frozen=True)
class Telling:
    """How much the pictures of a world tell.

    Attributes:
        thumbnail: how often the thumbnail shows the second theme.
        shots: the range of an item's richness, which is how often one of its shots does.
    """

    thumbnail: float
    shots: tuple[float, float]


TELLING = {
    "named": Telling(0.9, (0.4, 1.0)),
    "null": Telling(0.9, (0.4, 1.0)),
    "shift": Telling(0.85, (0.3, 0.9)),
}

# The logging policy: where the next item comes from.
_SAME_TOPIC, _SIBLING_TOPIC = 0.55, 0.25  # else: the user's favourites or what is popular
SLATE = 3
_SESSION_EVENTS = 20
_MEAN_EVENTS = 14  # some leave early
_SATISFACTION = {"same": 0.55, "target": 0.85, "sibling": 0.40, "other": 0.30}
_SATISFACTION_NOISE, _USER_MOOD = 0.25, 0.10
_FAVOURITES = (0.5, 0.3, 0.2)
_EPOCH_MS = 1_750_000_000_000


@dataclass(frozen=True)
class World:
    """N items over T topics; topic = group x facet.

    Attributes:
        topic, theme, target: int64[N]: own topic, facet that the frames show, topic that
            delights after the item.
        richness: float64[N], probability that a shot shows the theme.
        shifts: whether the theme says how far the target is, and does not name it.
        popularity: float64[N], weight in the logging policy.
        titles: N texts.
        created_at: int64[N], Unix time in ms.
    """

    topic: Ints
    theme: Ints
    target: Ints
    richness: Floats
    popularity: Floats
    titles: tuple[str, ...]
    created_at: Ints
    shifts: bool

    def __len__(self) -> int:
        return len(self.topic)

    @property
    def group(self) -> Ints:
        return self.topic // len(FACETS)


@dataclass(frozen=True)
class Log:
    """R requests of SLATE slots each, as columns.

    Attributes:
        user, timestamp: int64[R]; timestamp in Unix ms.
        slate: int64[R, SLATE], items shown.
        propensity: float64[R, SLATE], probability that the policy put the item there.
        chosen: int64[R], which slot was watched.
        satisfaction: float64[R] in [0, 1], of the watched item.
    """

    user: Ints
    timestamp: Ints
    slate: Ints
    propensity: Floats
    chosen: Ints
    satisfaction: Floats


def plant(config: SynthConfig, rng: np.random.Generator) -> World:
    """Plants a world: which item is of which topic, theme and target, and how it is titled."""
    words = levels()
    topics, facets = len(words[-1]), len(FACETS)
    sizes = np.maximum(8, config.items_per_topic * (1 + 0.15 * rng.uniform(-1, 1, topics)))
    topic = np.repeat(np.arange(topics), sizes.round().astype(np.int64))
    rng.shuffle(topic)
    n = len(topic)
    facet = topic % facets

    def sibling_facet() -> Ints:
        # Which sibling leads is rolled by group, so that knowing the facet is not enough, while
        # every topic is the target of as many items.
        prior = np.array([np.roll(_THEME_PRIOR, t // facets) for t in range(topics)])
        step = (rng.random(n)[:, None] > prior.cumsum(axis=1)[topic, :-1]).sum(axis=1) + 1
        shifted: Ints = (facet + step) % facets
        return shifted

    delights = sibling_facet()
    theme = {
        "named": lambda: delights,
        "shift": lambda: (delights - facet) % facets,
        "null": sibling_facet,
    }[config.second_theme]()
    return World(
        topic=topic,
        theme=theme,
        target=topic - facet + delights,
        richness=rng.uniform(*TELLING[config.second_theme].shots, n),
        popularity=np.exp(rng.normal(0, 0.6, n)),
        titles=tuple(_title(int(t), words, rng) for t in topic),
        shifts=config.second_theme == "shift",
        created_at=_EPOCH_MS - rng.integers(1, 365 * 86_400, n) * 1000,
    )


def _title(
    topic: int, words: tuple[tuple[tuple[str, ...], ...], ...], rng: np.random.Generator
) -> str:
    chosen: list[str] = []
    for level, take in zip(words, _WORDS_TAKEN, strict=True):
        at = topic * len(level) // len(words[-1])
        if rng.random() < _WRONG_WORD:
            at = int(rng.integers(len(level)))
        chosen += rng.choice(level[at], take, replace=False).tolist()
    if rng.random() < _FACET_WORD:
        chosen.append(FACETS[topic % len(FACETS)])
    chosen += rng.choice(NOISE, _NOISE_WORDS, replace=False).tolist()
    rng.shuffle(chosen)
    return " ".join(chosen)


class _Draw:
    """Items of given topics by popularity, vectorised over requests."""

    def __init__(self, world: World) -> None:
        self.order = np.argsort(world.topic, kind="stable")
        topics = int(world.topic.max()) + 1
        start = np.searchsorted(world.topic[self.order], np.arange(topics + 1))
        self.cumulative = np.concatenate([[0.0], world.popularity[self.order].cumsum()])
        self.low = self.cumulative[start[:-1]]
        self.high = self.cumulative[start[1:]]

    def of_topic(self, topic: Ints, rng: np.random.Generator) -> Ints:
        at = self.low[topic] + rng.random(topic.shape) * (self.high - self.low)[topic]
        return self._item(at)

    def of_any(self, shape: tuple[int, ...], rng: np.random.Generator) -> Ints:
        return self._item(rng.random(shape) * self.cumulative[-1])

    def _item(self, at: Floats) -> Ints:
        rank = np.searchsorted(self.cumulative, at, side="right") - 1
        return self.order[np.minimum(rank, len(self.order) - 1)]


def live(world: World, config: SynthConfig, rng: np.random.Generator) -> Log:
    """Lets the users live: sessions of a plain relevance recommender's slates.

    A user has favourite topics, where sessions begin. Satisfaction depends on the step: the
    same topic again is fine, the target of the item before delights, the rest is so-so.
    """
    draw = _Draw(world)
    facets, topics = len(FACETS), int(world.topic.max()) + 1
    sessions = -(-config.interactions // _MEAN_EVENTS)
    user = np.arange(sessions) % config.users
    favourites = rng.integers(0, topics, (config.users, len(_FAVOURITES)))
    mood = rng.normal(0, _USER_MOOD, sessions)

    # A user's sessions lie in slots of their own, so that they never overlap.
    slots = -(-sessions // config.users)
    slot_ms = config.days * 86_400_000 // slots
    spare = max(1, slot_ms - _SESSION_EVENTS * 301_000)
    clock = _EPOCH_MS + (np.arange(sessions) // config.users) * slot_ms
    clock = clock + rng.integers(0, spare, sessions)

    def favourite(shape: tuple[int, ...]) -> Ints:
        which = np.searchsorted(np.cumsum(_FAVOURITES)[:-1], rng.random(shape))
        return favourites[np.broadcast_to(user[:, None], shape), which]

    weight_of_topic = draw.high - draw.low
    total = draw.cumulative[-1]
    first = draw.of_topic(favourite((sessions, 1)), rng)[:, 0]
    current = first
    alive = np.ones(sessions, bool)
    columns: list[tuple[npt.NDArray[np.generic], ...]] = []
    for _ in range(_SESSION_EVENTS - 1):
        shape = (sessions, SLATE)
        here = np.broadcast_to(world.topic[current][:, None], shape)
        sibling = here - here % facets + (here % facets + rng.integers(1, facets, shape)) % facets
        where = rng.random(shape)
        liked = rng.random(shape) < 0.5
        slate = np.where(
            where < _SAME_TOPIC,
            draw.of_topic(here, rng),
            np.where(
                where < _SAME_TOPIC + _SIBLING_TOPIC,
                draw.of_topic(sibling, rng),
                np.where(liked, draw.of_topic(favourite(shape), rng), draw.of_any(shape, rng)),
            ),
        )
        topic = world.topic[slate]
        in_topic = world.popularity[slate] / weight_of_topic[topic]
        is_same = topic == here
        is_sibling = ~is_same & (topic // facets == here // facets)
        taste = sum(
            share * (favourites[user, f][:, None] == topic) for f, share in enumerate(_FAVOURITES)
        )
        rest = 1 - _SAME_TOPIC - _SIBLING_TOPIC
        propensity = (
            _SAME_TOPIC * is_same * in_topic
            + _SIBLING_TOPIC / (facets - 1) * is_sibling * in_topic
            + rest / 2 * (taste * in_topic + world.popularity[slate] / total)
        )
        pick = rng.integers(0, SLATE, sessions)
        following = slate[np.arange(sessions), pick]
        expected = np.where(
            world.topic[following] == world.topic[current],
            _SATISFACTION["same"],
            np.where(
                world.topic[following] == world.target[current],
                _SATISFACTION["target"],
                np.where(
                    world.group[following] == world.group[current],
                    _SATISFACTION["sibling"],
                    _SATISFACTION["other"],
                ),
            ),
        )
        satisfaction = expected + mood + rng.normal(0, _SATISFACTION_NOISE, sessions)
        satisfaction = np.clip(satisfaction, 0, 1).round(4)
        clock = clock + rng.integers(20_000, 300_000, sessions)
        seen = alive & (following != current)
        columns.append(tuple(a[seen] for a in (user, clock, slate, propensity, pick, satisfaction)))
        # Some leave after what they did not like.
        alive = alive & ~((satisfaction < 0.15) & (rng.random(sessions) < 0.3))
        current = following
    joined = [np.concatenate(c) for c in zip(*columns, strict=True)]
    order = np.lexsort((joined[1], joined[0]))
    user_, time_, slate_, propensity_, pick_, satisfaction_ = (c[order] for c in joined)
    return Log(user_, time_, slate_, propensity_, pick_, satisfaction_)
