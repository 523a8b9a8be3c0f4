#!/bin/bash
# Trains on a Cloud TPU slice, from the request for it to the exported model. Its hosts share nothing but a bucket.
#
#   ZONE=us-west4-a REPOSITORY=https://github.com/OWNER/bertgpt bash docs/cloud_tpu.sh NAME \
#       pretrain bert_large data.train='gs://BUCKET/text/*.jsonl' out=gs://BUCKET/runs/large
#
# It needs gcloud, logged in, with a project that has quota for the slice, and a bucket in the region of the zone that
# the slice's service account may write (roles/storage.objectAdmin). Give a recipe by its name, and text in the bucket.
# If the slice is preempted, it is requested again, and the run goes on from its newest checkpoint. The same command does
# the same after any other end. The model is written to OUT/exported. SPOT= asks for a slice that is not preempted.
set -euo pipefail

name=$1
shift
type=${TYPE:-v5litepod-16} version=${VERSION:-v2-alpha-tpuv5-lite} # docs/buckets.md names those of other slices
repository=${REPOSITORY:?set it to the address of the git repository, such as https://github.com/OWNER/bertgpt}
zone=(--zone "${ZONE:?set it to the zone of the slice, such as us-west4-a}")
out=$(printf '%s\n' "$@" | sed -n 's/^out=//p' | tail -n 1)
[[ $out == gs://* ]] || { echo "give out=gs://BUCKET/FOLDER: the hosts of a slice share no disk" >&2; exit 2; }

state() { # of the request; empty where there is none
    gcloud compute tpus queued-resources describe "$name" "${zone[@]}" --format 'value(state.state)' 2> /dev/null || true
}

on() { # HOSTS COMMAND: run a command on all hosts, or on one
    gcloud compute tpus tpu-vm ssh "$name" "${zone[@]}" --worker "$1" --command "$2"
}

remove() {
    gcloud compute tpus queued-resources delete "$name" "${zone[@]}" --force --quiet
}

request() { # a slice, unless there is one; wait for it, and install bertgpt on its hosts
    case $(state) in SUSPEND* | FAILED) remove ;; esac # a preempted slice does not come back
    [[ -n $(state) ]] || gcloud compute tpus queued-resources create "$name" "${zone[@]}" --node-id "$name" \
        --accelerator-type "$type" --runtime-version "$version" --scopes https://www.googleapis.com/auth/cloud-platform \
        ${SPOT---spot}
    while now=$(state) && [[ $now != ACTIVE ]]; do
        [[ $now != FAILED ]] || { echo "the request failed: gcloud compute tpus queued-resources describe $name" >&2; exit 1; }
        sleep "${WAIT:-30}"
    done
    on all "command -v ~/.local/bin/uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/env
        ~/.local/bin/uv pip install --quiet --python ~/env/bin/python 'bertgpt[train,tpu,gcs] @ git+$repository'"
}

request
until on all "~/env/bin/bertgpt$(printf ' %q' "$@")"; do
    sleep "${WAIT:-30}" # until the state shows a preemption
    [[ $(state) != ACTIVE ]] || { echo "the run ended with an error, and the slice is there: see above" >&2; exit 1; }
    echo "$name was preempted; asking for another slice" >&2
    request
done
on 0 "~/env/bin/bertgpt export $out exported && gcloud storage cp --recursive exported $out/"
remove
