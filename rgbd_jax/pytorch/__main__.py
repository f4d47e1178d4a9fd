"""The command line: `python -m rgbd_jax.pytorch IN OUT`."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Converts one checkpoint; prints what became of its tensors."""
    parser = argparse.ArgumentParser(
        prog="python -m rgbd_jax.pytorch",
        description="Converts checkpoints between the PyTorch reference and this package, both ways, without PyTorch.",
        epilog="A file is never run: anything but tensors and plain values in it is refused.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="*.pth.tar of the reference (zip or older format), safetensors, a converted checkpoint, or a workdir; "
        "what it is, is read from its content",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        type=Path,
        help="NAME.pth.tar (also .pth, .pt), NAME.safetensors, or a name without suffix: a converted checkpoint, for "
        "--config.init_from, --config.continue_from and --mode=eval",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "latest"),
        default="best",
        help="which checkpoint of a workdir is taken (default: %(default)s)",
    )
    arguments = parser.parse_args()
    # After the flags are read: importing takes seconds, --help should not.
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax warns of what it is meant to do: read only
    from rgbd_jax.pytorch import report
    from rgbd_jax.pytorch.converted import match_network
    from rgbd_jax.pytorch.files import read_weights, write_weights
    from rgbd_jax.pytorch.name_table import ConversionError

    try:
        trained = read_weights(arguments.source, arguments.checkpoint)
        try:
            network = match_network(trained)
        except ConversionError as error:
            raise ConversionError(f"{arguments.source}: {error}") from error
        write_weights(arguments.target, trained, network, str(arguments.source))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.source}: {report.describe(network.detected, trained)}")
    print(report.table(network.match, trained.left_out))
    print(f"written to {arguments.target}")


if __name__ == "__main__":
    main()
