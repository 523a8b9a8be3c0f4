#!/bin/bash
# Trains on a Cloud TPU slice, from the request for it to the exported model. Its hosts share nothing but a bucket.
#
#   ZONE=us-west4-a REPOSITORY=https://github.com/OWNER/bertgpt bash docs/cloud_tpu.sh NAME \
#       pretrain bert_large data.train='gs://BUCKET/text/*.jsonl' out=gs://BUCKET/runs/large
#
# It needs gcloud, logged in; a project with the Cloud TPU API on and quota for preemptible TPUs; and a bucket, near the
# zone, where the project's default Compute Engine service account may write (roles/storage.objectAdmin). Give a recipe
# by its name, and text in the bucket. If the slice is preempted, it is requested again, and the run goes on from its
# newest checkpoint. After any other end, give the same command again. The model is written to OUT/exported.
# Set SPOT= (empty) to ask for a slice that is not preempted.
#
# Google says that the Cloud TPU API, which gcloud uses here, gets bug fixes and security updates only, and that it does
# not support TPU7x; it recommends Compute Engine or GKE.
set -euo pipefail

name=$1
shift
type=${TYPE:-v5litepod-16} version=${VERSION:-v2-alpha-tpuv5-lite} # docs/buckets.md names those of other slices
repository=${REPOSITORY:?set it to the address of the git repository, such as https://github.com/OWNER/bertgpt}
zone=(--zone "${ZONE:?set it to the zone of the slice, such as us-west4-a}")
out=$(printf '%s\n' "$@" | sed -n 's/^out=//p' | tail -n 1)
[[ $out == gs://* ]] || { echo "give out=gs://BUCKET/FOLDER: the hosts of a slice share no disk" >&2; exit 2; }
requests=(gcloud compute tpus queued-resources)

state() { # of the request; empty where there is none
    "${requests[@]}" list "${zone[@]}" --filter "name~/$name\$" --format 'value(state.state)'
}

on() { # HOSTS COMMAND: run a command on all hosts, or on one; gcloud repeats it when a connection breaks
    gcloud compute tpus tpu-vm ssh "$name" "${zone[@]}" --quiet --worker "$1" --command "$2" \
        --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=10
}

remove() {
    "${requests[@]}" delete "$name" "${zone[@]}" --force --quiet
}

request() { # a slice, unless there is one; wait for it, and install bertgpt on its hosts
    case $(state) in SUSPEND* | FAILED) remove ;; esac # a preempted slice does not come back
    [[ -n $(state) ]] || "${requests[@]}" create "$name" "${zone[@]}" --node-id "$name" \
        --accelerator-type "$type" --runtime-version "$version" ${SPOT---spot}
    while now=$(state) && [[ $now != ACTIVE ]]; do
        case $now in FAILED | SUSPEND* | '') echo "no slice: the request is ${now:-gone}; start again" >&2; exit 1 ;; esac
        sleep "${WAIT:-30}"
    done
    on all "command -v ~/.local/bin/uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/env
        ~/.local/bin/uv pip install --quiet --upgrade --python ~/env/bin/python 'bertgpt[train,tpu,gcs] @ git+$repository'"
}

run() { # to its end; first end what an earlier connection may have left
    request && on all "pkill -f env/bin/[b]ertgpt; sleep 5; ~/env/bin/bertgpt$(printf ' %q' "$@")" &&
        on 0 "rm -rf exported && JAX_PLATFORMS=cpu ~/env/bin/bertgpt export $(printf %q "$out") exported &&
            gcloud storage cp --recursive exported $(printf %q "$out")/"
}

until run "$@"; do
    for look in 1 2 3 4 5; do # the state shows a preemption after a while
        [[ $(state) == ACTIVE ]] || continue 2
        sleep "${WAIT:-30}"
    done
    echo "the run ended with an error, and the slice is there: see above. To remove it:" >&2
    echo "${requests[*]} delete $name ${zone[*]} --force" >&2
    exit 1
done
remove
