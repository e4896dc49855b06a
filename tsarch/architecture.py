"""What a stage's backbone is: a Hugging Face architecture, read when it is first asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsarch.data.tokenizer import resolve_model_path
from tsarch.topology import Stage

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tsarch.models.measures import Measures
    from tsarch.models.output_head import OutputSpec

SAVED_OUTPUT = "tsarch_output"
"""Key of a saved config: what `Architecture.output` was."""


@dataclass(frozen=True)
class Architecture:
    """What a stage's backbone is, and where its weights come from."""

    section: Stage
    """The stage whose section of the config says so: with `student.layers` the teacher."""
    model: str | None
    """Hub name, folder or `package:` path of the weights; None: random ones."""
    values: Mapping[str, Any] | None
    """Hugging Face config, in place of `model`."""
    layers: tuple[int, ...] | None
    """Layers that are taken; None: all."""
    dropout: float
    """Of hidden layers and of the head."""
    attention_dropout: float

    @cached_property
    def config(self) -> PretrainedConfig:
        """Hugging Face config of the whole model, with the dropout here.

        Raises:
            Exception: it can't be read (each architecture has errors of its own).
        """
        from tsarch.models.backbone import backbone_config

        values = None if self.values is None else dict(self.values)
        return backbone_config(self.path, values, self.dropout, self.attention_dropout)

    @cached_property
    def built(self) -> PretrainedConfig:
        """Hugging Face config of what is built: of `layers` alone."""
        from tsarch.models.skeleton import shrink_config

        own = copy.deepcopy(self.config)
        if self.layers is not None:
            shrink_config(own, self.layers)
        return own

    @cached_property
    def output(self) -> OutputSpec:
        """How it gives logits of the vocabulary. One from `config` has a projection of its own if
        `tie_word_embeddings: false` is written there; otherwise the tied table is its projection.
        Of pretrained weights the files decide.

        Raises:
            Exception: it gives none, or its files can't be read.
        """
        from tsarch.models.output_head import OutputSpec, output_spec
        from tsarch.models.weight_files import peek_checkpoint

        if self.values is None:
            assert self.path is not None
            return output_spec(self.config, None, peek_checkpoint(self.path))
        if (saved := self.values.get(SAVED_OUTPUT)) is not None:
            return OutputSpec(**saved)
        tied = copy.deepcopy(self.config)
        tied.tie_word_embeddings = True
        own = True if self.values.get("tie_word_embeddings") is False else None
        return output_spec(tied, own, None)

    @property
    def path(self) -> str | None:
        """Folder or hub name of the weights on this host; None: random ones.

        Raises:
            UserError: the package is not installed.
        """
        return None if self.model is None else resolve_model_path(self.model)

    @cached_property
    def measures(self) -> Measures:
        """Its sizes; those that the config names if it can't be built, which preflight tells."""
        from tsarch.models.measures import Measures, measure

        try:
            return measure(self.config)
        except Exception:  # each architecture has errors of its own
            width = int(self.config.hidden_size)
            return Measures(int(self.config.vocab_size), width, width)

    @property
    def vocabulary(self) -> int:
        """Rows of its own table."""
        return self.measures.vocabulary

    @property
    def hidden_width(self) -> int:
        """Width of its hidden states."""
        return self.measures.hidden_width

    @property
    def embedding_width(self) -> int:
        """Width of its embeddings (ALBERT and ELECTRA have one of their own)."""
        return self.measures.embedding_width

    @property
    def is_seq2seq(self) -> bool:
        """Whether it is an encoder with a decoder."""
        return bool(self.config.is_encoder_decoder)

    @property
    def is_causal(self) -> bool:
        """Whether it sees earlier tokens only."""
        from tsarch.models.causality import is_causal

        return is_causal(self.config)

    @property
    def name(self) -> Any:
        """What a summary calls it."""
        if self.layers is not None:
            return {f"layers_of_{self.section}": list(self.layers)}
        return self.model or self.values

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: another process reads it if it needs to."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
