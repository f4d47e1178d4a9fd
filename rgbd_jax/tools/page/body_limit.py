"""Requests that are too large are refused while they come in, before anything keeps them."""

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REST = 1_000_000  # bytes of a request beside its files
_PATIENCE = 20  # times the limit that is taken in and forgotten


class BodyLimit:
    """Refuses requests whose body is too large: Gradio's own limit is one of each file, of which there may be many.

    Args:
        app: what handles the other requests.
        size: bytes that the files of one request may have together.
        told: the limit in words.
    """

    def __init__(self, app: ASGIApp, size: int, told: str):
        self._app = app
        self._most = size + _REST
        self._told = f"The upload is too large: up to {told} are taken, all files together."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._most:
            await _discard(receive, _PATIENCE * self._most)
            await PlainTextResponse(self._told, status_code=413)(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:  # a body without an announced length
                raise HTTPException(413, self._told)
            return message

        await self._app(scope, counted, send)


async def _discard(receive: Receive, most: int) -> None:
    """Takes a body in and forgets it: browsers that are still sending do not read an answer."""
    came, more = 0, True
    while more and came <= most:
        message = await receive()
        came += len(message.get("body", b""))
        more = message.get("more_body", False)
