#!/bin/bash
# Trains on all hosts of a Cloud TPU slice. Run the same command again to resume from the last checkpoint.
#
#   bash docs/cloud_tpu.sh NAME ZONE pretrain configs/bert_large.yaml data.train=/mnt/run/text out=/mnt/run/bert_large
#
# NAME is a TPU VM. Its hosts need this repository in ~/bertgpt and a shared /mnt/run (Filestore, or another NFS).
set -euo pipefail
name=$1 zone=$2
shift 2
command="cd bertgpt && make --silent install EXTRA=tpu && exec .venv/bin/python -m train$(printf ' %q' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command"
