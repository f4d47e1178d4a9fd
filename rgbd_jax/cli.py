"""The command line, `rgbd COMMAND` or `python -m rgbd_jax COMMAND`: arguments, logs to stderr, errors in one line."""

import argparse
import difflib
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

from rgbd_jax.printable import printable
from rgbd_jax.storage import is_service_error

# Command -> (module, one-line help). Modules are imported when their command is run.
COMMANDS = {
    "train": ("rgbd_jax.main", "train an experiment, or resume it"),
    "eval": ("rgbd_jax.main", "evaluate a run or a converted checkpoint"),
    "plan": ("rgbd_jax.main", "what a training step costs, as the compiler estimates it"),
    "predict": ("rgbd_jax.tools.predict", "classify clips"),
    "stream": ("rgbd_jax.tools.stream", "classify a camera or another stream at intervals"),
    "report": ("rgbd_jax.tools.report", "write a report of a run as one HTML page"),
    "serve": ("rgbd_jax.tools.serve", "serve a page to try a trained network"),
    "export": ("rgbd_jax.tools.export", "export a trained network to StableHLO or ONNX"),
    "convert": ("rgbd_jax.pytorch.convert", "convert checkpoints from and to PyTorch"),
    "fuse": ("rgbd_jax.tools.fuse", "late (score-level) fusion of evaluated runs"),
    "data build": ("rgbd_jax.ingest.build", "prepare a data set from raw clips"),
    "data check": ("rgbd_jax.ingest.check", "check raw clips or a prepared data set"),
    "data preview": ("rgbd_jax.tools.preview", "draw clips of a prepared data set as the network sees them"),
    "completion": ("rgbd_jax.tools.completion", "print a script that completes commands and arguments in a shell"),
}

RUNNABLE = ("rgbd_jax.main", "rgbd_jax.__main__")  # with `python -m`

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
        parser.parse_known_args(argv[:words] or ["--help"])
        parser.error(f"there is no command {name!r}; {_suggestion(name)}")
    module = COMMANDS[name][0]
    mode = [f"--mode={name}"] if module == "rgbd_jax.main" else []
    run(importlib.import_module(module), f"rgbd {name}", mode + argv[words:])


def refuse_module(module: str) -> None:
    """Ends the process that was started as `python -m MODULE` if the module is no command."""
    if module.startswith("rgbd_jax.") and module not in RUNNABLE:
        name = module.rpartition(".")[2]
        sys.exit(f"error: {module} is not a command; {_suggestion(name, 'python -m rgbd_jax ')}")


def _suggestion(name: str, prefix: str = "rgbd ") -> str:
    words = [command for command in COMMANDS if name in command.split()]
    if close := words or difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5):
        return f"did you mean `{prefix}{close[0]}`?"
    return f"choose from {', '.join(COMMANDS)}"


def run(command: ModuleType, prog: str, argv: Sequence[str]) -> None:
    """Runs a module's `run(args)` with arguments parsed by its `add_arguments(parser)`; errors end the process.

    Its ValueError or OSError is a message for the user. The module's docstring is the help. `--config.FIELD=VALUE`
    overrides a field where the command takes `--config`.
    """
    parser = argparse.ArgumentParser(
        prog, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser, command)
    args, overrides = parser.parse_known_args(argv)
    unknown = [argument for argument in overrides if not argument.startswith("--config.")]
    if unknown or (overrides and not hasattr(args, "config")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    args.overrides = overrides
    if getattr(args, "mode", "") == "train":
        # Until the training handles it. Launchers start it again after this status, which is `PREEMPTED`; an exception
        # would be swallowed by the imports that try one package after another.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))
    _set_up(args.verbose)
    try:
        command.run(args)
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()  # here, where a full disk is an error
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not isinstance(error, ValueError | OSError | ArithmeticError | MemoryError) and not is_service_error(error):
            raise
        log.debug("traceback:", exc_info=True)
        sys.exit(printable(f"error: {error}", keep="\n"))


def add_arguments(parser: argparse.ArgumentParser, command: ModuleType) -> None:
    """Adds the arguments of a command, and those that every command has."""
    command.add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="log details and tracebacks of errors")


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
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")
