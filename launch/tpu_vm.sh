#!/usr/bin/env bash
# Runs one command on every host of a TPU VM: of a single host (v5e-8) or of a whole slice (v5e-16, v5p-128).
#   launch/tpu_vm.sh <vm> <zone> <command ...>
#   launch/tpu_vm.sh my-slice us-west4-a 'git clone <url> pal_jax && make -C pal_jax setup EXTRA=tpu'
#   launch/tpu_vm.sh my-slice us-west4-a 'cd pal_jax && .venv/bin/pal-jax train --config=rlpa --coordinator=auto --workdir=/mnt/shared/rlpa'
# --coordinator=auto has the hosts of a slice find each other; --workdir is a folder that all of them see.
# The same line again goes on from the last checkpoint.
set -euo pipefail
vm=${1:?name of the TPU VM} zone=${2:?its zone}
shift 2
(($#)) || { echo 'no command; see the head of this file' >&2; exit 2; }

exec gcloud compute tpus tpu-vm ssh "$vm" --zone="$zone" --worker=all --command="$*"
