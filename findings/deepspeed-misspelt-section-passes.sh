#!/usr/bin/env bash
# DeepSpeed refuses a misspelt key inside a section of its config, but takes a misspelt section, or
# any other key at the top, without a word: `zero_optimisation: {stage: 3}` trains without ZeRO.
# Seen with deepspeed 0.19.8, torch 2.13.0.
# Why it matters: after one refused typo one trusts that all are found; these show as a run out of
# memory, or in another precision than the config says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 setuptools==84.2.1
HOME=$folder DS_ACCELERATOR=cpu LOCAL_RANK=0 venv/bin/python -W ignore - <<'PYTHON'
import logging, os, sys
import torch, deepspeed

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else g++ builds it, for inference
deepspeed.init_distributed(
    "gloo", auto_mpi_discovery=False, verbose=False, init_method=f"file://{os.getcwd()}/store",
    rank=0, world_size=1,
)
print("torch", torch.__version__, "deepspeed", deepspeed.__version__)


def outcome(fragment):
    """What DeepSpeed makes of a config that has `fragment` in it."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"train_batch_size": 1, "zero_allow_untested_optimizer": True, **fragment}
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except Exception as error:
        return type(error).__name__
    bf16 = " bf16" if engine.bfloat16_enabled() else ""
    return f"ZeRO {engine.zero_optimization_stage()}{bf16}"


cases = [
    ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "ValidationError"),
    ({"bf16": {"enable": True}}, "ValidationError"),
    ({"zero_optimisation": {"stage": 2}}, "ZeRO 0"),
    ({"bf61": {"enabled": True}}, "ZeRO 0"),
    ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "ZeRO 2 bf16"),
]
found = [outcome(fragment) for fragment, _ in cases]
for (fragment, _), own in zip(cases, found):
    print(f"{fragment}: {own}")
sys.exit(found != [expected for _, expected in cases])
PYTHON
