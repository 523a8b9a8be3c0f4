#!/bin/bash
# Trains on several nodes under Slurm, one process per GPU, and resumes automatically after the time limit or a preemption.
#
#   sbatch docs/slurm.sh pretrain configs/bert_large.yaml data.train=/shared/text data.store=/shared/store out=/shared/run
#
# All paths must be on storage that all nodes share. Prepare the store first: `prepare` with the same arguments.
#SBATCH --job-name=bertgpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm's --signal sends SIGTERM to every process 180 s before the end. The processes finish the step under way, save a
# checkpoint at the same step and exit with 143. Raise the 180 s if a step and a save take longer. When a process dies, the
# others exit on their own: within seconds, or at the latest when JAX misses its heartbeat (100 s).
set -uo pipefail
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/python -m train "$@"
code=$?
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
