"""The synthetic world: seeded, real media, and the planted structure that it says."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import small_config

from serendip.catalog import render
from serendip.catalog.items import read_captions, read_items
from serendip.catalog.lexicon import FACETS, NOISE, levels
from serendip.catalog.logs import read_impressions, read_interactions
from serendip.catalog.media import decode_image, sample_frames
from serendip.catalog.synth import caption, synthesise
from serendip.catalog.world import live, plant
from serendip.config import SynthConfig
from serendip.core import InvalidRequest

CONFIG = SynthConfig(items_per_topic=8, interactions=30_000, users=300)


@pytest.fixture(scope="module")
def world():
    return plant(CONFIG, np.random.default_rng(0))


@pytest.fixture(scope="module")
def log(world):
    return live(world, CONFIG, np.random.default_rng(1))


def test_the_words_of_the_lexicon_are_all_different():
    words = [w for level in levels() for topic in level for w in topic]
    words += [*NOISE, *FACETS]
    assert len(words) == len(set(words))
    assert [len(level) for level in levels()] == [2, 4, 16, 64]


def test_the_target_is_a_sibling_that_the_theme_names(world):
    facets = len(FACETS)
    assert (world.target // facets == world.topic // facets).all()
    assert (world.target != world.topic).all()
    assert (world.target % facets == world.theme).all()


def test_in_the_harder_world_the_theme_says_how_far_the_target_is(world):
    harder = plant(CONFIG.model_copy(update={"second_theme": "shift"}), np.random.default_rng(0))
    facets = len(FACETS)
    assert (harder.target == world.target).all()
    assert ((harder.topic + harder.theme) % facets == harder.target % facets).all()
    assert set(harder.theme.tolist()) == {1, 2, 3}
    assert harder.richness.mean() < world.richness.mean() - 0.05


def test_in_a_null_world_the_theme_says_nothing_of_the_target():
    null = plant(
        CONFIG.model_copy(update={"second_theme": "null", "items_per_topic": 64}),
        np.random.default_rng(0),
    )
    agree = (null.target % len(FACETS) == null.theme).mean()
    # Two independent draws of the same prior agree by the sum of its squares, .38.
    assert 0.34 < agree < 0.42


def test_satisfaction_is_highest_at_the_target(world, log):
    rows = np.arange(len(log.user))
    item = log.slate[rows, log.chosen]
    follows = (log.user[1:] == log.user[:-1]) & (np.diff(log.timestamp) < 301_000)
    before, after = item[:-1][follows], item[1:][follows]
    satisfaction = log.satisfaction[1:][follows]
    hit = world.topic[after] == world.target[before]
    same = world.topic[after] == world.topic[before]
    assert satisfaction[hit].mean() > satisfaction[same].mean() + 0.15
    assert satisfaction[same].mean() > satisfaction[~hit & ~same].mean() + 0.1


def test_sessions_of_a_user_do_not_overlap_and_slots_are_propensities(log):
    same_user = log.user[1:] == log.user[:-1]
    assert (np.diff(log.timestamp)[same_user] > 0).all()
    assert ((log.propensity > 0) & (log.propensity <= 1)).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_world(tmp_path):
    hashes = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = synthesise(small_config(tmp_path / folder, seed=seed))
        hashes.append(json.loads((made / "synth.json").read_text())["sha256"])
    assert hashes[0] == hashes[1]
    assert all(hashes[0][name] != hashes[2][name] for name in hashes[0])


def test_what_is_written_is_what_a_user_brings(small_world):
    folder = small_world.config.data_path
    items = list(read_items(folder))
    assert len(items) >= 500
    assert len(read_interactions(folder)) > 20_000
    shown = read_impressions(folder)
    assert len(shown) == 3 * len(read_interactions(folder))
    truth = set(pq.read_table(folder / "truth.parquet").column_names)
    assert not truth & set(pq.read_table(folder / "items.parquet").column_names) - {"item_id"}
    for item in items[::100]:
        assert decode_image(item.thumbnail).shape == (render.SIDE, render.SIDE, 3)
        assert len(sample_frames(item.video, 5)) == 5


def test_captions_name_what_is_drawn_and_no_cluster(small_world):
    texts = {text for _, text in read_captions(small_world.config.data_path)}
    assert "nothing clear" in texts
    scene = render.Scene(1, 0, 0)
    assert caption(scene) == "neon scene, red ball"
    tree = pq.read_table(small_world.artifacts.current("tree").file("nodes.parquet"))
    assert not texts & set(tree.column("description").to_pylist())


def test_a_world_that_is_there_is_kept_and_a_folder_of_somebody_else_is_refused(tmp_path):
    config = small_config(tmp_path)
    made = synthesise(config)
    before = (made / "synth.json").stat().st_mtime_ns
    assert synthesise(config) == made
    assert (made / "synth.json").stat().st_mtime_ns == before
    (made / "synth.json").unlink()
    with pytest.raises(InvalidRequest, match="data_dir: exists and is no synthetic world"):
        synthesise(config)
