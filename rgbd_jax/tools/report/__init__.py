"""The report of a run: one HTML page with metrics, charts and film strips that opens offline.

rgbd report runs/demo_fusion --compare runs/demo runs/demo_depth
"""

import argparse

from rgbd_jax.atomic_write import atomic_write
from rgbd_jax.storage import as_path
from rgbd_jax.tools.arguments import load_given_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add, kinds = parser.add_argument, "a run, a converted checkpoint (with --config), or a folder with scores/SPLIT.npz"
    add("workdir", metavar="W", help=f"{kinds}; without scores it is evaluated first")
    add("--out", metavar="FILE", help="the page (default: W/report.html)")
    add("--split", help="clips to report (default: the run's evaluation split, or validation)")
    add("--compare", nargs="+", default=[], metavar="W2", help="folders of other runs on the same clips")
    add("--errors", type=int, default=12, metavar="N", help="incorrect clips to show (default: %(default)s)")
    add("--correct", type=int, default=4, metavar="N", help="correct clips to show (default: %(default)s)")
    add("--config", help="config of a converted checkpoint, such as configs/nvgesture.py:depth")
    add("--data_dir", help="folder of the prepared data sets (default: as in the config)")


def run(args: argparse.Namespace) -> None:
    """Writes the page of a run and prints its path."""
    if min(args.errors, args.correct) < 0:
        raise ValueError("--errors and --correct are numbers of clips, at least 0")
    from rgbd_jax.tools.report.page import render  # these imports take seconds, --help should not
    from rgbd_jax.tools.report.source import read_source

    config = load_given_config(args)
    workdir, *others = map(as_path, (args.workdir, *args.compare))
    source = read_source(workdir, args.split, others, config, args.data_dir)
    page = render(source, errors=args.errors, correct=args.correct)
    out = as_path(args.out) if args.out else workdir / "report.html"
    with atomic_write(out, advice="give another --out") as unfinished:
        unfinished.write_text(page, "utf-8")
    print(f"{out}: {len(source.scores.names)} clips of {source.scores.split}, {len(page.encode()) / 1e6:.1f} MB")
