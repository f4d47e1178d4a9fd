"""Builds a data set: `python scripts/build_dataset.py rgbd_folder --raw_dir DIR --data_dir DIR`."""

import argparse
import sys
from pathlib import Path

from absl import logging

from datasets.build import BUILDERS, PreparedInfo, prepare


def main() -> int:
    """Builds what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Prepares a data set for training; does nothing if it is there.")
    parser.add_argument("dataset", choices=sorted(BUILDERS))
    parser.add_argument("--raw_dir", type=Path, help="where the raw clips lie (a generated data set has none)")
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="where prepared data sets lie (%(default)s)"
    )
    parser.add_argument("--skip_bad_clips", action="store_true", help="list bad clips and leave them out")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.INFO)
    try:
        info = prepare(**vars(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(info))
    return 0


def summary(info: PreparedInfo) -> str:
    """Returns one line on a prepared data set: splits, clips, classes, modalities, where it lies."""
    clips = ", ".join(f"{count} {split}" for split, count in info.clips.items())
    left_out = f", {len(info.left_out)} problems left out" if info.left_out else ""
    state = "built" if info.built else "was there already"
    return (
        f"{info.dataset} {state}: {clips} clips, {len(info.class_names)} classes, "
        f"{' and '.join(info.modalities)}{left_out}, in {info.directory}"
    )


if __name__ == "__main__":
    sys.exit(main())
