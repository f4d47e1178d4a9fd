"""Requests that are too large for the page are refused, whether they tell their length or not."""

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed (the extra 'demo'), nor is what it serves pages with")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rgbd_jax.tools.page.body_limit import BodyLimit

LARGEST = 3_000_000  # bytes: of files, and a million beside them


@pytest.fixture
def client():
    """Asks a server that says how many bytes came."""

    async def count(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    limited = BodyLimit(Starlette(routes=[Route("/", count, methods=["POST"])]), LARGEST - 1_000_000, "2 MB")
    with TestClient(limited) as asking:
        yield asking


@pytest.mark.parametrize("announced", [True, False])
def test_up_to_the_limit_everything_comes_through_and_nothing_beyond(client, announced):
    for size, status in ((0, 200), (LARGEST, 200), (LARGEST + 1, 413)):
        body = b"x" * size if announced else (part for part in [b"x" * size])
        answer = client.post("/", content=body)
        assert ("content-length" in answer.request.headers) == announced
        assert answer.status_code == status
        expected = str(size) if status == 200 else "The upload is too large: up to 2 MB are taken, all files together."
        assert answer.text == expected


def test_a_length_that_is_no_number_is_refused(client):
    answer = client.post("/", content=b"abc", headers={"content-length": "-1"})
    assert answer.status_code == 413
