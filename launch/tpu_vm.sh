#!/usr/bin/env bash
# Runs one command on a TPU VM with a single host (v5e-8, v6e-8 and smaller).
#   launch/tpu_vm.sh <vm> <zone> <command ...>
#   launch/tpu_vm.sh my-v5e-8 us-west4-a 'cd pal_jax && make rlpa EXTRA=tpu ARGS=--workdir=/mnt/disk/rlpa'
set -euo pipefail
vm=${1:?name of the TPU VM} zone=${2:?its zone}
shift 2

gcloud compute tpus tpu-vm ssh "$vm" --zone="$zone" --command="$*"
