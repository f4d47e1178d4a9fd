"""The page in a real browser: everything is drawn, no server is contacted, tables and menus work."""

import pytest
from rgbd_jax.configs import demo

from rgbd_jax.scores import scores_file
from rgbd_jax.tools.report.page import render
from rgbd_jax.tools.report.source import read_source
from tests.report.made_scores import made_scores

pytestmark = pytest.mark.optional

NOT_DRAWN = "[...document.querySelectorAll('.plotly-graph-div')].filter(c => !c.querySelector('.main-svg')).length"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of 40 classes that compares two runs; it has a config, but no clips."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed in (("one", 1), ("other", 2)):
        made_scores(900, 40, seed=seed).save(scores_file(folder / name, "validation"))
    config = demo.get_config()
    config.data.data_dir = str(folder)
    file = folder / "report.html"
    file.write_text(render(read_source(folder / "one", None, [folder / "other"], config)))
    return file.as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page in a window; in the end there must be no message and no request but that for the file."""
    pages, problems = [], []

    def open_page(width=1200, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [problem for problem in problems if not problem.startswith(("file:", "data:", "blob:"))] == []


def test_everything_is_drawn_in_both_themes(opened):
    page = opened(color_scheme="light")
    assert page.evaluate(NOT_DRAWN) == 0
    assert page.locator(".plotly-graph-div").count() == 10
    light = page.evaluate(BACKGROUND)
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(BACKGROUND) != light
    assert opened(color_scheme="dark").evaluate(BACKGROUND) == page.evaluate(BACKGROUND)


def test_a_phone_does_not_scroll_sideways(opened):
    page = opened(320, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.evaluate("document.getElementById('chart-scatter').layout.dragmode") is False


def column(page, number):
    return page.locator("#table-classes tbody tr:visible").evaluate_all(
        f"rows => rows.map(r => r.cells[{number}].innerText)"
    )


def test_tables_are_sorted_by_the_keyboard_and_searched(opened):
    page = opened()
    heads = page.locator("#table-classes thead th")
    for key, order in (("Enter", "descending"), ("Space", "ascending")):
        heads.nth(1).locator("button").press(key)
        clips = list(map(int, column(page, 1)))
        assert len(clips) == 40
        assert clips == sorted(clips, reverse=order == "descending")
        assert heads.nth(1).get_attribute("aria-sort") == order
    heads.first.locator("button").press("Enter")
    assert column(page, 0) == sorted(column(page, 0))
    assert heads.nth(1).get_attribute("aria-sort") is None
    page.locator("input[data-table=classes]").fill("gesture 03")
    expected = [f"gesture {label:03} of group {label // 6}" for label in range(30, 40)]
    assert [name for name in column(page, 0) if name.startswith("gesture 03")] == expected
    assert page.locator("#classes-count").inner_text() == f"{len(column(page, 0))} of 40"
