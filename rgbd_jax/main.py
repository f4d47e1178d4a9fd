"""The command line: `python -m rgbd_jax.main --config configs/demo.py --workdir runs/demo [--mode=eval]`."""

import json
import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with the stream after a colon (:depth).")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, figures, config.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint --mode=eval takes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Host and port of process 0, where several train together.")
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Number of processes that train together.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this is, from 0 on.")
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds until a group that is not complete is given up.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer("heartbeat_timeout", 60, "Seconds after which a silent process is dead.")
flags.mark_flags_as_required(["config", "workdir"])

log = logging.getLogger("rgbd_jax")


def main(argv: list[str]) -> None:
    """Trains or evaluates; the last line on stdout is the result as one JSON object."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    _log_to_stderr()
    _keep_compiled_programs()
    from rgbd_jax import group  # after the flags are read: importing takes seconds, --help should not
    from rgbd_jax.evaluate import evaluate
    from rgbd_jax.preemption import PREEMPTED, PreemptedError
    from rgbd_jax.recent import NonFiniteLossError
    from rgbd_jax.train import train

    workdir = Path(str(_WORKDIR.value))
    try:
        group.join(
            group.Membership(
                _COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value, _JOIN_TIMEOUT.value,
                _HEARTBEAT_TIMEOUT.value,
            )
        )  # fmt: skip
        if not group.is_first():
            log.setLevel(logging.WARNING)
        if _MODE.value == "train":
            result = train(_CONFIG.value, workdir)
        else:
            result = evaluate(_CONFIG.value, workdir, _CHECKPOINT.value)
    except PreemptedError as stopped:
        log.info("%s", stopped)
        group.leave()
        sys.exit(PREEMPTED)
    except (ValueError, OSError, NonFiniteLossError) as error:
        log.debug("where it happened:", exc_info=True)
        group.fail(error)
    group.leave()
    if group.is_first():
        reached = f" at step {result['step']}" if result["step"] else ""  # a converted checkpoint does not tell
        print(f"top-1 {result['top1']:.1%} of {result['clips']} clips{reached}; everything is in {workdir}")
        print(json.dumps({"mode": _MODE.value, "workdir": str(workdir), **result}))


def _log_to_stderr() -> None:
    """Shows this package's progress; of the libraries, whose errors it tells itself, all with --verbosity alone."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tells each of the arrays that a full disk refuses
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if flags.FLAGS.verbosity > 0 else logging.INFO)


def _keep_compiled_programs() -> None:
    """Keeps what XLA compiles for the next run, unless JAX_COMPILATION_CACHE_DIR says where to."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "rgbd_jax" / "xla"))


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a config field that does not exist ends the program with one line, not with a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        detail = " ".join(str(error).strip("\"'").replace("\\n", " ").split())
        sys.exit(f"error: a --config. flag names a field that the config does not have: {detail}")
    except (TypeError, ValueError) as error:
        sys.exit(f"error: a --config. flag has a value that its field cannot take: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
