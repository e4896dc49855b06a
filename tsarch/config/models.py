"""The two models, their losses and their table: sections `teacher`, `student`, `loss`,
`distillation`, `embedding`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tsarch.config.base import (
    MOST,
    Divergence,
    Fraction,
    HiddenLoss,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)

_LayerPair = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]
"""A layer of the student and one of the teacher."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the backbone is frozen, small matrices beside its linear
    layers train. Head, bridge and projections train as ever, the table as `embedding.frozen` says.
    """

    rank: PositiveInt = 8
    """Rank of the adapters."""
    alpha: PositiveFloat = 16.0
    """Adapters are multiplied by `alpha / rank`."""
    dropout: Probability = 0.0
    """Dropout probability of an adapter's input."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the linear layers that get adapters, such as `query`, or `attention.self.query` for
    the end of a longer name. Default: those that `peft` has for the architecture."""


class AttentionConfig(Section):
    """How attention is computed on CPUs, where torch's fused attention is not always the fastest
    way."""

    products_up_to: NonNegativeInt | None = None
    """Most tokens of an input whose attention is two plain matrix products around a softmax;
    longer ones have torch's fused attention. 0: all of them. Default: measured when a run starts,
    kept in the cache for this machine, and the same on all ranks and on `--resume`."""


class BackboneConfig(Section):
    """A Hugging Face encoder: pretrained, or random from a config."""

    model: str | None = None
    """Hub name, local folder, or `package:NAME/FOLDER` inside an installed Python package."""
    config: dict[str, Any] | None = None
    """Hugging Face config (with `model_type`) for random weights, in place of `model`. With
    `tie_word_embeddings: false` in it a model that generates has an output matrix of its own;
    otherwise the tied table is its output."""
    max_tokens: Annotated[int, Field(ge=4, le=MOST)] = 512
    """Tokens of one input, special tokens included: a context."""
    dropout: Probability = 0.1
    """Dropout probability of hidden layers and of the head. Other noise of an architecture
    (`activation_dropout`, a router's jitter) keeps its own value up to this one, so 0 means none.
    No layer is ever dropped as a whole (`layerdrop`)."""
    attention_dropout: Probability = 0.0
    """Dropout probability of attention weights. 0 lets PyTorch use its fast attention."""
    freeze: Literal["none", "all_but_top_k", "all_but_head"] = "none"
    """Which parameters stay as they are (the bridge always trains). The head of a model that
    generates is its output matrix, if it has one of its own; else nothing is left to train."""
    top_k: NonNegativeInt = 0
    """Number of layers from the top that train under `freeze: all_but_top_k`."""
    lora: LoraConfig | None = None
    """Low-rank adapters in a frozen backbone, in place of `freeze`; `{}` takes the defaults."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the backbone's layers for the backward pass and compute each layer
    twice: about a third more compute, activation memory of one layer."""
    offload_activations: bool = False
    """Keep those inputs in pinned host memory until the backward pass, for long documents: a GPU
    then has the activations of one layer, at two copies a layer and step. Needs
    `activation_checkpointing`; on CPUs they stay where they are. `tsarch plan` counts them on the
    device all the same."""
    deepspeed: dict[str, Any] = Field(default={})
    """DeepSpeed settings of this stage, merged over ours; refused where another key sets the same.
    Without effect on `topology.runner: local`."""

    @field_validator("offload_activations")
    @classmethod
    def _inputs_are_kept(cls, offload: bool, info: ValidationInfo) -> bool:
        if offload and not info.data.get("activation_checkpointing", True):
            raise ValueError("needs activation_checkpointing")
        return offload

    @field_validator("lora")
    @classmethod
    def _lora_or_freeze(cls, lora: LoraConfig | None, info: ValidationInfo) -> LoraConfig | None:
        if lora is not None and info.data.get("freeze", "none") != "none":
            raise ValueError("lora freezes the whole backbone, so `freeze` must stay `none`")
        return lora


class TeacherConfig(BackboneConfig):
    """The larger model; it reads whole documents, up to `max_tokens` at a time."""

    boundary_layer: PositiveInt | None = None
    """`task.query: student`: the layer before which the states leave the teacher, counted from 0.
    The student goes on with them in the layers from there on, where layers of the same model were
    pretrained to; its layers below read what is asked, by themselves (Cao et al. 2020, "DeFormer").
    The teacher's own loss stays at its top. Default: the last states leave, and are added to the
    student's embeddings."""
    first_position: NonNegativeInt = 0
    """With `boundary_layer`: the position of a context's first token, where the model has learned
    positions. Where the student reads what is asked, and the context behind it, as many tokens as
    the former mostly has: else both have the same positions, and the layers from the boundary on,
    which were pretrained on texts behind one another, take them for one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either `model` or `config`")
        return self


class DraftingConfig(Section):
    """A student that proposes the teacher's next tokens (`student.role: drafter`)."""

    layers: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """States that it is fed with, beside the teacher's last ones: those after so many of its
    layers. Default: after half of them and one more, and after all but three."""
    steps: Annotated[int, Field(ge=1, le=8)] = 3
    """Tokens that it proposes one after another while it trains, the later ones upon states of its
    own."""
    vocabulary: PositiveInt = 8192
    """Tokens that it chooses from: those that the training split has most often, in targets above
    all."""


class ScorerConfig(Section):
    """What finds the parts of a text that a question is about, by the teacher's states of it
    ([long texts](read-once.md#long-texts))."""

    dimensions: PositiveInt = 64
    """Numbers in which a question's words and states are compared."""
    weight: PositiveFloat = 0.1
    """Weight of its loss, whose gradient reaches nothing else."""


class StudentConfig(BackboneConfig):
    """The smaller model; it reads windows of at most `max_tokens`, fed by the teacher."""

    role: Literal["reader", "drafter"] = "reader"
    """`reader`: it answers. `drafter`: it proposes what the teacher writes next, which writes the
    same text sooner ([a drafter](generation.md#a-drafter)), and answers nothing itself."""
    drafting: DraftingConfig = DraftingConfig()
    """How a drafter is fed and what it proposes."""

    max_tokens: Annotated[int, Field(ge=4, le=MOST)] = 128
    """Tokens of one student window. It is a slice of a context: the tokenizer's special tokens
    (`[CLS]` and `[SEP]`) don't stand around it, but for the start and the question of `qa`, and
    the label's token of `classification` and `relation`, which count."""
    layers: Literal["auto"] | list[NonNegativeInt] | None = None
    """Layers of the teacher that start the student, counted from 0 and in this order, in place of
    `model` and `config`; without a teacher layers of `model`. `auto`: the run chooses `num_layers`
    of them before it trains, by leaving out, one by one, the layer that is missed least by a
    readout of the first batches' windows; the log says which, and the run's config has them."""
    boundary_layer: NonNegativeInt | None = None
    """Layer of the student, counted from 0, before which the teacher's states enter it, with
    `teacher.boundary_layer`. Default: of `layers` the first that isn't below the teacher's."""
    num_layers: PositiveInt | None = None
    """How many layers `layers: auto` takes. Default: the largest of `depths`."""
    depths: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Numbers of layers that the student works with: its first so many. It has as many layers as
    the largest says, and learns at all depths in every step, from one pass: each has a head of its
    own, losses are the mean. Which one answers is chosen later (`--depth`). Default: all layers."""
    teacher_dropout: Fraction = 0.0
    """Probability that a window's bridge term is dropped in training, so that the student
    learns to work alone too."""
    alone_weight: NonNegativeFloat = 0.0
    """Weight of a second pass over every window without the bridge term. 0: no second pass."""
    fed_weight: PositiveFloat = 1.0
    """Weight of passes with the bridge term. With less than `alone_weight` the student's layers and
    head learn chiefly to work alone; bridge and shortcut, whose only gradient is that of fed
    passes, learn as fast as ever with AdamW. `joint`: what flows to the teacher is weighed too."""
    fed_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Each window is read once, not twice: of a step's windows this share, drawn at random, with
    the bridge term, the others alone. A pass weighs as much more as it is rarer, so the expected
    loss is that of both passes, and the student's work half. Where it is
    `fed_weight / (fed_weight + alone_weight)` all passes weigh the same. Needs `alone_weight`.
    Default: each window is read both ways."""
    no_teacher: Literal["zero", "learned"] = "zero"
    """What stands in for a dropped bridge term: nothing, or a learned vector."""
    bridge_scale: NonNegativeFloat = 1.0
    """What the bridge starts as: the identity (an orthogonal map, if widths differ) times this.
    Hidden states may be several times as long as embeddings (BERTs: five times), and at 1 then
    drown them. At 0 a fed window starts as one without the teacher."""
    bridge_multiplier: PositiveFloat = 1.0
    """What the bridge makes is multiplied by this, and its map starts as much larger. AdamW's steps
    are as long whatever they lead to: of a map of hidden states a few of them move a fed token as
    far as its embedding is long, and drown it. With less than 1 the bridge learns as much slower
    than the layers (a layer's multiplier, Yang et al. 2022, "Tensor Programs V")."""
    shortcut: bool = False
    """Add what a head of its own, which starts as the teacher's, reads from the teacher's hidden
    states to the student's prediction: its layers and head then needn't carry what the teacher
    knows."""

    scorer: ScorerConfig | None = None
    """`qa` with `task.query: student`: have the student learn beside its answers which parts of a
    text to read, `evaluation.windows` of them, whatever the text's length. `{}` takes the defaults.
    Default: it reads all of it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [n for n in ("model", "config", "layers") if getattr(self, n) is not None]
        if len(given) != 1 and given != ["model", "layers"]:
            raise ValueError(f"give one of `model`, `config`, `layers` (given: {given or 'none'})")
        if isinstance(self.layers, list) and (
            not self.layers or len(set(self.layers)) < len(self.layers)
        ):
            raise ValueError("`layers` must name at least one layer, and each only once")
        return self

    @model_validator(mode="after")
    def _so_many_layers(self) -> Self:
        if self.layers == "auto" and self.num_layers is None and self.depths is None:
            raise ValueError("`layers: auto` needs `num_layers`")
        chosen = len(self.layers) if isinstance(self.layers, list) else self.num_layers
        if self.num_layers is not None and (self.layers is None or chosen != self.num_layers):
            raise ValueError("`num_layers` is for `layers: auto`")
        return self

    @property
    def taken_layers(self) -> tuple[int, ...] | None:
        """Layers that it is made of, of whatever model; None: all. As long as they are open the
        first ones."""
        if isinstance(self.layers, list):
            return tuple(self.layers)
        most = None if self.depths is None else self.depths[-1]
        number = most or self.num_layers
        return None if number is None else tuple(range(number))

    @model_validator(mode="after")
    def _depths_there(self) -> Self:
        if self.depths is None:
            return self
        if sorted(set(self.depths)) != self.depths:
            raise ValueError("`depths` must rise, each named once")
        number = len(self.layers) if isinstance(self.layers, list) else self.num_layers
        if number is not None and self.depths[-1] > number:
            raise ValueError(f"`depths` has {self.depths[-1]}, the student {number} layers")
        if number is not None and self.depths[-1] < number:
            raise ValueError(f"the student has {number} layers, `depths` only {self.depths[-1]}")
        return self

    @model_validator(mode="after")
    def _share_of_two_passes(self) -> Self:
        if self.fed_share is not None and self.alone_weight == 0:
            raise ValueError(
                "`fed_share` needs an `alone_weight` above 0: other windows are read alone"
            )
        return self


class DistillationConfig(Section):
    """Drawing the student to the teacher: to its predictions on the window, at a temperature, to
    its hidden states, and to the relations between tokens in its attention."""

    from_run: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Folder of a finished run of the same task whose teacher, which reads what is asked, gives the
    predictions in place of this run's own; of several folders the mean of their probabilities.
    They are computed once for the training split and kept in the cache. Relative to the current
    folder. Not for tasks that write texts."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0 switches it off. (Hinton et al. 2015, section 2)."""
    temperature: PositiveFloat = 2.0
    """Temperature; the term is multiplied by its square to keep gradients comparable."""
    passes: Literal["all", "fed", "alone"] = "all"
    """Which windows the term is for: all, or only those with or without the bridge term."""
    divergence: Divergence = "kl"
    """What is between the two predictions: `kl`, KL(teacher ‖ student); `reverse_kl`, KL(student ‖
    teacher) (Gu et al. 2024); `jensen_shannon` (Agarwal et al. 2024)."""
    hidden_weight: NonNegativeFloat = 0.0
    """Weight of a term that draws the student's last hidden states, through a linear map, to the
    teacher's at the labelled positions; 0 switches it off. A fed window reads those very states:
    with `passes: alone` the term is for windows that don't."""
    hidden_loss: HiddenLoss = "cosine"
    """Between hidden states: 1 − cosine (Sanh et al. 2019), or the mean squared difference (Jiao et
    al. 2020)."""
    hidden_layers: Literal["last", "uniform"] | Annotated[list[_LayerPair], Field(min_length=1)] = (
        "last"
    )
    """Whose states are matched, each pair through a map of its own: `last`, the last layers';
    `uniform`, those of every student layer, with the teacher's layer that is as far up (Sun et al.
    2019, "Patient Knowledge Distillation"); or pairs [student layer, teacher layer], counted from
    0. The mean over the pairs. States of other layers than the last travel too."""
    relation_weight: NonNegativeFloat = 0.0
    """Weight of a term that draws the relations between a window's tokens in the student's last
    attention to those in the teacher's (Wang et al. 2020, "MiniLM"): what they are made of travels
    beside the hidden states. 0 switches it off."""
    relations: Annotated[
        list[Literal["values", "queries", "keys", "attention"]], Field(min_length=1)
    ] = Field(default=["values"])
    """Which relations: between values, queries or keys of two tokens, or between queries and keys
    (`attention`); the mean over them. MiniLM: values and attention; MiniLMv2: the first three."""
    relation_heads: PositiveInt | None = None
    """Heads into which these are split anew, the same number in both models (Wang et al. 2021,
    "MiniLMv2"): both widths must be multiples of it. Default: the teacher's attention heads."""
    match_passes: Literal["all", "fed", "alone"] | None = None
    """Which windows the terms of hidden states and relations are for. Default: as `passes`."""

    @field_validator("relations")
    @classmethod
    def _each_once(cls, relations: list[str]) -> list[str]:
        if len(set(relations)) < len(relations):
            raise ValueError("names a relation twice")
        return relations

    @property
    def is_used(self) -> bool:
        """Whether there is a term of it."""
        return self.weight > 0 or self.hidden_weight > 0 or self.relation_weight > 0

    def check_passes(self, student: StudentConfig) -> None:
        """See whether the student reads windows as the terms want them.

        Raises:
            ValueError: a term is for passes that no window has.
        """
        predictions = self.passes if self.weight > 0 else None
        matched = self.hidden_weight > 0 or self.relation_weight > 0
        own = (self.match_passes or self.passes) if matched else None
        key = "match_passes" if own == self.match_passes is not None else "passes"
        for name, wanted in (("passes", predictions), (key, own)):
            if wanted == "alone" and student.alone_weight == student.teacher_dropout == 0:
                what = "no window is read without the teacher: set student.alone_weight above 0"
            elif wanted == "fed" and student.teacher_dropout == 1:
                what = "no window is read with the teacher: set student.teacher_dropout below 1"
            else:
                continue
            raise ValueError(f"distillation.{name} is {wanted}, but {what}")


class LossConfig(Section):
    """Losses of labels, where some are much rarer than others (`ner`, `classification`,
    `relation`)."""

    label_weights: (
        Literal["balanced", "balanced_sqrt"]
        | Annotated[dict[str, PositiveFloat], Field(min_length=1)]
        | None
    ) = None
    """Weight of every label in the loss. `balanced`: in inverse proportion to how often train has
    the label, 1 on average over its positions (as scikit-learn's); `balanced_sqrt`: the root of
    that, milder; or label → weight, 1 for those not named (`ner`: `O`, a tag, or an entity type
    for both its tags). Losses stay means over labelled positions. Default: all count the same."""
    focal_gamma: NonNegativeFloat = 0.0
    """γ of the focal loss (Lin et al. 2017): a position counts by (1 − p)^γ, p being what its label
    is given already. 0: all count the same."""


class EmbeddingConfig(Section):
    """The tied embedding table, replicated on every rank of both stages."""

    init: Literal["teacher", "student"] = "teacher"
    """Whose pretrained table it starts from."""
    frozen: bool = False
    """Keep the table as it is."""
    project: bool = True
    """Allow a learned projection where a stage's embedding width differs from the table's."""
    exchange: Literal["auto", "rows", "dense"] = "auto"
    """What ranks exchange: the gradient rows that the step touched, the whole gradient, or what is
    less (rows, unless the step touches the whole vocabulary)."""
    shard_optimizer: bool = False
    """Keep the table's optimizer state sharded over all ranks of both stages; the table itself
    stays replicated. Saves memory (AdamW: 8 bytes a value), costs an exchange of updated rows."""
    check_every: NonNegativeInt = 50
    """Steps between two checks that all replicas are bitwise equal. 0: only at the end."""
