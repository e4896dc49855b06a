"""What all texts of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsarch.blueprint import Blueprint
from tsarch.specs import PredictionSpec
from tsarch.tasks.decoding import DecodingSpec
from tsarch.topology import Stage


@dataclass(frozen=True)
class GenerationSpec:
    """Plain numbers, see `DecodingConfig`."""

    decoding: DecodingSpec
    batch: int
    """Texts at a time, over all replicas."""
    use_cache: bool
    student_max_tokens: int
    teacher_width: int
    """Of a teacher's hidden states."""
    predictions: Mapping[Stage, PredictionSpec]
    """Of all stages."""
    seed: int

    @classmethod
    def of(
        cls, blueprint: Blueprint, end_token: int, predictions: Mapping[Stage, PredictionSpec]
    ) -> GenerationSpec:
        """Those of a run whose texts end with `end_token`."""
        own = blueprint.decoding
        return cls(
            decoding_spec(blueprint, end_token),
            own.batch,
            own.cache,
            blueprint.window_tokens,
            blueprint.teacher_width,
            predictions,
            blueprint.seed,
        )


def decoding_spec(blueprint: Blueprint, end_token: int) -> DecodingSpec:
    """How the next token is chosen in a run whose texts end with `end_token`."""
    own = blueprint.decoding
    return DecodingSpec(
        num_beams=own.num_beams,
        length_penalty=own.length_penalty,
        sample=own.sample,
        temperature=own.temperature,
        top_k=own.top_k,
        top_p=own.top_p,
        no_repeat_ngram=own.no_repeat_ngram,
        max_tokens=blueprint.task.max_target_tokens,
        end=end_token,
    )
