"""Command-line arguments that several tools share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from rgbd_jax.inference.trained import TrainedModel


NOT_FINITE = "the prediction is NaN: the weights are so large that the network overflows; use an earlier checkpoint"


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def add_trained_model(parser: argparse.ArgumentParser, *, positional: bool = False, default: str | None = None) -> None:
    """Adds the arguments that name a trained model; without a `default` it has to be named."""
    kinds = "a run, a converted checkpoint, a PyTorch or safetensors file, a registered name, "
    kinds += "or a URL with a checksum (https://...#sha256=...)"
    if positional:
        parser.add_argument("weights", metavar="WEIGHTS", help=kinds)
    else:
        kinds += f" (default: {default})" if default else ""
        parser.add_argument("--weights", required=default is None, default=default, metavar="WEIGHTS", help=kinds)
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="of a run (default: best)")
    config = "the experiment's config, which a run records and other files do not"
    parser.add_argument("--config", metavar="FILE[:MODALITY]", help=config)


def load_given_config(args: argparse.Namespace) -> "ConfigDict | None":
    """Loads the config that --config names, with its overrides; None without it."""
    from rgbd_jax.config import load_config  # seconds: not before --help

    if args.overrides and not args.config:
        raise ValueError(f"{args.overrides[0]} overrides a field of a config: pass --config too")
    return load_config(args.config, args.overrides) if args.config else None


def load_trained_model(args: argparse.Namespace) -> "TrainedModel":
    """Loads the model that the arguments name; errors are those of `load_trained`."""
    from rgbd_jax.inference.trained import load_trained

    return load_trained(args.weights, args.checkpoint, load_given_config(args))
