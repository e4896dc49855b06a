"""Dropout under whichever names an architecture has for it.

Fields of a config are told by their names, since every architecture has its own: `dropout_rate` of
T5, `resid_pdrop` and `embd_pdrop` of GPT-2, `activation_dropout` and `encoder_layerdrop` of BART.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PretrainedConfig

from tsarch.errors import one_line

_HIDDEN = re.compile(
    r"((hidden|mlp|resid|residual|emb|embd|embed|embedding)_)?(dropout|pdrop)(_(prob|rate|p))?"
)
"""Fields of hidden layers: of embeddings and of what is added to the residual stream."""
_ATTENTION = re.compile(r".*(attention|attn).*drop.*")
_LAYER = re.compile(r".*(layer_?drop|drop_?path|path_?dropout).*")
_NOISE = re.compile(r".*(drop|jitter).*")
_THRESHOLDS = {("phimoe", "router_jitter_noise")}
"""(model type, field) that sounds like noise, but is a bound of the router in evaluation too."""


def set_dropout(config: PretrainedConfig, dropout: float, attention_dropout: float) -> None:
    """Set the dropout probabilities of a config and of those inside it.

    Hidden layers get `dropout`, attention weights `attention_dropout`. No layer is dropped as a
    whole: ranks of a stage that drop different ones would wait for each other under ZeRO 3. All
    else that is random while training (activations inside a layer, a router's jitter) keeps the
    architecture's own value, up to `dropout`.

    Raises:
        ValueError: the architecture can't take a probability.
    """
    for owner, name, old in _probabilities(config):
        if _LAYER.fullmatch(name):
            new = 0.0
        elif _ATTENTION.fullmatch(name):
            new = attention_dropout
        elif _HIDDEN.fullmatch(name):
            new = dropout
        else:
            new = min(float(old), dropout)
        if new != old:
            _put(owner, name, new)


def _put(config: PretrainedConfig, name: str, value: float) -> None:
    try:
        setattr(config, name, value)
    except Exception as error:  # MPT declares a probability as a whole number, which is checked
        what = f"{name} can't be {value:g} in transformers: {one_line(error)}"
        raise ValueError(what) from error


def _probabilities(config: PretrainedConfig) -> Iterator[tuple[PretrainedConfig, str, float]]:
    """(config, field, value) of all that sounds like it in a config, or in one inside it."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            yield from _probabilities(value)
        elif (config.model_type, name) in _THRESHOLDS:
            continue
        elif _NOISE.fullmatch(name) and type(value) in (int, float):
            yield config, name, value
