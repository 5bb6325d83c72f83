#!/usr/bin/env bash
# Runs one command on every worker of a TPU slice; the workers find each other.
#   launch/tpu_pod.sh <slice> <zone> <command ...>
#   launch/tpu_pod.sh my-v5e-16 us-west4-a 'cd pal_jax && make rlpa EXTRA=tpu ARGS=--workdir=gs://bucket/rlpa'
set -euo pipefail
slice=${1:?name of the TPU slice} zone=${2:?its zone}
shift 2

gcloud compute tpus tpu-vm ssh "$slice" --zone="$zone" --worker=all --command="$*"
