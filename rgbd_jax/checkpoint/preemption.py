"""Requests to stop: SIGTERM from a scheduler that wants the machine back, Ctrl-C from a person."""

import signal
from types import FrameType, TracebackType

from rgbd_jax.parallel import distributed
from rgbd_jax.parallel.preemption_sync import Agreement

# Status of a run that was asked to stop and has saved: "try again later" (EX_TEMPFAIL of sysexits.h).
PREEMPTED = 75


class PreemptedError(Exception):
    """The run was asked to stop and has saved its state; the same command goes on from there."""


class StopRequests:
    """Tells, between two steps, whether the run has been asked to stop; handles SIGTERM and the first SIGINT meanwhile.

    In a group all processes are told at the same moment, whichever of them was asked.
    """

    def __init__(self) -> None:
        self._received = False
        self._agreement: Agreement | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        self._agreement = distributed.agreement()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._agreement:
            self._agreement.end()

    def received(self) -> bool:
        """Returns whether the run is to stop now; in a group all processes have to call it at the same moments."""
        return self._agreement.reached() if self._agreement else self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: at once
        self._received = True
        if self._agreement:
            self._agreement.ask()
