#!/usr/bin/env bash
# Trains on CUDA nodes with all their GPUs, one process a node.
#   sbatch launch/slurm_cuda.sh --config=rlpa --workdir=/shared/runs/rlpa
#   sbatch --nodes=4 launch/slurm_cuda.sh --config=rlpa:paper --workdir=/shared/runs/paper
# Two minutes before the time limit the run saves a checkpoint and the job queues up again, to go on from there; where it
# is preempted (SIGTERM) it saves one too, and Slurm queues it up. Set up once on a login node: make setup EXTRA=cuda
#SBATCH --job-name=pal_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"
trap : TERM # Slurm may tell this script too; it has to outlive the step
# Transfers between cards beside other work, and most of a card's memory, unless the environment says otherwise: docs/gpu.md
export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}

code=0
srun .venv/bin/python -m pal_jax.train "$@" || code=$?
if ((code == 75)); then # stopped by USR1, or one of its processes was lost: the same command goes on
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
