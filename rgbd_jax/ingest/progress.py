"""How far a build is: a bar on a terminal, a line in the log every minute elsewhere."""

import sys
import time

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts clips and says how many a second there are and how long the rest will take, on stderr.

    Args:
        what: what is done, such as "building rgbd_folder".
        total: number of clips.
        done: how many of them an earlier run has done; they do not count for the rate.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what, self._total, self._initial = what, total, done
        self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            desc=what, total=total, initial=done, unit="clip", disable=not sys.stderr.isatty(), smoothing=0.05
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused: object) -> None:
        self._bar.close()

    def __call__(self, clips: int = 1) -> None:
        """Counts `clips` more, or none: then only the time is looked at."""
        self._done += clips
        self._bar.update(clips)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            logging.info("%s", self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """Returns the state after `seconds` as one line."""
        rate = (self._done - self._initial) / seconds
        left = _duration((self._total - self._done) / rate) if rate else "an unknown time"
        return f"{self._what}: {self._done} of {self._total} clips, {rate:.3g} clips/s, {left} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    return f"{hours}{minutes % 60} min" if minutes else f"{seconds:.0f} s"
