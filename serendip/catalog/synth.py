"""Writes the synthetic world as a user would bring it: parquet tables, JPEGs and mp4s.

Beside them truth.parquet, the planted structure, which evaluation alone opens. The same
settings and seed give the same bytes of parquet. Knows nothing of what is done with the data.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from serendip.catalog import render
from serendip.catalog.lexicon import FACETS
from serendip.catalog.world import SHOTS, SLATE, TELLING, Log, World, live, plant
from serendip.config import Config
from serendip.core import InvalidRequest
from serendip.progress import progress
from serendip.storage import hash_file, write_atomically

_MARK = "synth.json"
_FORMAT = 3  # raised when the same seed makes another world
_FRAMES_A_SECOND = 5
_WORKERS = min(4, os.cpu_count() or 1)
_TASK_ITEMS = 64


def synthesise(config: Config) -> Path:
    """Makes the world of ``config.synth`` and ``config.seed`` in ``config.data_path``.

    Returns the folder; one that holds this very world already is kept as it is.

    Raises:
        InvalidRequest: the folder exists and was not made by this function.
    """
    target = config.data_path
    identity = {"format": _FORMAT, "seed": config.seed, "synth": config.synth.model_dump()}
    if target.exists():
        if not (target / _MARK).is_file():
            raise InvalidRequest(
                "exists and is no synthetic world",
                field="data_dir",
                value=str(target),
                remedy="Name another data_dir, or remove the folder.",
            )
        if json.loads((target / _MARK).read_text())["identity"] == identity:
            return target
    partial_dir = target.with_name(target.name + ".partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    for folder in ("thumbnails", "videos"):
        (partial_dir / folder).mkdir(parents=True)

    planting, living, captioning = (
        np.random.default_rng([config.seed, stream]) for stream in range(3)
    )
    world = plant(config.synth, planting)
    _write_tables(partial_dir, world, live(world, config.synth, living))
    _write_captions(partial_dir, config.synth.captions, captioning)
    thumbnail = TELLING[config.synth.second_theme].thumbnail
    _write_media(partial_dir, world, thumbnail, config.seed)

    hashes = {p.name: hash_file(p) for p in sorted(partial_dir.glob("*.parquet"))}
    mark = {"identity": identity, "sha256": hashes, "items": len(world)}
    write_atomically(partial_dir / _MARK, json.dumps(mark, indent=2).encode())
    shutil.rmtree(target, ignore_errors=True)
    partial_dir.rename(target)
    return target


def item_id(index: int) -> str:
    """Catalogue ID of the world's item ``index``."""
    return f"i{index:05d}"


def _write_tables(folder: Path, world: World, log: Log) -> None:
    ids = np.array([item_id(i) for i in range(len(world))])
    users = np.array([f"u{u:05d}" for u in range(int(log.user.max()) + 1)])
    _write(
        folder / "items.parquet",
        item_id=ids,
        title=list(world.titles),
        text=[""] * len(world),
        thumbnail=[f"thumbnails/{i}.jpg" for i in ids],
        video=[f"videos/{i}.mp4" for i in ids],
        created_at=world.created_at,
    )
    rows = np.arange(len(log.user))
    _write(
        folder / "interactions.parquet",
        user_id=users[log.user],
        item_id=ids[log.slate[rows, log.chosen]],
        timestamp=log.timestamp,
        satisfaction=log.satisfaction,
    )
    slot = np.tile(np.arange(SLATE), len(rows))
    request = np.repeat(rows, SLATE)
    watched = slot == log.chosen[request]
    _write(
        folder / "impressions.parquet",
        request_id=np.char.mod("r%07d", request),
        user_id=users[log.user[request]],
        item_id=ids[log.slate.ravel()],
        timestamp=log.timestamp[request],
        position=slot,
        nominated_by=["relevance"] * len(slot),
        propensity=log.propensity.ravel(),
        satisfaction=pa.array(log.satisfaction[request], mask=~watched),
    )
    _write(
        folder / "truth.parquet",
        item_id=ids,
        topic=world.topic,
        group=world.group,
        theme=world.theme,
        target_topic=world.target,
        shifts=[world.shifts] * len(world),
        richness=world.richness,
        popularity=world.popularity,
    )


def _write(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd")


def _write_captions(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Pictures with what is drawn in words: the pretraining that a real MLLM has had."""
    images, captions = [], []
    for _ in range(count):
        facet = None if rng.random() < 0.2 else int(rng.integers(len(FACETS)))
        scene = render.random_scene(facet, rng)
        images.append(_jpeg(render.draw(scene, rng)))
        captions.append(caption(scene))
    _write(folder / "captions.parquet", image=images, caption=captions)


def caption(scene: render.Scene) -> str:
    """What a scene shows, in words; never the name of a cluster."""
    if scene.facet is None:
        return "nothing clear"
    colour = list(render.COLOURS)[scene.colour]
    return f"{FACETS[scene.facet]} scene, {colour} {render.OBJECTS[scene.thing]}"


def _write_media(folder: Path, world: World, thumbnail: float, seed: int) -> None:
    tasks = [
        [(i, int(world.theme[i]), float(world.richness[i])) for i in range(at, end)]
        for at in range(0, len(world), _TASK_ITEMS)
        for end in [min(at + _TASK_ITEMS, len(world))]
    ]
    write = partial(_write_items, folder, seed, thumbnail)
    with progress("media", len(world)) as tick, ProcessPoolExecutor(_WORKERS) as pool:
        for done in pool.map(write, tasks):
            tick(done)


def _write_items(
    folder: Path, seed: int, thumbnail: float, items: list[tuple[int, int, float]]
) -> int:
    for index, theme, richness in items:
        # A generator of its own, so that the pictures do not depend on the worker count.
        rng = np.random.default_rng([seed, 3, index])
        shows = rng.random(SHOTS) < richness
        shots = [render.random_scene(theme if s else None, rng) for s in shows]
        _write_mp4(folder / "videos" / f"{item_id(index)}.mp4", shots, rng)
        cover = theme if rng.random() < thumbnail else None
        picture = render.draw(render.random_scene(cover, rng), rng)
        (folder / "thumbnails" / f"{item_id(index)}.jpg").write_bytes(_jpeg(picture))
    return len(items)


def _jpeg(picture: render.Frame) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=88)
    return out.getvalue()


def _write_mp4(path: Path, shots: list[render.Scene], rng: np.random.Generator) -> None:
    """A video of 2 to 4 s: the shots one after another, each of equal length."""
    repeats = int(rng.integers(2, 5))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_A_SECOND)
        stream.width = stream.height = render.SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        for shot in shots:
            picture = render.draw(shot, rng)
            for _ in range(repeats):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                for packet in stream.encode(frame):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
