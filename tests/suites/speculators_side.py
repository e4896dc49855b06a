"""What `speculators_reads` runs in the other environment, in the exported folder: speculators and
its transformers alone.

`python speculators_side.py TOKENS SAID`: the logits, and tokens, that its own class proposes.
"""

from __future__ import annotations

import sys

import torch

STEPS = 3


def main(tokens_file: str, said_file: str) -> None:
    """Read the drafter and its teacher from here, and write what the drafter says."""
    from safetensors.torch import load_file, save_file
    from speculators import SpeculatorModel
    from transformers import AutoModelForCausalLM

    tokens = load_file(tokens_file)["tokens"][None]
    teacher = AutoModelForCausalLM.from_pretrained(
        "teacher", dtype=torch.float32, trust_remote_code=False
    ).eval()
    drafter = SpeculatorModel.from_pretrained("drafter", dtype=torch.float32).eval()
    states: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    teacher.model.norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
    with torch.no_grad():
        by_layer = teacher.model(tokens, output_hidden_states=True).hidden_states
    num_layers = teacher.config.num_hidden_layers
    for layer in drafter.target_layer_ids:  # states after so many layers, before the last norm
        states.append(last[0] if layer == num_layers else by_layer[layer])
    logits: list[torch.Tensor] = []
    drafter.lm_head.register_forward_hook(lambda *given: logits.append(given[2]))
    following = torch.cat([tokens[:, 1:], tokens[:, :1] * 0], dim=1)
    with torch.no_grad():
        proposed = drafter(
            hidden_states=torch.cat(states, dim=-1),
            input_ids=following,
            document_ids=torch.zeros_like(tokens),
            ttt_steps=STEPS,
        )
    said = {f"logits.{step}": own[0].contiguous() for step, own in enumerate(logits)}
    for step, own in enumerate(proposed):
        moved = own if drafter.d2t is None else own + drafter.d2t[own]
        said[f"tokens.{step}"] = moved[0].contiguous()
    save_file(said, said_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
