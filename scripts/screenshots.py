"""Makes the pictures of the documentation with a headless Chromium.

python scripts/screenshots.py report runs/demo --out docs/report.png
python scripts/screenshots.py page runs/demo --out docs/demo_page.png
"""

import argparse
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPORT_WIDTH, PAGE_WIDTH, GAP = 1440, 1120, 16  # pixels
LARGEST = 400_000  # bytes of a picture in the repository
# What the picture of a report shows, one below the other; no section with paths of the machine that made it.
REPORT_PARTS = (
    "#overview .tiles",
    "#overview .findings",
    "#curves .grid.two",
    "#confusion-card",
    "#clips .clip-list > .clip",
)
MOMENT = 0.12  # share of the page's videos that has been played: the evidence is on the hand
ASKED = 120.0  # seconds that the page has for a clip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Makes the picture that the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["report", "page"], help="what is pictured")
    parser.add_argument("workdir", type=Path, help="folder of a run; for its report, one that was evaluated")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() != ".png":
        parser.error(f"--out is {arguments.out}; expected a name that ends in .png")
    try:
        with chromium() as browser:
            picture = (report if arguments.what == "report" else page)(browser, arguments.workdir)
        encoded = reduced(picture)
        if len(encoded) > LARGEST:
            raise ValueError(f"{arguments.out} would have {len(encoded)} bytes, expected at most {LARGEST}")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(encoded)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {picture.shape[1]}x{picture.shape[0]}, {len(encoded) / 1000:.0f} kB")
    return 0


@contextlib.contextmanager
def chromium() -> "Iterator[Browser]":
    """Starts a browser without a window, and ends it.

    Raises:
        FileNotFoundError: there is none on the PATH.
    """
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"there is none of {', '.join(BROWSERS)} on the PATH: install one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def report(browser: "Browser", workdir: Path) -> np.ndarray:
    """Returns a picture of parts of a run's report, h w 3, blue first."""
    from absl import flags

    from rgbd_jax.tools.report.page import render
    from rgbd_jax.tools.report.source import read_source

    flags.FLAGS([sys.argv[0]])  # grain reads them
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(render(read_source(workdir, None), errors=1, right=0), "utf-8")
        opened = browser.new_page(viewport={"width": REPORT_WIDTH, "height": 900}, color_scheme="light")
        opened.goto(file.resolve().as_uri())
        opened.wait_for_selector("html[data-drawn]")
        parts = [opened.locator(part).first.screenshot() for part in REPORT_PARTS if opened.locator(part).count()]
    return below_each_other([decoded(part) for part in parts])


def page(browser: "Browser", workdir: Path) -> np.ndarray:
    """Returns a picture of the page to try a run, with its first example, h w 3, blue first."""
    with serving(workdir) as address:
        opened = browser.new_page(viewport={"width": PAGE_WIDTH, "height": 900}, color_scheme="light")
        opened.goto(address)
        opened.locator("#examples button").first.click()
        opened.locator("#predictions h2, .toast-wrap").first.wait_for(timeout=1000 * ASKED)
        opened.wait_for_function("[...document.querySelectorAll('video')].every(each => each.readyState >= 3)")
        opened.evaluate(
            """async share => { for (const each of document.querySelectorAll('video')) {
                each.pause(); each.controls = false;
                await new Promise(done => { each.onseeked = done; each.currentTime = share * each.duration; });
            } }""",
            MOMENT,
        )
        opened.mouse.move(0, 0)
        opened.wait_for_timeout(500)  # what fades is gone
        return decoded(opened.screenshot(full_page=True))


@contextlib.contextmanager
def serving(workdir: Path) -> Iterator[str]:
    """Serves the page of a run, gives its address, and stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rgbd_jax", "serve", "--workdir", str(workdir), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                print(line, end="", file=sys.stderr)
                if found := re.search(r"ready at (\S+)", line):
                    yield found[1]
                    return
            raise ValueError(f"the page of {workdir} did not start")
        finally:
            server.terminate()


def decoded(png: bytes) -> np.ndarray:
    """Returns what a PNG shows, h w 3, blue first."""
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))


def below_each_other(parts: list[np.ndarray]) -> np.ndarray:
    """Returns pictures below each other, on the ground of the page.

    Args:
        parts: h w 3, of any widths.
    """
    width = max(part.shape[1] for part in parts) + 2 * GAP
    ground = np.array([0xF9, 0xF6, 0xF4], np.uint8)  # the page's, blue first
    rows = []
    for part in parts:
        row = np.broadcast_to(ground, (part.shape[0] + GAP, width, 3)).copy()
        row[GAP:, GAP : GAP + part.shape[1]] = part
        rows.append(row)
    return np.concatenate([*rows, np.broadcast_to(ground, (GAP, width, 3))])


def reduced(picture: np.ndarray) -> bytes:
    """Returns a PNG whose colours have their last bits cut off, as the eye cannot tell: a third smaller."""
    cut = np.minimum(((picture.astype(np.int16) + 2) // 5) * 5, 255).astype(np.uint8)
    return cv2.imencode(".png", cut, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


if __name__ == "__main__":
    sys.exit(main())
