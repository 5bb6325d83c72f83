#!/usr/bin/env bash
# Trains on one CUDA node with all its GPUs. A run that was stopped goes on when the same line is submitted again.
#   sbatch launch/slurm_cuda.sh --config=configs/rlpa.py --workdir=/shared/runs/rlpa
# Set up once on a login node: make setup EXTRA=cuda
#SBATCH --job-name=pal_jax
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"

srun .venv/bin/python -m pal_jax.train "$@"
