"""Draws some prepared clips as the network sees them: `python scripts/contact_sheet.py rgbd_demo --out sheet.png`."""

import argparse
import runpy
import sys
from pathlib import Path

import cv2
from absl import logging

from rgbd_jax.config import default_config
from rgbd_jax.data.source import open_split
from rgbd_jax.ingest.build import dataset_names
from rgbd_jax.modalities import STREAMS
from rgbd_jax.tools.contact_sheet import draw_contact_sheet


def main() -> int:
    """Draws what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Draws frames and heat maps of a random sample of prepared clips.")
    parser.add_argument("dataset", choices=dataset_names())
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="where prepared data sets lie (%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png or .jpg")
    parser.add_argument("--split", help="the split or a part of it (default: train, or the first protocol's)")
    parser.add_argument("--clips", type=int, default=6, help="number of clips (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="number of frames of a clip (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which clips (%(default)s)")
    parser.add_argument("--config", type=Path, help="configs/X.py, whose transforms are used (default: the paper's)")
    parser.add_argument("--augmented", action="store_true", help="use the training transform, not evaluation's")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        parser.error(f"--out is {arguments.out}; expected a name that ends in .png or .jpg")
    logging.set_verbosity(logging.WARNING)
    try:
        source = open_split(arguments.dataset, arguments.data_dir, arguments.split)
        stream = next(stream for stream, modalities in STREAMS.items() if modalities == source.modalities)
        get_config = runpy.run_path(str(arguments.config))["get_config"] if arguments.config else default_config
        sheet = draw_contact_sheet(
            source,
            get_config(stream),
            clips=arguments.clips,
            frames=arguments.frames,
            seed=arguments.seed,
            augmented=arguments.augmented,
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(cv2.imencode(arguments.out.suffix, sheet[..., ::-1])[1].tobytes())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {min(arguments.clips, len(source))} of {len(source)} clips of {source.split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
