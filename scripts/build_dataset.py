"""Builds a data set: `python scripts/build_dataset.py rgbd_folder --raw_dir DIR --data_dir DIR`.

A build that was killed goes on when it is started again. With `--beam_runner` Apache Beam writes the shards; options
that are not known here go to Beam: `--beam_runner FlinkRunner --flink_master HOST:8081`.
"""

import argparse
import sys
from pathlib import Path

from absl import logging

from rgbd_jax.ingest.build import BUILDERS, PreparedInfo, prepare
from rgbd_jax.ingest.runners import BeamRunner, LocalRunner, Runner


def main() -> int:
    """Builds what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Prepares a data set for training; does nothing if it is there.")
    parser.add_argument("dataset", choices=sorted(BUILDERS))
    parser.add_argument("--raw_dir", type=Path, help="where the raw clips lie (a generated data set has none)")
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="where prepared data sets lie (%(default)s)"
    )
    parser.add_argument("--skip_bad_clips", action="store_true", help="list bad clips and leave them out")
    parser.add_argument("--workers", type=_positive, help="processes that read raw clips (default: one a core)")
    parser.add_argument("--beam_runner", help="read raw clips with this runner of Apache Beam, such as DirectRunner")
    arguments, beam_options = parser.parse_known_args()
    if beam_options and not arguments.beam_runner:
        parser.error(f"unrecognized arguments: {' '.join(beam_options)}")
    if arguments.workers and arguments.beam_runner:
        parser.error("--workers is for this machine; Beam's runner has options of its own")
    runner: Runner | None = LocalRunner(arguments.workers) if arguments.workers else None
    if arguments.beam_runner:
        runner = BeamRunner((f"--runner={arguments.beam_runner}", *beam_options))
    logging.set_verbosity(logging.INFO)
    try:
        info = prepare(
            arguments.dataset,
            data_dir=arguments.data_dir,
            raw_dir=arguments.raw_dir,
            skip_bad_clips=arguments.skip_bad_clips,
            runner=runner,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(summary(info))
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


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
