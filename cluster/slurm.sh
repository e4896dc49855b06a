#!/bin/bash
# A run on hosts of a Slurm cluster: Ray on each of them, closed to others, for this job alone.
#
#   sbatch cluster/slurm.sh CONFIG --set run.folder=/shared/runs/NAME
#   sbatch --nodes=4 cluster/slurm.sh CONFIG …     options of sbatch go before the script's name
#   scancel --signal=TERM --batch JOBID            end it with a checkpoint; then --resume goes on
#
# In the project's folder, which all hosts see, after `make install` there. A host has one task, which
# is its Ray. The first TEACHER_NODES hosts, if that is set, are labelled tsarch-stage=teacher, the
# others tsarch-stage=student, for `topology: {teacher: {nodes: {tsarch-stage: teacher}}}`.
#
# Not tried on a Slurm cluster for want of one: tested with a `srun` that starts its processes here.
#SBATCH --job-name=tsarch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --signal=B:TERM@600
# (600 s before the time is up the run saves a checkpoint and ends.)
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch cluster/slurm.sh CONFIG [--set key=value]… [--resume]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
if [ ! -x .venv/bin/ray ]; then
  echo "error: no .venv/bin/ray in $PWD. Submit from the project's folder, after \`make install\`." >&2
  exit 2
fi
export PATH="$PWD/.venv/bin:$PATH"

# A token that this job's processes alone know; Ray's processes inherit it.
export RAY_AUTH_MODE=token RAY_worker_niceness=0
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" python -c \
  'import ray.util; print(ray.util.get_node_ip_address())' | tail -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true; wait || true' EXIT

# One `ray start --block` on a host: ROLE is its options, the number is the host's place in the list.
start() {
  local host=$1 stage=$2; shift 2
  srun --nodes=1 --ntasks=1 --nodelist="$host" \
    ray start "$@" --block --disable-usage-stats --labels="${TEACHER_NODES:+tsarch-stage=$stage}" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" ${SLURM_GPUS_ON_NODE:+--num-gpus="$SLURM_GPUS_ON_NODE"} &
  pids+=($!)
}

for index in "${!hosts[@]}"; do
  stage=student
  if [ "$index" -lt "${TEACHER_NODES:-0}" ]; then stage=teacher; fi
  if [ "$index" -eq 0 ]; then
    start "$head" "$stage" --head --node-ip-address="$address" --port="$port" \
      --include-dashboard=false
  else
    start "${hosts[$index]}" "$stage" --address="$address:$port"
  fi
done

# The driver runs beside the head's Ray. It gets the signal that Slurm sends to this script.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  python -m tsarch.launch.after_nodes "${#hosts[@]}" "$address:$port" "$@" &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM INT
status=0
wait "$driver" || status=$?
# `wait` returns when a signal comes; the driver then saves its checkpoint.
while kill -0 "$driver" 2>/dev/null; do
  status=0
  wait "$driver" || status=$?
done
exit "$status"
