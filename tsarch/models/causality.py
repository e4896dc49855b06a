"""Which architectures see earlier tokens only."""

from __future__ import annotations

from typing import Any


def is_causal(hf: Any) -> bool:
    """Whether a model sees earlier tokens only. Architectures that also have a masked language
    model (BERT's kin) do so as decoders alone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if hf.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(hf, "is_decoder", False))
    return hf.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
