"""The moment at which all processes of a group stop, when one of them is asked to.

JAX has such an agreement too (`reached_preemption_sync_point`), but Orbax asks it as well, in every save and with
numbers of its own: a signal that comes then can be agreed on for a moment that is over already, and is missed.
"""

import itertools
import logging
import threading
import time
from typing import Any

_STOP, _OVER = "rgbd_jax/stop", "over"
_INTERVAL_ONCE_ASKED = 0.1
_LONGEST_END = 10  # seconds: a group that has fallen apart may not answer
_numbers = itertools.count()  # an agreement is the same one in all processes, which make them in the same order

log = logging.getLogger("rgbd_jax")


class Agreement:
    """Makes all processes of a group stop at the same one of the moments that all of them pass in the same order.

    A thread looks whether this process or another one has been asked. If so it tells how many moments this process has
    passed, and no further one is passed until every process has told; the moment after the latest of them is the one.

    Args:
        client: the group's key-value store.
        index: this process.
        count: number of processes.
        interval: seconds between two looks at the others.
    """

    def __init__(self, client: Any, index: int, count: int, interval: float):
        self._client, self._index, self._count, self._interval = client, index, count, interval
        self._folder = f"{_STOP}/{next(_numbers)}/"
        self._passed = 0
        self._stop_after: float = float("inf")
        self._agreeing = False
        self._asked = False
        self._ended = threading.Event()
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._agree, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Asks all processes to stop; may be called by a signal handler."""
        self._asked = True

    def reached(self) -> bool:
        """Returns whether this moment is the one at which all stop, or a later one."""
        with self._turn:
            self._turn.wait_for(lambda: not self._agreeing)
            if self._passed >= self._stop_after:
                return True
            self._passed += 1
            return False

    def end(self) -> None:
        """Tells that this process has passed its last moment."""
        self._ended.set()
        self._thread.join(_LONGEST_END)

    def _agree(self) -> None:
        try:
            while not (told := self._told()) and not self._asked and not self._ended.is_set():
                self._ended.wait(self._interval)
            with self._turn:
                self._agreeing = True
            self._tell(_OVER if self._ended.is_set() else str(self._passed))
            while len(told) < self._count and _OVER not in told.values():
                time.sleep(_INTERVAL_ONCE_ASKED)
                told = self._told()
            if _OVER not in told.values():  # else the others are about to come to their end too
                self._stop_after = max(int(passed) for passed in told.values())
        except Exception:  # the group is falling apart, which its watch tells
            log.debug("no agreement", exc_info=True)
        finally:
            with self._turn:
                self._agreeing = False
                self._turn.notify_all()

    def _told(self) -> dict[str, str]:
        return dict(self._client.key_value_dir_get(self._folder))

    def _tell(self, passed: str) -> None:
        self._client.key_value_set(f"{self._folder}{self._index}", passed)
