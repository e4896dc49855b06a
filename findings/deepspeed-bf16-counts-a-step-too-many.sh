#!/usr/bin/env bash
# At ZeRO 0 in bf16, `deepspeed.initialize` makes a step of the optimizer by itself (on gradients of
# zero, to allocate its state), and AdamW counts it: the first real update is a quarter too short.
# Seen with deepspeed 0.19.8, torch 2.13.0.
# Why it matters: the first steps differ from those of torch and of ZeRO 1 for no reason that a user
# can see. `optimizer.state.clear()` after `deepspeed.initialize` mends it.
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


def first_update(stage, mend=False):
    """(steps that AdamW has counted before training, length of the first update at rate 0.1)."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_batch_size": 1,
            "gradient_clipping": 0.0,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    if mend:
        optimizer.state.clear()
    counted = sum(int(state["step"]) for state in optimizer.state.values())
    engine.backward(engine(torch.ones(1, 1, dtype=torch.bfloat16)).sum())
    engine.step()
    return counted, round(-model.weight.item(), 3)


found = {"ZeRO 0": first_update(0), "ZeRO 1": first_update(1), "ZeRO 0, mended": first_update(0, True)}
for case, (counted, update) in found.items():
    print(f"{case}, bf16: {counted} steps counted before training, first update {update}")
sys.exit(found != {"ZeRO 0": (1, 0.074), "ZeRO 1": (0, 0.1), "ZeRO 0, mended": (0, 0.1)})
PYTHON
