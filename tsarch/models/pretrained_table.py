"""A pretrained model's embedding table by itself."""

from __future__ import annotations

import numpy as np
from transformers import PretrainedConfig

from tsarch.models.loading import file_names
from tsarch.models.skeleton import make_skeleton
from tsarch.models.weight_files import open_checkpoint
from tsarch.records import FloatArray


def pretrained_table(config: PretrainedConfig, model: str) -> FloatArray:
    """(vocabulary, width) rows of the table in a model's files; nothing else is read.

    Raises:
        UserError: there are no files that can be read.
    """
    skeleton, checkpoint = make_skeleton(config, None), open_checkpoint(model)
    key = file_names(skeleton.source, checkpoint)[skeleton.origin(skeleton.table)]
    with checkpoint.open() as read:
        table: FloatArray = read(key).float().numpy().astype(np.float32, copy=True)
    return table
