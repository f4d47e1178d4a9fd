"""The page in a real browser: everything is drawn, nothing is asked of a server, and the keyboard is enough."""

import shutil

import pytest
from rgbd_jax.configs import demo

from rgbd_jax.scores import scores_file
from rgbd_jax.tools.report.page import render
from rgbd_jax.tools.report.source import read_source
from tests.report.made_scores import made_scores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.optional, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

LOCAL = ("file:", "data:", "blob:")
DRAWN = "html[data-drawn]"
NOT_DRAWN = "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('svg.main-svg')).map(c => c.id)"
UNNAMED = """[...document.querySelectorAll('button, select, input, [tabindex="0"]')].filter(
    x => !(x.labels?.length || x.getAttribute('aria-label') || x.textContent.trim())).length"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of 40 classes that compares two runs; the config is that of the demo, the clips are not there."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed in (("one", 1), ("other", 2)):
        made_scores(900, 40, seed=seed).save(scores_file(folder / name, "validation"))
    file = folder / "report.html"
    config = demo.get_config()
    config.data.data_dir = str(folder)  # where no clips are
    file.write_text(render(read_source(folder / "one", None, [folder / "other"], config)))
    return file.as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page in a window; errors and requests of it are noted in `page.wrong`."""
    pages = []

    def open_page(width=1200, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.wrong = []
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda asked: page.wrong.append(asked.url) if not asked.url.startswith(LOCAL) else None)
        page.goto(address)
        page.wait_for_selector(DRAWN, timeout=60_000)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_without_errors(opened, scheme):
    page = opened(color_scheme=scheme)
    assert page.evaluate(NOT_DRAWN) == []
    assert page.locator(".chart").count() == page.locator("script[data-chart]").count() >= 9
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.locator("#chart-confusion .heatmaplayer image, #chart-confusion .heatmaplayer path").count() > 0
    page.locator("#theme").press("Enter")  # light
    page.locator("#theme").press("Enter")  # dark
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.wrong == []


@pytest.mark.parametrize("width", [375, 320])
def test_a_phone_does_not_scroll_sideways(opened, width):
    page = opened(width, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(NOT_DRAWN) == []
    page.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.wrong == []


def column(page, table, number):
    return page.locator(f"#{table} tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{number}].textContent)")


def test_tables_are_sorted_by_the_keyboard(opened):
    page = opened()
    button = page.locator("#table-classes thead button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    clips = [int(text.replace("\u202f", "")) for text in column(page, "table-classes", 1)]
    assert len(clips) == 40
    assert clips == sorted(clips, reverse=True)
    head = page.locator("#table-classes thead th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert [int(text.replace("\u202f", "")) for text in column(page, "table-classes", 1)] == sorted(clips)
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator("#table-classes thead button").first.press("Enter")
    names = column(page, "table-classes", 0)
    assert names == sorted(names)
    assert head.get_attribute("aria-sort") is None


def test_tables_are_searched(opened):
    page = opened()
    page.locator("input[data-table=table-classes]").fill("gesture 03")
    shown = page.locator("#table-classes tbody tr:visible th").all_inner_texts()
    assert sorted(shown) == [f"gesture {label:03} of group {label // 6}" for label in range(30, 40)]
    assert page.locator("#table-classes-found").inner_text() == "10 of 40"


def test_the_confusion_matrix_is_ordered_and_cut(opened):
    page = opened()
    values = "document.getElementById('chart-confusion').data[0].z"
    extra = page.evaluate("charts.drawn['chart-confusion'].extra")
    assert page.evaluate(values)[0][0] is None  # of many classes the errors alone are shown first
    page.locator("#confusion-controls [name=errors]").uncheck()
    page.locator("#confusion-controls [name=values]").select_option("counts")
    page.locator("#confusion-controls [name=first]").select_option("10")
    for order in ("class", "error", "clips"):
        page.locator("#confusion-controls [name=order]").select_option(order)
        page.wait_for_timeout(100)
        chosen = extra["orders"][order][:10]
        assert page.evaluate(values) == [[extra["counts"][row][column] for column in chosen] for row in chosen]
    page.locator("#confusion-controls [name=values]").select_option("shares")
    page.locator("#confusion-controls [name=first]").select_option("0")
    page.wait_for_timeout(100)
    for row, label in zip(page.evaluate(values), extra["orders"]["clips"], strict=True):
        assert sum(row) == pytest.approx(1 if sum(extra["counts"][label]) else 0)
    assert page.wrong == []


def test_the_first_stop_of_the_keyboard_leads_to_the_report(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.evaluate(UNNAMED) == 0
