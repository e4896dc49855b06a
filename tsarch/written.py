"""What ranks write: texts, and what it took to write them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Passes:
    """What it took to write texts, token by token or with proposed tokens."""

    num_texts: int = 0
    num_passes: int = 0
    """Passes of the models over batches of texts, those over prompts left out."""
    num_read: int = 0
    """Texts in all of them together."""
    num_tokens: int = 0
    """Chosen, the ends of texts included."""
    num_proposed: int = 0
    num_right: int = 0
    """Of the proposed tokens."""
    num_declined: int = 0
    """Passes for which there were proposals, but to check them wasn't worth it."""
    prompt_s: float = 0.0
    """Reading the prompts and choosing each first token."""
    proposing_s: float = 0.0
    checking_s: float = 0.0
    """In the models."""
    choosing_s: float = 0.0
    plain_s: float = 0.0
    """What the models would have taken one token at a time, from passes of one token."""

    def plus(self, **counts: float) -> Passes:
        """With further counts and times."""
        return replace(self, **{name: getattr(self, name) + own for name, own in counts.items()})

    def __add__(self, other: Passes) -> Passes:
        return self.plus(**vars(other))

    @property
    def tokens_a_pass(self) -> float:
        """Of a text, its first one left out, which comes with the prompt's pass."""
        return (self.num_tokens - self.num_texts) / max(self.num_read, 1)

    @property
    def speed(self) -> float:
        """Against one token at a time: of all but the prompts' passes."""
        rest = self.proposing_s + self.choosing_s
        return (self.plain_s + rest) / max(self.checking_s + rest, 1e-9)


Texts = dict[int, list[int]]
"""Context → tokens that were generated for it."""


@dataclass(frozen=True)
class Generated:
    """Texts of a rank, or of all."""

    texts: Texts
    passes: Passes
    """Nothing is counted where ranks write together."""
