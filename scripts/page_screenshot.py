"""Takes a picture of the page of a trained network with a clip on it: needs Playwright and a Chromium.

python scripts/page_screenshot.py --workdir runs/demo --out docs/demo_page.png
"""

import argparse
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_STARTED = 300.0  # seconds: loading and compiling a network of full size takes a minute or two
_ASKED = 120.0  # seconds


def open_page(browser: Browser, address: str, width: int, height: int, scale: float = 1.0) -> Page:
    """Opens the page in a window of a size in CSS pixels and waits until it can be used."""
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
    page.goto(address)
    page.locator("#ask").wait_for()
    return page


def recognise_example(page: Page, name: str | None = None) -> None:
    """Has the network look at the example whose name begins so, or at the chosen one, and waits for the result."""
    if name:
        page.locator("#example input").click()
        page.get_by_role("option", name=re.compile(f"^{re.escape(name)}")).first.click()
    page.locator("#ask-example").click()
    wait_for_result(page)


def recognise_files(page: Page, files: dict[str, list[Path]]) -> None:
    """Uploads files, modality -> files, has the network look at them, and waits for the result."""
    for modality, paths in files.items():
        page.locator(f"#clip-{modality} input[type=file]").set_input_files([str(path) for path in paths])
        page.locator(f"#clip-{modality}").get_by_text(paths[0].stem).first.wait_for()
    page.locator("#ask").click()
    wait_for_result(page)


def wait_for_result(page: Page) -> None:
    """Waits until the result is there and its videos can be played, or a message that there is none."""
    page.locator("#result article, #result [role=alert]").first.wait_for(timeout=1000 * _ASKED)
    page.wait_for_function("[...document.querySelectorAll('#result video')].every(each => each.readyState >= 3)")


def stop_videos(page: Page, share: float = 0.5) -> None:
    """Stops the videos of the result at a share of their length, so that pictures of them are alike."""
    page.evaluate(
        """async share => { for (const each of document.querySelectorAll('#result video')) {
            each.pause(); each.controls = false;
            await new Promise(done => { each.onseeked = done; each.currentTime = share * each.duration; });
        } }""",
        share,
    )


def main() -> None:
    """Shows the page, takes the picture and stops the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the trained network")
    parser.add_argument("--out", type=Path, required=True, help="the picture, *.png or *.jpg")
    parser.add_argument("--example", help="beginning of the name of an example clip (default: the first)")
    parser.add_argument("--rgb", type=Path, nargs="+", help="a clip in place of an example: its files")
    parser.add_argument("--depth", type=Path, nargs="+", help="the same, of depth")
    parser.add_argument(
        "--moment", type=float, default=0.5, help="share of the video that has been played (default: %(default)s)"
    )
    parser.add_argument("--width", type=int, default=1280, help="of the window, CSS pixels (default: %(default)s)")
    parser.add_argument("--dark", action="store_true", help="for a browser that asks for dark pages")
    arguments = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit(f"error: there is no {', '.join(BROWSERS)} on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rgbd_jax.demo", "--workdir", arguments.workdir, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                print(line, end="", file=sys.stderr)
                if found := re.search(r"ready at (\S+)", line):
                    break
            else:
                sys.exit("error: the page did not start")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
                page = open_page(browser, found[1] + ("?__theme=dark" if arguments.dark else ""), arguments.width, 900)
                files = {name: paths for name in ("rgb", "depth") if (paths := getattr(arguments, name))}
                if files:
                    recognise_files(page, files)
                else:
                    recognise_example(page, arguments.example)
                stop_videos(page, arguments.moment)
                page.mouse.move(0, 0)
                page.wait_for_timeout(500)  # what fades is gone
                page.screenshot(path=arguments.out, full_page=True)
                browser.close()
        finally:
            server.terminate()
    print(arguments.out)


if __name__ == "__main__":
    main()
