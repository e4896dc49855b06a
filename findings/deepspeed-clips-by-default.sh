#!/usr/bin/env bash
# DeepSpeed clips gradients at norm 1.0 when its config says nothing of clipping, at ZeRO 0, 1
# and 2 alike; with `gradient_clipping: 0.0` it doesn't, and neither does torch.
# Seen with deepspeed 0.19.8, torch 2.13.0.
# Why it matters: a loop moved to DeepSpeed as it was takes other steps, and nothing says so; at
# ZeRO 0 in fp32 not even `get_global_grad_norm`, which answers None.
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


def update(stage, **settings):
    """Length of an SGD step with rate 1 on a gradient of norm 10, and the norm that is told."""
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config={
            "train_batch_size": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            **settings,
        },
    )
    engine.backward(engine(torch.full((1, 4), 5.0)).sum())
    engine.step()
    norm = engine.get_global_grad_norm()
    return round((1 - model.weight).norm().item(), 4), None if norm is None else float(norm)


found = {stage: (update(stage), update(stage, gradient_clipping=0.0)) for stage in (0, 1, 2)}
for stage, (silent, off) in found.items():
    print(f"ZeRO {stage}: update, norm told: {silent} by default; {off} with gradient_clipping 0.0")
expected = {stage: ((1.0, told), (10.0, told)) for stage, told in ((0, None), (1, 10.0), (2, 10.0))}
sys.exit(found != expected)
PYTHON
