#!/usr/bin/env bash
# DeepSpeed leaves a step out whose gradient is not finite at ZeRO 1 and 2, in fp32 too, where no
# loss scale explains it; at ZeRO 0 in fp32 it takes the step: every weight is infinite or NaN.
# Seen with deepspeed 0.19.8, torch 2.13.0.
# Why it matters: one bad batch destroys a run that the same config with another ZeRO stage
# survives, and a loop that counts its own steps counts ones that were never made.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 setuptools==84.2.1
HOME=$folder DS_ACCELERATOR=cpu LOCAL_RANK=0 venv/bin/python -W ignore - <<'PYTHON'
import logging, os, sys
import torch, deepspeed

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else g++ builds it, for inference
deepspeed.init_distributed(
    "gloo", auto_mpi_discovery=False, verbose=False, init_method=f"file://{os.getcwd()}/store",
    rank=0, world_size=1,
)
print("torch", torch.__version__, "deepspeed", deepspeed.__version__)


def after_a_bad_batch(stage):
    """(weight after a step on a gradient of infinity, steps that DeepSpeed says it has skipped)."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_batch_size": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    engine.backward(engine(torch.tensor([[float("inf")]])).sum())
    engine.step()
    return model.weight.item(), engine.skipped_steps


found = {stage: after_a_bad_batch(stage) for stage in (0, 1, 2)}
for stage, (weight, skipped) in found.items():
    print(f"ZeRO {stage}, fp32: weight 1.0 -> {weight}, skipped_steps {skipped}")
sys.exit(found != {0: (float("-inf"), 0), 1: (1.0, 1), 2: (1.0, 1)})
PYTHON
