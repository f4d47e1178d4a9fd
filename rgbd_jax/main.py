"""The command line: `python -m rgbd_jax.main --config configs/demo.py --workdir runs/demo [--mode=eval]`."""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from rgbd_jax import console

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with the stream after a colon (:depth).")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, figures, config.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "plan"], "What to do.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint --mode=eval takes.")
_DEVICE_COUNT = flags.DEFINE_integer("device_count", 0, "Devices that --mode=plan is for; this machine's if 0.")
flags.DEFINE_string("coordinator", None, "Host and port of process 0, where several train together.")
flags.DEFINE_integer("process_count", None, "Number of processes that train together.")
flags.DEFINE_integer("process_index", None, "Which of them this is, from 0 on.")
flags.DEFINE_integer("join_timeout", 300, "Seconds until a group that is not complete is given up.")
flags.DEFINE_integer("heartbeat_timeout", 60, "Seconds after which a silent process is dead.")
flags.mark_flag_as_required("config")

log = logging.getLogger("rgbd_jax")


def main(argv: list[str]) -> None:
    """Trains, evaluates or plans; the last line on stdout is the result as one JSON object."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _WORKDIR.value is None and _MODE.value != "plan":
        raise app.UsageError(f"--workdir is needed with --mode={_MODE.value}")
    console.log_to_stderr()
    console.keep_compiled_programs()
    from rgbd_jax.checkpoint.metric_accumulator import NonFiniteLossError
    from rgbd_jax.checkpoint.preemption import PREEMPTED, PreemptedError
    from rgbd_jax.parallel import distributed  # after the flags are read: importing takes seconds, --help should not

    try:
        if _MODE.value != "plan":
            names = [field.name for field in dataclasses.fields(distributed.DistributedConfig)]
            given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
            distributed.join(distributed.DistributedConfig(**given))
        result, said = _run()
    except PreemptedError as stopped:
        log.info("%s", stopped)
        distributed.leave()
        sys.exit(PREEMPTED)
    except (ValueError, OSError, NonFiniteLossError) as error:
        log.debug("where it happened:", exc_info=True)
        distributed.fail(error)
    except Exception as error:
        distributed.fail_unexpectedly(error)
    if distributed.is_primary():
        print(said)
        print(json.dumps({"mode": _MODE.value, **result}), flush=True)
    distributed.leave()


def _run() -> tuple[dict, str]:
    """Does what --mode says; returns the result, and what is said of it."""
    config = _CONFIG.value
    if _MODE.value == "plan":
        from rgbd_jax.dataset import known_classes
        from rgbd_jax.tools.plan import plan, table

        result = plan(config, known_classes(config), _DEVICE_COUNT.value)
        return result, table(result)
    from rgbd_jax.evaluate import evaluate
    from rgbd_jax.train import train

    workdir = Path(str(_WORKDIR.value))
    result = train(config, workdir) if _MODE.value == "train" else evaluate(config, workdir, _CHECKPOINT.value)
    reached = f" at step {result['step']}" if result["step"] else ""  # a converted checkpoint does not tell
    said = f"top-1 {result['top1']:.1%} of {result['clips']} clips{reached}; everything is in {workdir}"
    return {"workdir": str(workdir), **result}, said


if __name__ == "__main__":
    app.run(main, flags_parser=console.parse_flags)
