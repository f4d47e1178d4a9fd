#!/usr/bin/env bash
# Trains on the GPUs of one or more nodes under SLURM, one process a GPU. From the checkout, after scripts/setup.sh:
#   sbatch scripts/slurm.sh --config configs/ntu_cs.py --workdir runs/ntu
#   sbatch --nodes=2 --time=12:00:00 scripts/slurm.sh --config configs/ntu_cs.py --workdir runs/ntu
# Options of sbatch before the script's name replace those below; --ntasks-per-node has to equal --gpus-per-node.
#
# Before its time is over, or when it is preempted, the job saves a checkpoint and puts itself back into the queue.
# `scancel --signal=TERM JOB` asks for the same; `scancel JOB` ends it for good.
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
# GPUs are asked for a node, not a task: each process has to see all GPUs of its node, because JAX takes the one whose
# number is SLURM_LOCALID. The signal has no "B:", so it goes to the processes, not to this shell.
set -euo pipefail
preempted=75

# SLURM runs a copy of this script, so that the checkout is where the job was submitted.
if [ ! -x .venv/bin/python ]; then
  echo "error: no .venv/bin/python in $PWD: run sbatch in the checkout, after ./scripts/setup.sh" >&2
  exit 1
fi

# srun does not take this over from sbatch by itself (since SLURM 22.05).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# When one process fails, the others notice and end within a minute; what is left after two is killed. With
# --kill-on-bad-exit=1 the first process that has saved and ends with 75 would get the others killed, and the status
# would no longer be 75.
status=0
srun --kill-on-bad-exit=0 --wait=120 .venv/bin/python -m rgbd_jax.main "$@" || status=$?

# No trap here: SLURM sends SIGTERM to this shell only when the job has to end for good (scancel, out of time), and a
# shell that it ends does not come here.
if [ "$status" -eq "$preempted" ]; then
  echo "saved; job $SLURM_JOB_ID goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" || echo "error: it cannot be requeued; submit the same command again" >&2
fi
exit "$status"
