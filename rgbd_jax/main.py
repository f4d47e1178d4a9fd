"""Train, evaluate or plan an experiment.

    python -m rgbd_jax.main --config configs/ntu_cs.py:depth --workdir runs/ntu_depth
    python -m rgbd_jax.main --config configs/ntu_cs.py:depth --workdir runs/ntu_depth --mode=eval
    python -m rgbd_jax.main --config configs/ntu_cs.py --mode=plan

The last line on stdout is the result as one JSON object. Any field of the config can be overridden:
--config.train.batch_size=48.
"""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

from rgbd_jax import cli

log = logging.getLogger("rgbd_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command line."""
    parser.add_argument(
        "--config", required=True, help="config file or name, with the modality after a colon (ntu_cs:depth)"
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run: checkpoints, metrics, config")
    parser.add_argument("--mode", choices=("train", "eval", "plan"), default="train", help="what to do")
    parser.add_argument(
        "--checkpoint", choices=("best", "latest"), default="best", help="checkpoint that --mode=eval evaluates"
    )
    parser.add_argument("--device_count", type=int, default=0, help="devices of --mode=plan (default: all; CPU: any)")
    group = parser.add_argument_group("several processes")
    group.add_argument("--coordinator", help="host:port of process 0")
    group.add_argument("--process_count", type=int, help="number of processes")
    group.add_argument("--process_index", type=int, help="index of this process, from 0")
    group.add_argument("--join_timeout", type=int, default=300, help="timeout for all processes to join, in seconds")
    group.add_argument(
        "--heartbeat_timeout", type=int, default=60, help="seconds without a heartbeat after which a process is dead"
    )


def run(args: argparse.Namespace) -> None:
    """Trains, evaluates or plans, and prints the result."""
    from rgbd_jax.config import load_config  # imports take seconds: not before --help

    config = load_config(args.config, args.overrides)
    if args.mode == "plan":
        from rgbd_jax.data.source import known_classes
        from rgbd_jax.tools.plan import plan, table

        result = plan(config, known_classes(config), args.device_count)
        print(table(result))
        print(json.dumps({"mode": "plan", **result}))
        return
    if args.workdir is None:
        raise ValueError(f"--workdir is required with --mode={args.mode}")
    from rgbd_jax.evaluate import evaluate
    from rgbd_jax.ingest.build import prepare_for
    from rgbd_jax.parallel import distributed
    from rgbd_jax.parallel.preemption import PREEMPTED, PreemptedError
    from rgbd_jax.train import train

    names = [field.name for field in dataclasses.fields(distributed.DistributedConfig)]
    with distributed.group(distributed.DistributedConfig(**{name: getattr(args, name) for name in names})):
        if distributed.is_primary():
            prepare_for(config)
        distributed.barrier("the data set is prepared")
        try:
            training = args.mode == "train"
            result = train(config, args.workdir) if training else evaluate(config, args.workdir, args.checkpoint)
        except PreemptedError as stopped:
            log.info("%s", stopped)
            sys.exit(PREEMPTED)
        if distributed.is_primary():
            step = f" at step {result['step']}" if result["step"] else ""  # a converted checkpoint may not record it
            print(f"top-1 {result['top1']:.1%} of {result['clips']} clips{step}; results are in {args.workdir}")
            print(json.dumps({"mode": args.mode, "workdir": str(args.workdir), **result}), flush=True)


if __name__ == "__main__":
    cli.run(sys.modules["__main__"], "python -m rgbd_jax.main", sys.argv[1:])
