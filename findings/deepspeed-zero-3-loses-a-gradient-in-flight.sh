#!/usr/bin/env bash
# With two micro-batches in flight (both forwards, then both backwards, as a pipeline has them)
# ZeRO 3 keeps only the last gradient; ZeRO 0, 1 and 2 add the two up.
# Seen with deepspeed 0.19.8, torch 2.13.0.
# Why it matters: no error, a plausible loss, and a part of every batch that teaches nothing.
# `engine.optimizer.clear_backward_seen_flag()` before each backward mends it.
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


def update(stage, order, mend=False):
    """Length of an SGD step with rate 1 on two micro-batches whose gradients are 1 and 10.

    order: of the forward passes (f) and backward passes (b).
    """
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config={
            "train_batch_size": 2,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    inputs, losses = [1.0, 10.0], []
    for action in order:
        if action == "f":
            losses.append(engine(torch.tensor([[inputs.pop(0)]])).sum() * 2)
        else:
            if mend:
                engine.optimizer.clear_backward_seen_flag()
            engine.backward(losses.pop(0))
            engine.step()
    with deepspeed.zero.GatheredParameters([model.weight]):
        return round(1 - model.weight.item(), 3)


found = {}
for stage in (0, 1, 2, 3):
    found[stage] = (update(stage, "fbfb"), update(stage, "ffbb"))
    print(f"ZeRO {stage}: update {found[stage][0]} one by one, {found[stage][1]} with two in flight")
mended = update(3, "ffbb", mend=True)
print(f"ZeRO 3 with clear_backward_seen_flag: {mended}")
expected = {0: (11.0, 11.0), 1: (11.0, 11.0), 2: (11.0, 11.0), 3: (11.0, 10.0)}
sys.exit((found, mended) != (expected, 11.0))
PYTHON
