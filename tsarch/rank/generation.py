"""A rank's part in generating the texts of a split."""

from __future__ import annotations

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.prepare import Prepared
from tsarch.rank.building import Parts
from tsarch.rank.generate import GenerationSpec, Generator, chosen_contexts
from tsarch.rank.wiring import Wiring
from tsarch.records import Texts
from tsarch.tasks.decoding import DecodingSpec
from tsarch.topology import Stage


def generate(
    blueprint: Blueprint,
    prepared: Prepared,
    wiring: Wiring,
    parts: Parts,
    split: str,
    mode: Mode,
    joint_weight: float,
) -> Texts:
    """Generate the targets of a split (at most `decoding.max_texts`) as `mode` predicts them; all
    ranks call it, those with a student give their texts."""
    parts.train(False)
    assert prepared.end_token is not None
    generator = Generator(
        parts.stages,
        parts.link,
        parts.tied,
        wiring.tied_group,
        wiring.topology,
        _spec(blueprint, prepared.end_token, parts.num_outputs),
        mode,
        joint_weight,
    )
    own = prepared.splits[split]
    return generator.run(own, chosen_contexts(own, blueprint.decoding.max_texts))


def _spec(blueprint: Blueprint, end_token: int, num_outputs: int) -> GenerationSpec:
    own, teacher = blueprint.decoding, blueprint.stages[Stage.TEACHER].architecture
    return GenerationSpec(
        DecodingSpec(
            num_beams=own.num_beams,
            length_penalty=own.length_penalty,
            sample=own.sample,
            temperature=own.temperature,
            top_k=own.top_k,
            top_p=own.top_p,
            no_repeat_ngram=own.no_repeat_ngram,
            max_tokens=blueprint.task.max_target_tokens,
            end=end_token,
        ),
        own.batch,
        own.cache,
        blueprint.stages[Stage.STUDENT].max_tokens,
        teacher.hidden_width,
        num_outputs,
        blueprint.seed,
    )
