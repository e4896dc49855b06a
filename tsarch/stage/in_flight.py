"""Boundary rows that are under way at a checkpoint, kept by place in the data.

In `overlapped` the student is one batch behind, and the weights that made the rows have moved on,
so the rows themselves are saved. By place, not by message: another topology cuts the same rows into
other messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tsarch.checkpoint.host_copies import Keep
from tsarch.data.feed import Feed
from tsarch.parallel.link import Message
from tsarch.records import IntArray
from tsarch.schedule.instruction import SendHidden
from tsarch.topology import Stage

Outgoing = dict[int, tuple[int, list[tuple[Message, Tensor]]]]
"""Micro-batch → the step that was sent last, and its messages with their rows."""


def keep_rows(
    feed: Feed, replica: int, sent: Outgoing, sends: Sequence[SendHidden], keep: Keep
) -> None:
    """Hand the rows of `sends` that teacher `replica` has sent to `keep`, with their places."""
    places, rows = [], []
    for send in sends:
        step, messages = sent[send.micro_batch]
        assert step == send.step, "rows of another step were sent since"
        own = list(_places(feed, replica, send))
        assert [student for student, _ in own] == [
            feed.topology.place(message.target)[1] for message, _ in messages
        ]
        places += [p for _, p in own]
        rows += [r for _, r in messages]
    if rows:
        keep("places", torch.from_numpy(np.concatenate(places)))
        keep("rows", torch.cat(rows))


def saved_messages(
    feed: Feed, replica: int, saved: Sequence[Mapping[str, Tensor]], send: SendHidden
) -> list[tuple[Message, Tensor]]:
    """The messages of `send` from teacher `replica` again, of rows that any ranks have kept."""
    places = np.concatenate([share["places"].numpy() for share in saved if "places" in share])
    rows = torch.cat([share["rows"] for share in saved if "rows" in share])
    order = np.argsort(places, kind="stable")
    messages = []
    for student, wanted in _places(feed, replica, send):
        found = order[np.searchsorted(places[order], wanted)]
        assert np.array_equal(places[found], wanted), "rows of another batch were saved"
        own = feed.topology.rank(Stage.TEACHER, replica)
        target = feed.topology.rank(Stage.STUDENT, student)
        message = Message(send.step, send.micro_batch, own, target, len(wanted), int(rows.shape[1]))
        messages.append((message, rows[torch.from_numpy(found)]))
    return messages


def _places(feed: Feed, replica: int, send: SendHidden) -> Iterator[tuple[int, IntArray]]:
    """(student replica, places in the split's tokens of the rows it gets), in order of sending."""
    plan = feed.plan(send.step).micro_batches[send.micro_batch]
    for (source, target), windows in sorted(plan.routes.items()):
        if source == replica:
            yield target, np.concatenate([np.arange(*feed.split.windows[w]) for w in windows])
