"""Hidden states that are under way at a checkpoint, kept by place in the data.

In `overlapped` the student is one batch behind, and the weights that made the states have moved on,
so the states themselves are saved. By place, not by message: another topology cuts the same states
into other messages (`data/routes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tsarch.checkpoint.host_copies import Keep
from tsarch.data.feed import Feed
from tsarch.records import Message
from tsarch.schedule.instruction import SendHidden
from tsarch.topology import Stage

Sent = dict[tuple[Stage, int], tuple[int, list[tuple[Message, Tensor]]]]
"""(receiving stage, micro-batch) → the step that was sent last, and its messages with their
states."""


def keep_states(feed: Feed, rank: int, sent: Sent, sends: Sequence[SendHidden], keep: Keep) -> None:
    """Hand the states of `sends` that `rank` has sent to `keep`, with their places."""
    places, states = [], []
    for send in sends:
        step, messages = sent[send.peer, send.micro_batch]
        assert step == send.step, "states of another step were sent since"
        routes = feed.routes_from(send.step, send.micro_batch, rank, send.peer)
        assert [r.target for r in routes] == [message.target for message, _ in messages]
        places += [route.places for route in routes]
        states += [own for _, own in messages]
    if states:
        keep("places", torch.from_numpy(np.concatenate(places)))
        keep("states", torch.cat(states))


def saved_messages(
    feed: Feed, rank: int, saved: Sequence[Mapping[str, Tensor]], send: SendHidden
) -> list[tuple[Message, Tensor]]:
    """The messages of `send` from `rank` again, of states that any ranks have kept."""
    places = np.concatenate([share["places"].numpy() for share in saved if "places" in share])
    states = torch.cat([share["states"] for share in saved if "states" in share])
    order = np.argsort(places, kind="stable")
    messages = []
    for route in feed.routes_from(send.step, send.micro_batch, rank, send.peer):
        found = order[np.searchsorted(places[order], route.places)]
        assert np.array_equal(places[found], route.places), "states of another batch were saved"
        message = route.message(send.step, send.micro_batch, int(states.shape[1]))
        messages.append((message, states[torch.from_numpy(found)]))
    return messages
