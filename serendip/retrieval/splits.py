"""Which events a model is trained on, and which it is tested on. Knows no model.

Every split is two logs: ``training``, whose own last events choose the epoch (fit holds them
out), and ``test``, in which each tested user's last event is the target, given all before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.core import InvalidData
from serendip.retrieval.sequences import MIN_EVENTS_TO_VALIDATE, Sequences

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """What to train on and what to test on; both have the same users.

    Attributes:
        training: what ``fit`` is given.
        test: the history of each user, and the target after it.
        users: int64[V], those that are tested.
    """

    training: Sequences
    test: Sequences
    users: Int64


def leave_one_out(sequences: Sequences) -> Split:
    """Each user's last event is tested, the one before it validates, the others are trained on.

    The protocol of SASRec (arXiv 1808.09781, section IV.A). It needs an order, not timestamps.
    Users with fewer than four events are trained on whole and not tested. A model may have
    trained on what other users did after a target: global_temporal has no such leak.

    Raises:
        InvalidData: no user has four events.
    """
    size = np.diff(sequences.start)
    tested = size > MIN_EVENTS_TO_VALIDATE
    if not tested.any():
        raise InvalidData(
            f"no user has {MIN_EVENTS_TO_VALIDATE + 1} events",
            field="interactions",
            remedy="Bring longer histories.",
        )
    return Split(sequences.first_events(size - tested), sequences, np.flatnonzero(tested))


def global_temporal(sequences: Sequences, test_share: float = 0.1) -> Split:
    """Training ends at one moment for all users; each user's first event from then on is tested.

    The moment is the first timestamp that leaves at most ``test_share`` of the events from it on.
    Tested are users with three events before it and one after. Every event of training, the ones
    that validate included, lies before every target: Meng et al., Exploring Data Splitting
    Strategies, RecSys 2020 (arXiv 2007.13237).

    Raises:
        InvalidData: the log has no timestamps, or the moment leaves nobody to test.
    """
    if sequences.timestamp is None:
        raise InvalidData(
            "the order of events is known, their times are not",
            field="timestamp",
            remedy="Split leave-one-out, or bring timestamps.",
        )
    times = np.unique(sequences.timestamp)
    later = len(sequences.item) - np.searchsorted(np.sort(sequences.timestamp), times)
    moments = times[later <= test_share * len(sequences.item)]
    moment = moments[0] if len(moments) else np.iinfo(np.int64).max
    user = np.repeat(np.arange(sequences.users), np.diff(sequences.start))
    before = np.bincount(user, sequences.timestamp < moment, sequences.users).astype(np.int64)
    tested = (before >= MIN_EVENTS_TO_VALIDATE) & (before < np.diff(sequences.start))
    if not tested.any():
        raise InvalidData(
            f"no user has {MIN_EVENTS_TO_VALIDATE} events before the moment that parts training "
            "from test, and one after",
            field="timestamp",
            value=int(moment),
            remedy="Choose another share of events to test on.",
        )
    return Split(
        sequences.first_events(before),
        sequences.first_events(before + tested),
        np.flatnonzero(tested),
    )
