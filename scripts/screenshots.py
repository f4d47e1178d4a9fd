"""Makes the pictures of the documentation with a headless Chromium.

python scripts/screenshots.py report runs/demo --out docs/report.png
python scripts/screenshots.py page demo-fusion --out docs/demo_page.png
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

PORT = 7861
TIME = 0.6  # seconds into the page's videos
MAX_BYTES = 400_000  # of a picture in the repository
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RGBD = [sys.executable, "-m", "rgbd_jax"]
# Parts of the report that are not pictured; paths of the machine that made it are among them.
HIDDEN = """header, nav, footer, section > h2, #explanations, #heads, #comparison, #overview > :not(.tiles, #findings),
#training > :not(:nth-child(2)), #classes > :not(figure:first-of-type), #clips > :not(.clip:first-of-type)"""


def main() -> None:
    """Makes the picture that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["report", "page"], help="what is pictured")
    parser.add_argument("workdir", type=Path, help="folder of an evaluated run, or what `rgbd serve` serves")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .png")
    args = parser.parse_args()
    try:
        executable = next(filter(None, map(shutil.which, BROWSERS)), None)
        if executable is None:
            raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is on the PATH: install one")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            width, take = (1440, report) if args.what == "report" else (1120, page)
            take(
                browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light"), args.workdir, args.out
            )
            browser.close()
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    # The last two bits of a colour are not visible, and a third of the file.
    cv2.imwrite(str(args.out), np.asarray(cv2.imread(str(args.out))) | np.uint8(3), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if args.out.stat().st_size > MAX_BYTES:
        sys.exit(f"error: {args.out} has {args.out.stat().st_size} bytes, expected at most {MAX_BYTES}")


def report(tab: Page, workdir: Path, out: Path) -> None:
    """Pictures parts of a run's report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        subprocess.run([*RGBD, "report", str(workdir), "--errors=1", "--correct=0", f"--out={file}"], check=True)
        tab.goto(file.as_uri())
        tab.add_style_tag(content=f"{HIDDEN} {{ display: none !important; }} .layout {{ display: block; }}")
        tab.evaluate("dispatchEvent(new Event('resize'))")  # the charts fill the page
        tab.wait_for_timeout(1000)
        tab.screenshot(path=out, full_page=True)


def page(tab: Page, workdir: Path, out: Path) -> None:
    """Pictures the demo page of a run with the predictions for its first example."""
    command = [*RGBD, "serve", "--weights", str(workdir), f"--port={PORT}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            if not any("ready at" in line for line in server.stderr or ()):
                raise ValueError(f"the page of {workdir} did not start")
            tab.goto(f"http://127.0.0.1:{PORT}")
            tab.locator("#examples button, #examples td").first.click()
            tab.locator("video").first.wait_for(timeout=120_000)
            stop = f"v => {{ v.pause(); v.currentTime = {TIME}; }}"
            tab.evaluate(f"document.querySelectorAll('video').forEach({stop})")
            tab.wait_for_timeout(1000)  # the frames are decoded, and nothing fades any more
            tab.screenshot(path=out, full_page=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
