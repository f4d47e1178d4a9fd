"""The command line, `rgbd COMMAND` or `python -m rgbd_jax COMMAND`: arguments, logs to stderr, errors in one line."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from absl import logging as absl_logging

# Command -> (module, one-line help). Modules are imported when their command is run.
COMMANDS = {
    "train": ("rgbd_jax.main", "train an experiment, or resume it"),
    "eval": ("rgbd_jax.main", "evaluate a run or a converted checkpoint"),
    "plan": ("rgbd_jax.main", "what a training step costs, as the compiler estimates it"),
    "predict": ("rgbd_jax.tools.predict", "classify clips or a stream"),
    "report": ("rgbd_jax.tools.report", "write a report of a run as one HTML page"),
    "serve": ("rgbd_jax.tools.serve", "serve a page to try a trained network"),
    "export": ("rgbd_jax.tools.export", "export a trained network to StableHLO or ONNX"),
    "convert": ("rgbd_jax.pytorch.convert", "convert checkpoints from and to PyTorch"),
    "fuse": ("rgbd_jax.tools.fuse", "late (score-level) fusion of evaluated runs"),
    "data build": ("rgbd_jax.ingest.build", "prepare a data set from raw clips"),
    "data check": ("rgbd_jax.ingest.check", "check raw clips or a prepared data set"),
    "data preview": ("rgbd_jax.tools.preview", "draw clips of a prepared data set as the network sees them"),
}

log = logging.getLogger("rgbd_jax")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; without one, or with --help, lists the commands."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words = 2 if argv[:1] == ["data"] else 1
    name = " ".join(argv[:words])
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {command:{width}}  {text}" for command, (_, text) in COMMANDS.items()]
        about = "\n".join(["RGB-D motion recognition: training and trained networks.", "", *lines])
        parser = argparse.ArgumentParser("rgbd", description=about, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("command", help="one of the above; `rgbd COMMAND --help` shows its arguments")
        parser.parse_args(argv[:1] or ["--help"])
        parser.error(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
    module = COMMANDS[name][0]
    mode = [f"--mode={name}"] if module == "rgbd_jax.main" else []
    run(importlib.import_module(module), f"rgbd {name}", mode + argv[words:])


def run(command: ModuleType, prog: str, argv: Sequence[str]) -> None:
    """Runs a module's `run(args)` with arguments parsed by its `add_arguments(parser)`; errors end the process.

    The module's docstring is the help. `--config.FIELD=VALUE` overrides a field where the command takes `--config`.
    """
    parser = argparse.ArgumentParser(
        prog, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="log details and tracebacks of errors")
    args, overrides = parser.parse_known_args(argv)
    unknown = [argument for argument in overrides if not argument.startswith("--config.")]
    if unknown or (overrides and not hasattr(args, "config")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    args.overrides = overrides
    _set_up(args.verbose)
    try:
        command.run(args)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        log.debug("traceback:", exc_info=True)
        sys.exit(f"error: {error}")


def _set_up(verbose: bool) -> None:
    """Logs to stderr, hides the libraries' logs unless `verbose`, and enables the compilation cache."""
    import jax  # seconds: not before --help

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "rgbd_jax" / "xla"))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["rgbd_jax"])  # Grain reads absl flags
    if not verbose:
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # an error for each array that a full disk refuses
        # As do these, and TensorBoard's file when the process ends.
        sys.unraisablehook = lambda ignored: log.debug("ignored in %r: %r", ignored.object, ignored.exc_value)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
