"""Ways to decode an item that end the process, for tests of what survives it."""

import os
import signal
import time
from dataclasses import replace

from serendip.planning.prompt import load_content


def load(item, style, frames):
    """Decodes, unless the item's title says how its decoder shall end."""
    if item.title == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item.title == "exit":
        os._exit(7)
    if item.title == "hang":
        time.sleep(1000)
    if item.title == "late":
        time.sleep(1)
    while item.title == "spin":
        pass
    if item.title == "bug":
        raise ZeroDivisionError("division by zero")
    return load_content(item, style, frames)


def load_deadly_once(item, style, frames):
    """Ends the process the first time that it sees an item, as somebody's kill -9 would."""
    seen = item.thumbnail.with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return load_content(item, style, frames)


def load_slowly(item, style, frames):
    """Decodes as if the item were far away."""
    time.sleep(0.03)
    return load_content(item, style, frames)


class Deadly(str):
    """A title that ends the process that looks at it, which is not the one that decoded it."""

    def __format__(self, spec):
        os.kill(os.getpid(), signal.SIGKILL)


def load_for_worker(item_id, item, style, frames):
    """Decodes; one item's content brings down the worker that puts it to its model."""
    content = load_content(item, style, frames)
    return replace(content, title=Deadly(content.title)) if item.item_id == item_id else content
