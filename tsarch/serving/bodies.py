"""Bodies of requests and responses, as the OpenAPI document tells them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from tsarch.config import Mode, SpanEnds
from tsarch.inputs.rows import Gap, PartlyRead, TextEntity
from tsarch.prediction.batch import KINDS
from tsarch.prediction.unread import OnUnread
from tsarch.serving.engine import ServiceError
from tsarch.serving.limits import Limits
from tsarch.tasks.answers import (
    Entity,
    GeneratedText,
    Label,
    NoAnswer,
    Relation,
    Relevance,
    SpanAnswer,
)


class PredictRequest(BaseModel):
    """Inputs, and who shall answer them."""

    model_config = ConfigDict(extra="forbid")
    inputs: list[str | list[str] | dict[str, Any]] = Field(
        description="Each a text, a list of words (`ner`), or a row of the task: column → value. "
        "Rows of one `doc_id` are read together, as a document is.",
        min_length=1,
    )
    run: str | None = Field(None, description="Name of a run; may be absent where there is one.")
    mode: Mode | None = Field(None, description="Who predicts. Absent: the run's default.")
    on_unread: OnUnread = Field(
        "error",
        description="What is done about an input that can't be read whole. `error`: the request "
        "is refused (422). `mark`: its answer is a `PartlyRead`, which says what wasn't read. "
        "`parts` (`translation`, `summarization`): its source is read in parts, whose texts are "
        "put together.",
    )


def _answer(kind: type) -> Any:
    """The model of a kind of answer; floats that are no numbers of JSON are null."""
    hints = get_type_hints(kind)
    own: dict[str, Any] = {
        field.name: (float | None if hints[field.name] is float else hints[field.name], ...)
        for field in fields(kind)
    }
    own["kind"] = (Literal[KINDS[kind.__name__]], ...)
    return create_model(kind.__name__, __doc__=kind.__doc__, **own)


if TYPE_CHECKING:
    Answer = Any
else:
    _LABELS = (Label, Relevance, Relation)
    _KINDS = (Entity, TextEntity, *_LABELS, SpanAnswer, NoAnswer, GeneratedText)
    _One = Union[tuple(map(_answer, _KINDS))]  # noqa: UP007 - of a list
    _Whole = _One | list[_One]
    _Gap = create_model("Gap", __doc__=Gap.__doc__, **get_type_hints(Gap))
    _Partly = create_model(
        "PartlyRead",
        __doc__=PartlyRead.__doc__,
        kind=(Literal["partly_read"], ...),
        answer=(_Whole, ...),
        unread=(list[_Gap], ...),
    )
    Answer = Annotated[
        _Whole | _Partly,
        Field(
            description="`ner`: the entities, in order; all other tasks: one answer. With "
            "`on_unread: mark` either may be in a `PartlyRead`."
        ),
    ]


class PredictResponse(BaseModel):
    """Answers in the order of the inputs."""

    run: str
    version: str = Field(description="Of the run; changes with its weights.")
    mode: Mode
    answers: list[Answer]
    seconds: float = Field(description="From the request to the answer, in the server.")


class Run(BaseModel):
    """A run that is served."""

    name: str
    task: str
    labels: list[str] = Field(description="That answers can have; none where they are texts.")
    modes: list[Mode]
    default_mode: Mode
    version: str
    examples: list[Any] = Field(description="A few inputs to try.")
    columns: dict[str, str] = Field(description="The task's name of a column → that in rows.")
    span_ends: SpanEnds = Field(
        description="What ends `head` and `tail`: the next word, or its last."
    )


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"] = "ok"
    runs: dict[str, str] = Field(description="Name of each run → its version.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="What is wrong, and what to do about it.")


def check_inputs(inputs: list[Any], limits: Limits) -> None:
    """Check what needs no model.

    Raises:
        ServiceError: 413: too much; 422: what no text or number of JSON may be.
    """
    if len(inputs) > limits.inputs:
        what = f"There are {len(inputs):,} inputs, of which {limits.inputs:,} are read at most."
        raise ServiceError(413, f"{what} Split them over several requests.")
    characters = 0
    for number, own in enumerate(inputs):
        where = f"inputs[{number}]"
        characters += _num_characters(own, where, limits.depth)
        if characters > limits.characters:
            what = f"The texts have more than {limits.characters:,} characters."
            raise ServiceError(413, f"{what} Split them over several requests.")


def _num_characters(value: Any, where: str, depth: int) -> int:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ServiceError(422, f"{where}: has half a surrogate pair (\\ud800 … \\udfff).")
        return len(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ServiceError(422, f"{where}: has {value}, which is no number of JSON.")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ServiceError(422, f"{where}: has an integer of more than 64 bits.")
    parts = value.items() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if parts and not depth:
        raise ServiceError(422, f"{where}: has too many lists or objects in one another.")
    return 1 + sum(
        _num_characters(own, where, depth - 1)
        for part in parts
        for own in (part if isinstance(part, tuple) else (part,))
    )
