"""What all sections of the config share: how strict they are, and kinds of numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST = 2**31 - 1  # what every library here takes as a whole number
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Mode = Literal["teacher", "student", "joint", "student_alone"]
ProposalSource = Literal["prompt", "drafter"]
"""Where proposed tokens come from."""
Divergence = Literal["kl", "reverse_kl", "jensen_shannon"]
HiddenLoss = Literal["cosine", "mse"]
MODES: tuple[Mode, ...] = ("teacher", "student", "joint", "student_alone")
STUDENT_MODES: tuple[Mode, ...] = ("student", "student_alone")
"""Those in which the student answers by itself: all, where the teacher doesn't read what is asked.
"""
Query = Literal["both", "student"]
"""Who reads what is asked about a text."""
SpanEnds = Literal["exclusive", "inclusive"]
"""What the end of a span of words names: the word after it, or its last."""


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
