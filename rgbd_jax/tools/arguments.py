"""Command-line arguments that several tools share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgbd_jax.inference.trained import TrainedModel


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def add_trained_model(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a trained model."""
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="PATH",
        help="a run, a converted checkpoint, or a PyTorch or safetensors file",
    )
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="which checkpoint of a run")
    parser.add_argument(
        "--config",
        metavar="FILE[:MODALITY]",
        help="the experiment's config, which a run records and other files do not",
    )


def load_trained_model(args: argparse.Namespace) -> "TrainedModel":
    """Loads the model that the arguments name.

    Raises:
        FileNotFoundError: there is no such path, or no checkpoint yet.
        ValueError: the config or the checkpoint cannot be used.
    """
    from rgbd_jax.config import load_config  # seconds: not before --help
    from rgbd_jax.inference.trained import load_trained

    if args.overrides and not args.config:
        raise ValueError(f"{args.overrides[0]} overrides a field of a config: pass --config too")
    config = load_config(args.config, args.overrides) if args.config else None
    return load_trained(args.workdir, args.checkpoint, config)
