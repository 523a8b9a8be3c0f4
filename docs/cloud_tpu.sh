#!/bin/bash
# Trains on all hosts of a Cloud TPU slice; the same command again goes on from the last checkpoint.
#
#   bash docs/cloud_tpu.sh NAME ZONE pretrain configs/bert_large.yaml data.train=/mnt/run/text out=/mnt/run/bert_large
#
# NAME is a TPU VM whose hosts have this repository in ~/bertgpt and share /mnt/run (Filestore, or a bucket by gcsfuse).
set -euo pipefail
name=$1 zone=$2
shift 2
command="cd bertgpt && make --silent install EXTRA=tpu && exec .venv/bin/python -m train$(printf ' %q' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command"
