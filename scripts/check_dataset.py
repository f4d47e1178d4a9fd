"""Checks raw clips, and what was built from them: `python scripts/check_dataset.py rgbd_folder --raw_dir DIR`.

Prints a table of the splits and every problem with its file and line. The exit status is 1 if there is a problem or a
difference, 2 if there is nothing to check.
"""

import argparse
import collections
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from rgbd_jax.data.source import prepared_directory
from rgbd_jax.data.splits import REFERENCE_SHORT
from rgbd_jax.ingest.build import BUILDERS
from rgbd_jax.ingest.check import RawCheck, check_raw, compare
from rgbd_jax.ingest.problems import KINDS
from rgbd_jax.ingest.progress import Progress

_UNKNOWN_SPLIT = "(no split)"
_SHORT_CLIPS = 20  # that are listed


def main() -> int:
    """Checks what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Checks raw clips, and what was built from them.")
    parser.add_argument("dataset", choices=sorted(set(BUILDERS) - {"rgbd_demo"}))
    parser.add_argument("--raw_dir", type=Path, required=True, help="where the raw clips lie")
    parser.add_argument("--data_dir", type=Path, help="compare with the data set that is prepared there")
    parser.add_argument("--decode", action="store_true", help="decode every frame; otherwise headers alone are read")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one a core)")
    parser.add_argument("--all", action="store_true", help=f"list every short clip, not only the first {_SHORT_CLIPS}")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.INFO)
    raw_dir = arguments.raw_dir.expanduser()
    progress = functools.cache(functools.partial(Progress, f"checking {arguments.dataset}"))
    try:
        check = check_raw(
            arguments.dataset,
            raw_dir,
            decode=arguments.decode,
            workers=arguments.workers,
            on_clips=lambda clips, total: progress(total)(clips),
        )
        print("\n".join(report(check, decoded=arguments.decode, every_short_clip=arguments.all)))
        logging.set_verbosity(logging.WARNING)
        differences: list[str] = []
        if arguments.data_dir:
            directory = prepared_directory(arguments.dataset, arguments.data_dir)
            if directory is None:
                raise FileNotFoundError(f"{arguments.dataset} is not prepared in {arguments.data_dir}")
            differences, notes = compare(check, directory)
            print(f"\n{directory}: {len(differences)} differences from the raw data")
            print("\n".join(f"  {line}" for line in [*differences, *notes]), end="\n" if differences or notes else "")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if check.problems or differences else 0


def report(check: RawCheck, *, decoded: bool, every_short_clip: bool) -> list[str]:
    """Returns what was found in raw data as lines: a table of the splits, the problems, the notes."""
    found = collections.Counter((problem.split, problem.kind) for problem in check.problems)
    splits = dict.fromkeys([*check.good, *(problem.split for problem in check.problems)])
    rows: list[list[str]] = [["split", "good clips", "frames", *KINDS, "too short"]]
    for split in splits:
        counts = [len(check.good.get(split, ())), check.frames.get(split, 0), *(found[split, kind] for kind in KINDS)]
        rows.append([split or _UNKNOWN_SPLIT, *map(str, [*counts, len(check.short.get(split, ()))])])
    short = [note for notes in check.short.values() for note in notes]
    how = "every frame was decoded" if decoded else "no frame was decoded (--decode does)"
    lines = [*_table(rows), "", f"{len(check.problems)} problems; {how}"]
    lines += [f"  {problem.kind}: {problem}" for problem in check.problems]
    if short or check.notes:
        lines += ["", f"Notes, no faults (clips of at most {REFERENCE_SHORT} frames are short)"]
        listed = short if every_short_clip else short[:_SHORT_CLIPS]
        lines += [f"  {note}" for note in [*check.notes, *listed]]
        if len(short) > len(listed):
            lines.append(f"  and {len(short) - len(listed)} more short clips (--all lists them)")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
