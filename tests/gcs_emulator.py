"""An emulator of Google Cloud Storage with one bucket, "bucket": python -m tests.gcs_emulator PORT FOLDER

While there is a file FOLDER/hold, an upload of an object whose name contains its text waits: for kills in between.
"""

import contextlib
import functools
import http.server
import re
import sys
import time
import urllib.parse
from pathlib import Path

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

OBJECT = re.compile(r"(?:/(?:download/)?storage/v1/b)?/([^/]+)/(?:o/)?(.+)")


class Handler(RequestHandler):
    """Adds what the emulator lacks: the last bytes of an object, its generation when read, conditional uploads."""

    generation = ""

    def do_GET(self):  # noqa: N802
        found = OBJECT.fullmatch(urllib.parse.unquote(urllib.parse.urlparse(self.path).path))
        with contextlib.suppress(NotFound, AttributeError):
            self.generation = self.storage.get_file_obj(*found.groups())["generation"]
            if last := re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range", "")):  # ArrayRecord begins with them
                size = len(self.storage.get_file(*found.groups()))
                self.headers.replace_header("Range", f"bytes={max(size - int(last[1]), 0)}-")
        super().do_GET()

    def end_headers(self):
        if self.generation:
            self.send_header("X-Goog-Generation", self.generation)
        super().end_headers()

    def do_POST(self):  # noqa: N802
        hold = Path(sys.argv[2], "hold")
        while hold.exists() and hold.read_text() in urllib.parse.unquote(self.path):
            (hold.parent / "held").touch()
            time.sleep(0.1)
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        if "name" in query and "ifGenerationMatch" in query:
            current = "0"
            with contextlib.suppress(NotFound):
                current = self.storage.get_file_obj("bucket", query["name"][0])["generation"]
            if query["ifGenerationMatch"] != [current]:
                self.send_error(412)
                return
        super().do_POST()


if __name__ == "__main__":
    storage = Storage(data_dir=str(Path(sys.argv[2]).absolute()))
    buckets.create_bucket("bucket", storage)
    handler = functools.partial(Handler, storage)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
