"""The command line: `rgbd COMMAND` or `python -m rgbd_jax COMMAND`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from rgbd_jax import console

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
MODES = ("train", "eval", "plan")  # commands that are modes of rgbd_jax.main


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; without one, or with --help, lists the commands."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words = 2 if argv[:1] == ["data"] else 1
    name = " ".join(argv[:words])
    if name not in COMMANDS:
        parser = argparse.ArgumentParser("rgbd", description=_help(), formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("command", help="one of the above; `rgbd COMMAND --help` shows its arguments")
        parser.parse_args(argv[:1] or ["--help"])
        parser.error(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
    module = importlib.import_module(COMMANDS[name][0])
    mode = [f"--mode={name}"] if name in MODES else []
    console.run(module, f"rgbd {name}", mode + argv[words:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"RGB-D motion recognition: training and trained networks.\n\n{commands}"


if __name__ == "__main__":
    main()
