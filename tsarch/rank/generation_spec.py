"""What all texts of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsarch.blueprint import Blueprint
from tsarch.pair.writing import WritingSpec
from tsarch.specs import PredictionSpec
from tsarch.tasks.decoding import DecodingSpec
from tsarch.topology import Stage


@dataclass(frozen=True)
class GenerationSpec:
    """Plain numbers, see `DecodingConfig`."""

    writing: WritingSpec
    """`batch` is of all replicas together."""
    student_max_tokens: int
    teacher_width: int
    """Of a teacher's hidden states."""
    predictions: Mapping[Stage, PredictionSpec]
    """Of all stages."""

    @classmethod
    def of(
        cls, blueprint: Blueprint, end_token: int, predictions: Mapping[Stage, PredictionSpec]
    ) -> GenerationSpec:
        """Those of a run whose texts end with `end_token`."""
        return cls(
            writing_spec(blueprint, end_token),
            blueprint.window_tokens,
            blueprint.teacher_width,
            predictions,
        )


def writing_spec(blueprint: Blueprint, end_token: int) -> WritingSpec:
    """How texts are written in a run whose texts end with `end_token`."""
    own = blueprint.decoding
    decoding = DecodingSpec(
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
    shared = decoding, own.cache, own.batch, blueprint.seed
    if own.speculative is None:
        return WritingSpec(*shared, exact=own.exact)
    num_proposed = -1 if own.speculative.tokens == "auto" else own.speculative.tokens
    return WritingSpec(*shared, num_proposed, own.exact, tuple(own.speculative.sources))
