"""What ranks that share sequences do together, by DeepSpeed's own exchange of heads for tokens."""

from __future__ import annotations

from torch import Tensor

from tsarch.models.sequence_parallel import Local, Spread
from tsarch.parallel.groups import ProcessGroup
from tsarch.stage.whole_contexts import Gather


def spread_over(group: ProcessGroup) -> Spread:
    """`Spread` over a group of the stage's world (`new_sequence_group`)."""
    from deepspeed.sequence.layer import DistributedAttention

    attention = DistributedAttention(_of_some_heads, group, scatter_idx=2, gather_idx=1)

    def spread(local: Local, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found: Tensor = attention(query, key, value, 0, None, local)
        return found

    return spread


def gather_over(group: ProcessGroup) -> Gather:
    """`Gather` over such a group."""
    from deepspeed.sequence.layer import _SeqAllToAll

    def gather(own: Tensor) -> Tensor:
        # A copy for each rank, as if they were heads.
        copies = own.reshape(*own.shape[:2], 1, -1).expand(-1, -1, group.size(), -1)
        found: Tensor = _SeqAllToAll.apply(group, copies, 2, 1, 0)
        return found.view(1, found.shape[1], *own.shape[2:])

    return gather


def _of_some_heads(query: Tensor, key: Tensor, value: Tensor, local: Local) -> Tensor:
    return local(query, key, value)
