"""Refuses requests that are too large before their files are kept: Gradio limits each file, not all of them."""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OVERHEAD = 1_000_000  # bytes of a request beside its files


class BodyLimit:
    """Middleware that answers 413 to a request that announces more than `size` bytes, or does not announce its length.

    Servers read no more of a request than it announces.
    """

    def __init__(self, app: ASGIApp, size: int):
        self._app = app
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        known = b"transfer-encoding" not in headers and length.isdigit()
        if scope["type"] != "http" or (known and int(length) <= self._size + OVERHEAD):
            await self._app(scope, receive, send)
            return
        # Browsers read no answer before they have sent the whole body; it is dropped as it comes.
        while known and (await receive()).get("more_body"):
            pass
        text = f"The upload is too large: up to {self._size >> 20} MB are accepted, all files together."
        await PlainTextResponse(text, status_code=413)(scope, receive, send)
