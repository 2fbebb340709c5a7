"""The place of each held-out event's item among all items, by a model. Knows no metric."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from serendip.retrieval.model import SequenceModel
from serendip.retrieval.padding import pad_histories
from serendip.retrieval.sequences import Sequences

_SCORE_FLOATS = 1 << 20  # of one block of scores

Int64 = npt.NDArray[np.int64]


def places_of_last(model: SequenceModel, sequences: Sequences, users: Int64) -> Int64:
    """int64[U], 1 is the top: the item of each user's last event, given all events before.

    All items are ranked; those that the user has seen before are left out, but never the
    event's own. Among equal scores the event's item comes last, so that a model that cannot
    tell items apart gains nothing.

    Args:
        users: int64[U], each with two events or more.
    """
    was_training = model.training
    model.eval()
    matrix = model.item_matrix().detach()
    block = max(1, min(256, _SCORE_FLOATS // len(matrix)))
    events, place = sequences.item, np.zeros(len(users), np.int64)
    # Histories of like length share a block: less padding to compute.
    size = np.minimum(np.diff(sequences.start)[users], model.shape.max_history)
    order = np.argsort(size, kind="stable")
    with torch.inference_mode():
        for at in range(0, len(users), block):
            rows = order[at : at + block]
            spans = [(sequences.start[u], sequences.start[u + 1] - 1) for u in users[rows]]
            seen = [events[first:last] for first, last in spans]
            target = torch.from_numpy(np.asarray([events[last] for _, last in spans]))[:, None]
            ids, length = pad_histories(seen, model.shape.max_history)
            vector = model.encode(torch.from_numpy(ids), torch.from_numpy(length))
            scores = torch.addmm(matrix[:, -1], vector, matrix[:, :-1].T)
            wanted = scores.gather(1, target)
            row = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
            scores[torch.from_numpy(row), torch.from_numpy(np.concatenate(seen))] = -math.inf
            scores.scatter_(1, target, wanted)
            # Not "at least as high": a score that is no number must not win.
            place[rows] = (~(scores < wanted)).sum(dim=1).numpy()
    model.train(was_training)
    return place
