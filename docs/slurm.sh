#!/bin/bash
# Trains on several nodes under Slurm, one process a GPU, and goes on by itself after the time limit or a preemption.
#
#   sbatch docs/slurm.sh pretrain configs/bert_large.yaml data.train=/shared/text data.store=/shared/store out=/shared/run
#
# Everything named lies on storage that all nodes share. Prepare the store first, with the same arguments and `prepare`.
#SBATCH --job-name=bertgpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm's --signal tells every process 180 s before the end: they save at one step and leave with 143. When a process
# dies, the others end by themselves, within seconds or, at the latest, when JAX misses its heartbeat (100 s).
set -uo pipefail
srun --kill-on-bad-exit=0 .venv/bin/python -m train "$@"
code=$?
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
