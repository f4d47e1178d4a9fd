"""Makes the pictures of the documentation: `python scripts/screenshots.py report runs/demo --out docs/report.png`."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

WIDTH, GAP = 1440, 16  # pixels
LARGEST = 400_000  # bytes of a picture in the repository
# What the picture of a report shows, one below the other; no section with paths of the machine that made it.
REPORT_PARTS = (
    "#overview .tiles",
    "#overview .findings",
    "#curves .grid.two",
    "#confusion-card",
    "#clips .clip-list > .clip",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Makes the picture that the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the pictures of the documentation with a headless browser.")
    parser.add_argument("page", choices=["report"], help="the page that is pictured")
    parser.add_argument("workdir", type=Path, help="folder of a run that was evaluated")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() != ".png":
        parser.error(f"--out is {arguments.out}; expected a name that ends in .png")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"error: none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            page.write_text(_report(arguments.workdir), "utf-8")
            picture = below_each_other(_parts(page, browser))
        encoded = _reduced(picture)
        if len(encoded) > LARGEST:
            raise ValueError(f"{arguments.out} would have {len(encoded)} bytes, expected at most {LARGEST}")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(encoded)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {picture.shape[1]}x{picture.shape[0]}, {len(encoded) / 1000:.0f} kB")
    return 0


def _report(workdir: Path) -> str:
    from absl import flags

    from rgbd_jax.report.page import render
    from rgbd_jax.report.source import read_source

    flags.FLAGS([sys.argv[0]])  # grain reads them
    return render(read_source(workdir, None), errors=1, right=0)


def _parts(page: Path, browser: str) -> list[np.ndarray]:
    """Returns pictures of parts of a report, h w 3, blue first."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = window.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        opened.wait_for_selector("html[data-drawn]")
        taken = [opened.locator(part).first.screenshot() for part in REPORT_PARTS if opened.locator(part).count()]
        window.close()
    return [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) for png in taken]


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


def _reduced(picture: np.ndarray) -> bytes:
    """Returns a PNG whose colours have their last bits cut off, as the eye cannot tell: a third smaller."""
    cut = np.minimum(((picture.astype(np.int16) + 2) // 5) * 5, 255).astype(np.uint8)
    return cv2.imencode(".png", cut, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


if __name__ == "__main__":
    sys.exit(main())
