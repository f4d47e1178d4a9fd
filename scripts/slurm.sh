#!/usr/bin/env bash
# Trains on the GPUs of one or more nodes under SLURM, one process a GPU. From the checkout, after scripts/setup.sh:
#   sbatch scripts/slurm.sh --config configs/ntu_cs.py --workdir runs/ntu
#   sbatch --nodes=2 --time=12:00:00 scripts/slurm.sh --config configs/ntu_cs.py --workdir runs/ntu
# Options of sbatch before the script's name replace those below; --ntasks-per-node has to equal --gpus-per-node.
#
# Before its time is over, or when it is preempted, the job saves a checkpoint and requeues itself.
# `scancel --signal=TERM JOB` does the same; `scancel JOB` ends it for good. With `--restarts N` before the other
# arguments the training starts again, up to N times, from the last checkpoint, if a signal killed a process. SLURM itself
# requeues a job that loses a node.
#
#SBATCH --job-name=rgbd_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#
# GPUs are requested per node, not per task: each process must see all GPUs of its node, of which JAX takes the one whose
# number is SLURM_LOCALID. The signal has no "B:", so it goes to the processes, not to this shell.
set -euo pipefail
preempted=75
signals=128 # exit statuses above are those of processes that a signal killed
restarts=0
if [ "${1:-}" = --restarts ]; then
  restarts=$2
  shift 2
fi

# SLURM runs a copy of this script, so that the checkout is where the job was submitted.
if [ ! -x .venv/bin/python ]; then
  echo "error: no .venv/bin/python in $PWD: run sbatch in the checkout, after ./scripts/setup.sh" >&2
  exit 1
fi

# srun does not take this over from sbatch by itself (since SLURM 22.05).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# When one process fails, JAX aborts the others within a minute; --wait kills what is left after two. With
# --kill-on-bad-exit=1 the first process that has saved and exits with 75 would get the others killed.
for ((restart = 0; restart <= restarts; restart++)); do
  status=0
  srun --kill-on-bad-exit=0 --wait=120 .venv/bin/python -m rgbd_jax.main "$@" || status=$?
  if [ "$status" -le "$signals" ] || [ "$restart" -eq "$restarts" ]; then
    break
  fi
  echo "restart $((restart + 1)) of $restarts: a process was killed by signal $((status - signals))" >&2
done

# No trap: SLURM sends SIGTERM to this shell only to end the job for good (scancel, out of time), which also ends the
# shell before this line.
if [ "$status" -eq "$preempted" ]; then
  echo "saved; requeueing job $SLURM_JOB_ID" >&2
  scontrol requeue "$SLURM_JOB_ID" || echo "error: it cannot be requeued; submit the same command again" >&2
fi
exit "$status"
