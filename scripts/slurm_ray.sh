#!/usr/bin/env bash
# One run on every GPU of several Slurm nodes, by Ray. Put the output folder on a file system that the nodes share, so that a job which is
# queued again on another node finds it. On nodes without GPUs: device=cpu.
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_ray.sh model=flux algo=spectrum prompt_file=prompts/drawbench.txt
# A job that is queued again after preemption goes on where it stopped. For clips: ENTRY=src/text_to_video.py sbatch ...
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0   # Ray's own niceness is 15
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)   # of this job alone
PORT=${PORT:-6379} HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
ADDRESS=$(srun --overlap --nodes=1 --ntasks=1 -w "$HEAD" hostname -I | awk '{ print $1 }')
GPUS=$(( ${SLURM_GPUS_ON_NODE:-0} * SLURM_JOB_NUM_NODES ))
WORKERS=${WORKERS:-$(( GPUS > 0 ? GPUS : SLURM_JOB_NUM_NODES ))}

srun --overlap --nodes=1 --ntasks=1 -w "$HEAD" \
    ray start --head --node-ip-address="$ADDRESS" --port="$PORT" --include-dashboard=false --block > "ray_head_$SLURM_JOB_ID.log" 2>&1 &
trap 'ray stop --force > /dev/null 2>&1 || true' EXIT
for _ in $(seq 60); do ray status --address="$ADDRESS:$PORT" > /dev/null 2>&1 && break; sleep 1; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) -x "$HEAD" \
        ray start --address="$ADDRESS:$PORT" --block > "ray_workers_$SLURM_JOB_ID.log" 2>&1 &
fi
python "${ENTRY:-src/text_to_image.py}" ngpu="$WORKERS" engine.address="$ADDRESS:$PORT" "$@"
