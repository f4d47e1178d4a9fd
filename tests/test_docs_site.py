"""The documentation as a site: it builds without a warning and needs nothing from other machines."""

import html
import re
import subprocess
import sys

import pytest
from flax.traverse_util import flatten_dict

import rgbd_jax
from rgbd_jax.config import default_config
from tests.conftest import ROOT

pytestmark = pytest.mark.optional
LOADED = re.compile(r"""<(?:script|img|iframe|link (?!rel="canonical"))[^>]*\b(?:src|href)="?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="./scripts/test.sh --docs installs MkDocs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_other_machines(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not LOADED.findall(page.read_text()), page


def test_every_config_field_is_listed_with_its_default_and_comment(site):
    page = html.unescape((site / "reference" / "config.html").read_text())
    parts = dict(re.findall(r'<h[12] id="([\w-]+)">(.*?)(?=<h2|</article)', page, re.DOTALL))
    for name, value in flatten_dict(default_config().to_dict(), sep=".").items():
        part, _, field = name.rpartition(".")
        section = parts[f"config{part.replace('.', '')}" if part else "config-fields"]
        row = f"<td><code>{field}</code></td>\n<td><code>{value!r}</code></td>\n<td>"
        assert row in section, name
        assert not section.partition(row)[2].startswith("</td>"), f"{name} has no comment"


def test_the_api_page_has_every_name_with_its_description(site):
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "api.html").read_text())
    for name in rgbd_jax.__all__:
        summary = str(getattr(rgbd_jax, name).__doc__).split("\n")[0].replace("`", "")
        assert summary in html.unescape(page), name
