"""The command line: `python -m rgbd_jax.tools.report WORKDIR [--compare WORKDIR ...]`."""

import argparse
import sys
from pathlib import Path

from rgbd_jax.atomic_write import atomic_write


def main() -> None:
    """Writes the page of a run; prints where it lies."""
    parser = argparse.ArgumentParser(
        prog="python -m rgbd_jax.tools.report",
        description="Writes one HTML page about a run: how it trained, which classes and clips it gets wrong, and "
        "where it looked. The page needs neither network nor server.",
        epilog="example: python -m rgbd_jax.tools.report runs/demo_fusion --compare runs/demo runs/demo_depth",
    )
    parser.add_argument(
        "workdir", metavar="W", type=Path,
        help="folder of a run, a converted checkpoint (with --config), or a folder with scores/SPLIT.npz alone; "
        "without scores the run is evaluated first",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: W/report.html)")
    parser.add_argument("--split", help="clips to report (default: the run's evaluation split, or validation)")
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="W2", help="folders of other runs on the same clips"
    )
    parser.add_argument(
        "--errors", type=int, default=12, metavar="N", help="wrong clips to show (default: %(default)s)"
    )
    parser.add_argument("--right", type=int, default=4, metavar="N", help="right clips to show (default: %(default)s)")
    parser.add_argument(
        "--config", metavar="FILE[:STREAM]", help="config of a converted checkpoint, such as configs/nvgesture.py:depth"
    )
    parser.add_argument("--data_dir", type=Path, help="where prepared data sets lie (default: as the config says)")
    arguments = parser.parse_args()
    if min(arguments.errors, arguments.right) < 0:
        parser.error("--errors and --right are numbers of clips: 0 or more")
    out = arguments.out or arguments.workdir / "report.html"
    # After the flags are read: importing takes seconds, --help should not.
    from absl import flags, logging  # noqa: F401  (defines --verbosity)

    from rgbd_jax import console

    flags.FLAGS([parser.prog])
    console.log_to_stderr()
    console.keep_compiled_programs()
    from rgbd_jax.tools.report.source import read_config_file, read_source

    try:
        config = read_config_file(arguments.config) if arguments.config else None
        source = read_source(arguments.workdir, arguments.split, arguments.compare, config, arguments.data_dir)
        from rgbd_jax.tools.report.page import render

        write(out, render(source, errors=arguments.errors, right=arguments.right))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{out}: {len(source.scores.names)} clips of {source.scores.scores[0].split}, {out.stat().st_size / 1e6:.1f} MB"
    )


def write(out: Path, page: str) -> None:
    """Writes a page whole or not at all; makes its folder.

    Raises:
        OSError: it cannot be written; names the file.
    """
    with atomic_write(out, advice="give another --out") as unfinished:
        unfinished.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
