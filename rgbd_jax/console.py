"""What the command lines share: messages on stderr, kept programs, and flags that are told in one line."""

import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

log = logging.getLogger("rgbd_jax")


def log_to_stderr() -> None:
    """Shows this package's progress; of the libraries, whose errors it tells itself, all with --verbosity alone."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tells each of the arrays that a full disk refuses
        sys.unraisablehook = _tell_if_asked  # so do these, and TensorBoard's file when the process ends
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if flags.FLAGS.verbosity > 0 else logging.INFO)


def _tell_if_asked(ignored: "sys.UnraisableHookArgs") -> None:
    """Shows an exception that Python can only ignore, with --verbosity=1: it follows from an error that is told."""
    log.debug("ignored in %r: %r", ignored.object, ignored.exc_value)


def keep_compiled_programs() -> None:
    """Keeps what XLA compiles for the next run, unless JAX_COMPILATION_CACHE_DIR says where to."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "rgbd_jax" / "xla"))


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a config field that does not exist ends the program with one line, not with a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        detail = " ".join(str(error).strip("\"'").replace("\\n", " ").split())
        sys.exit(f"error: a --config. flag names a field that the config does not have: {detail}")
    except (TypeError, ValueError) as error:
        sys.exit(f"error: a --config. flag has a value that its field cannot take: {error}")
