#!/usr/bin/env bash
# Trains on CUDA nodes, one process a node with all its GPUs; jax.distributed finds the others through Slurm.
#   sbatch --nodes=4 launch/slurm_cuda.sh --config=configs/rlpa.py:paper --workdir=/shared/runs/rlpa
# Set up once on a login node: make setup EXTRA=cuda
#SBATCH --job-name=pal_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"

srun --kill-on-bad-exit=1 .venv/bin/python -m pal_jax.train "$@"
