"""Running a sub-command: its arguments, logging to stderr, and errors in one line."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from absl import logging as absl_logging

log = logging.getLogger("rgbd_jax")


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
        sys.unraisablehook = _log_unraisable  # as do these, and TensorBoard's file when the process ends
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _log_unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    log.debug("ignored in %r: %r", ignored.object, ignored.exc_value)
