# tsarch with its whole environment, for CPUs or for NVIDIA GPUs, for one machine or for Ray's hosts.
#
#   docker build --tag tsarch:cpu .
#   docker build --tag tsarch:cuda --build-arg DEVICE=cuda .
#   docker run --rm -it --shm-size 2g tsarch:cpu tsarch train configs/quickstart.yaml
#   docker run --rm -it --shm-size 8g --gpus all tsarch:cuda tsarch train CONFIG
#
# For a cluster, push the image to where its hosts can pull it, and add to cluster/onpremise.yaml:
#
#   docker: {image: REGISTRY/tsarch:cuda, container_name: tsarch, run_options: [--shm-size=8g]}
#
# (`ray up` then runs all of that file's commands in the container, and hands it the GPUs of a host
# that has NVIDIA's container runtime.)
#
# What was NOT tried: no image was ever built or run from this file, on CPU or GPU, nor on a cluster,
# for want of a Docker daemon. What is tested (tests/test_dockerfile.py): its syntax, its arguments,
# that every file it copies exists and gets past .dockerignore, that it pins nothing itself (all
# versions are those of constraints.txt), and that Ray accepts the cluster file with the lines above.
# By hand: `make install` in a folder of just the files copied here gives a working environment.

ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# cpu: torch without CUDA. cuda: PyPI's, which brings the CUDA libraries along (several GB); the host
# needs NVIDIA's driver and container toolkit alone.
ARG DEVICE=cpu

# make, g++: what an install and torch's compiled operators need. rsync, openssh-client: `ray up`
# copies files into the container, and the head sets up the other hosts. wget: KubeRay's probes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# As in Ray's own images, whose account cluster files count on: `ray`, 1000, in the group `users`.
RUN useradd --create-home --uid 1000 --gid users --shell /bin/bash ray \
    && mkdir /home/ray/tsarch \
    && chown ray:users /home/ray/tsarch
USER ray
WORKDIR /home/ray/tsarch

# torch alone, at its pin, so that this large layer is built again only when constraints.txt changes.
COPY --chown=ray:users constraints.txt ./
RUN case "$DEVICE" in \
      cpu) set -- --index-url https://download.pytorch.org/whl/cpu ;; \
      cuda) set -- ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac \
    && python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --constraint constraints.txt "$@" torch

# `make install` keeps this torch, takes constraints.txt for the rest, and does nothing when a cluster
# file's setup commands call it again.
COPY --chown=ray:users pyproject.toml MANIFEST.in Makefile README.md LICENSE ./
COPY --chown=ray:users tsarch ./tsarch
COPY --chown=ray:users cluster ./cluster
COPY --chown=ray:users launch ./launch
COPY --chown=ray:users configs ./configs
RUN PIP_NO_CACHE_DIR=1 make install

ENV PATH=/home/ray/tsarch/.venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

CMD ["bash"]
