"""Variables by which launchers tell a process its place among others, and left aside here.

A shell inside of an allocation, a container of a training service or a debugger of a script has
such variables too, and libraries obey them: accelerate would wait for ranks that nobody starts,
DeepSpeed take an MPI rank for its own. Who computes what is said by `topology` alone, so that a
run is the same in every shell. Only `tsarch.launch.torchrun` reads its launcher's variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LAUNCHERS: Mapping[str, tuple[str, ...]] = {
    "torchrun": (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
        *("NODE_RANK", "NNODES", "NPROC_PER_NODE"),
        *("TORCHELASTIC_*", "TORCH_ELASTIC_*", "PET_*"),
    ),
    "MPI": (
        *("OMPI_*", "PMI_*", "PMI2_*", "PMIX_*", "PRTE_*", "MPI_*", "I_MPI_*", "MPICH_*"),
        *("MV2_*", "MVP_*", "HYDRA_*", "HYDI_*", "PALS_*", "ALPS_*", "JSM_*", "FLUX_*"),
        *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "HOROVOD_*"),
    ),
    "accelerate": (
        *("ACCELERATE_*", "FSDP_*", "PARALLELISM_CONFIG_*", "MEGATRON_LM_*", "FORK_LAUNCHED"),
    ),
    "DeepSpeed": ("DS_*", "DEEPSPEED_*", "DLTS_*", "DLWS_*"),
    "SLURM": ("SLURM_*", "SLURMD_*", "SRUN_*", "SALLOC_*", "SBATCH_*"),
    "SageMaker": ("SMDATAPARALLEL_*", "SM_HP_MP_PARAMETERS", "SM_FRAMEWORK_PARAMS"),
    "Azure": ("AZ_BATCH_*", "AZ_BATCHAI_*"),
    # Images of NVIDIA's set it; `precision: fp32` says otherwise.
    "the container": ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",),
}
"""Launcher → its variables; `*`: all that begin so."""
_BUILDING = (
    *("DS_BUILD_", "DS_SKIP_", "DS_IGNORE_", "DS_DEBUG_CUDA_BUILD", "DS_NVCC_THREADS"),
    "DS_EVOFORMER_GPU_ARCH",
)
"""DeepSpeed's for compiling its operators: of this host, not of a launcher."""


def launcher_of(variable: str) -> str | None:
    """Whose variable it is; None: no launcher's."""
    if variable.startswith(_BUILDING):
        return None
    for launcher, patterns in LAUNCHERS.items():
        exact = variable in patterns
        if exact or any(p.endswith("*") and variable.startswith(p[:-1]) for p in patterns):
            return launcher
    return None


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variable → launcher, of all variables of launchers."""
    found = ((name, launcher_of(name)) for name in environment)
    return {name: launcher for name, launcher in found if launcher is not None}


def forget_launchers() -> dict[str, str]:
    """Take launchers' variables out of this process's environment, for good; returns which."""
    found = launcher_variables(os.environ)
    for name in found:
        del os.environ[name]
    return found


@contextmanager
def without_launchers() -> Iterator[None]:
    """Within, this process's environment has no variables of launchers."""
    before = {name: os.environ[name] for name in launcher_variables(os.environ)}
    forget_launchers()
    try:
        yield
    finally:
        os.environ.update(before)


def describe(variables: Mapping[str, str]) -> str | None:
    """What to tell a user of variables that were left aside; None: nothing. (Whoever works in an
    allocation of SLURM knows; of the others one may have hoped that they start ranks.)"""
    told = ("torchrun", "MPI", "accelerate", "DeepSpeed")
    names = [name for name, launcher in variables.items() if launcher in told]
    if not names:
        return None
    whose = " and ".join(launcher for launcher in told if launcher in variables.values())
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"variables of {whose} in the environment ({shown}) are left aside: `topology` says who "
        "computes what. Ranks of torchrun: torchrun -m tsarch.launch.torchrun CONFIG"
    )
