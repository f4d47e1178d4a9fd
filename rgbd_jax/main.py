"""Train, evaluate or plan an experiment.

    python -m rgbd_jax.main --config configs/ntu_cs.py:depth --workdir runs/ntu_depth
    python -m rgbd_jax.main --config configs/ntu_cs.py:depth --workdir runs/ntu_depth --mode=eval
    python -m rgbd_jax.main --config configs/ntu_cs.py --mode=plan --device_kind v5e --topology 4x4

The last line on stdout is the result as one JSON object. Any field of the config can be overridden:
--config.train.batch_size=48.
"""

import argparse
import dataclasses
import json
import logging
import sys

from rgbd_jax import cli

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command line."""
    add = parser.add_argument
    add("--config", required=True, help="config file or name, with the modality after a colon (ntu_cs:depth)")
    add("--workdir", help="folder of the run (checkpoints, metrics, config), or gs://BUCKET/FOLDER")
    add("--mode", choices=("train", "eval", "plan"), default="train", help="what to do")
    add("--checkpoint", choices=("best", "latest"), default="best", help="checkpoint that --mode=eval evaluates")
    restart = "begin anew a run that has lost all its checkpoints; its metrics are kept"
    add("--restart", action="store_true", help=restart)
    add = parser.add_argument_group("devices of --mode=plan; this machine's by default").add_argument
    add("--device_kind", default="", help="v4, v5e, v5p, v6e, H100, H200 or A100; need not be present")
    add("--topology", default="", help="of TPUs: the chips along each axis, such as 4x4")
    add("--device_count", type=int, default=0, help="GPUs (default: 1), or this machine's (default: all)")
    add = parser.add_argument_group("several processes").add_argument
    add("--coordinator", help="host:port of process 0")
    add("--process_count", type=int, help="number of processes")
    add("--process_index", type=int, help="index of this process, from 0")
    add("--join_timeout", type=int, default=300, help="timeout for all processes to join, in seconds")
    heartbeat = "seconds without a heartbeat after which a process is dead"
    add("--heartbeat_timeout", type=int, default=60, help=heartbeat)


def run(args: argparse.Namespace) -> None:
    """Trains, evaluates or plans, and prints the result."""
    from rgbd_jax.config import load_config  # imports take seconds: not before --help

    config = load_config(args.config, args.overrides)
    if args.mode == "plan":
        from rgbd_jax.data.source import known_classes
        from rgbd_jax.tools.plan import Target, plan, table

        target = Target(args.device_kind, args.topology, args.device_count)
        result = plan(config, known_classes(config), target)
        print(table(result))
        print(json.dumps({"mode": "plan", **result}), flush=True)
        if not result["fits"]:
            sys.exit(1)
        return
    if args.workdir is None:
        raise ValueError(f"--workdir is required with --mode={args.mode}")
    from rgbd_jax import experiment
    from rgbd_jax.metrics import to_json_able
    from rgbd_jax.parallel import distributed
    from rgbd_jax.parallel.preemption import PREEMPTED, PreemptedError

    names = [field.name for field in dataclasses.fields(distributed.DistributedConfig)]
    group = distributed.DistributedConfig(**{name: getattr(args, name) for name in names})
    try:
        if args.mode == "train":
            result = experiment.train(config, args.workdir, restart=args.restart, group=group)
        else:
            result = experiment.evaluate(config, args.workdir, checkpoint=args.checkpoint, group=group)
    except PreemptedError as stopped:
        log.info("%s", stopped)
        sys.exit(PREEMPTED)
    if distributed.is_primary():
        step = f" at step {result['step']}" if result["step"] else ""  # a converted checkpoint may not record it
        print(f"top-1 {result['top1']:.1%} of {result['clips']} clips{step}; results are in {args.workdir}")
        print(json.dumps({"mode": args.mode, "workdir": args.workdir, **to_json_able(result)}), flush=True)


if __name__ == "__main__":
    cli.run(sys.modules["__main__"], "python -m rgbd_jax.main", sys.argv[1:])
