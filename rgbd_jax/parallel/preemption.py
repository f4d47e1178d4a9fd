"""Requests to stop: SIGTERM from a scheduler that wants the machine back, Ctrl-C from a person."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit status of a preempted run that has saved: EX_TEMPFAIL of sysexits.h, "try again later"


class PreemptedError(Exception):
    """The run was preempted and has saved its state; the same command resumes it."""


class PreemptionSync:
    """Handles SIGTERM and SIGINT while it is entered: all processes stop at the same synchronisation point.

    In a group JAX handles SIGTERM and agrees on the point, which is a number: Orbax must not pass it others (see
    `checkpoints`). A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self._points = 0
        self._requested = False
        self._reached = False

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Returns whether to stop now; all processes must call it at the same synchronisation points."""
        self._points += 1
        if not jax.distributed.is_initialized():
            return self._requested
        self._reached |= multihost_utils.reached_preemption_sync_point(self._points)
        return self._reached

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)
