"""Pages of the site that MkDocs makes of the sources: config fields, API, data sets, tutorial, and linked files."""

import importlib
import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rgbd_jax.config import default_config

ROOT = Path(__file__).resolve().parents[1]
# Pages outside docs/ and their places in the site.
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
MOVED |= {
    f"datasets/{name}/README.md": f"datasets/{name}.md"
    for name in (x.parent.name for x in ROOT.glob("datasets/*/*.md"))
}
# What an extension uses, beside the names that the package itself has.
INTERFACES = """models.family.Family models.family.ClipInput models.family.Output models.family.Intermediates
model.Model ingest.builder.RawClipsBuilder ingest.discovery.RawClips ingest.clip_files.ClipSpec"""
LINK = re.compile(r"(?<=\]\()(?!https?:|data:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FIELD = re.compile(r"^    config\.([\w.]+) = (?:(ConfigDict\(\))|.*?)(?:  # (.*))?$", re.MULTILINE)


def config_page() -> str:
    """Returns a table of all config fields for each part of the config: defaults and comments of `config.py`."""
    config, header = default_config(), "\n| field | default | |\n| --- | --- | --- |"
    lines = ["# Config fields", "Defaults; a flag overrides any field: `--config.train.batch_size=16`.", header]
    for name, section, comment in FIELD.findall((ROOT / "rgbd_jax/config.py").read_text()):
        if section:
            lines += [f"\n## config.{name}", f"\n{comment[:1].upper()}{comment[1:]}." if comment else "", header]
        else:
            lines.append(f"| `{name.rpartition('.')[2]}` | `{config[name]!r}` | {comment} |")
    return "\n".join(lines)


def api_page() -> str:
    """Returns the page that mkdocstrings fills with the package's names and the interfaces of its parts."""
    names = importlib.import_module("rgbd_jax").__all__
    public = [f"::: rgbd_jax.{name}" for name in sorted(names, key=lambda name: (name[0].isupper(), name))]
    interfaces = [f"::: rgbd_jax.{name}" for name in INTERFACES.split()]
    return "\n\n".join(["# Python API", "## Package", *public, "## Interfaces for extensions", *interfaces])


def source_page(path: str) -> str:
    """Returns a page that shows a file of the checkout."""
    language = Path(path).suffix.removeprefix(".") or "sh"
    return f"# {path}\n\n``````{language}\n{(ROOT / path).read_text()}\n``````"


def notebook_page(path: Path) -> str:
    """Returns a notebook as a page: its texts, code, printed outputs and JPEG pictures."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = {"text/plain": output.get("text", ""), **output.get("data", {})}
            if picture := data.get("image/jpeg"):
                parts.append(f"![output](data:image/jpeg;base64,{''.join(''.join(picture).split())})")
            elif text := "".join(data["text/plain"]).strip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/, among them one for each file that a page links."""
    pages = {place: (ROOT / path).read_text() for path, place in MOVED.items()}
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {path: pages[place] for path, place in MOVED.items()}
    pages["tutorial.md"] = texts["docs/tutorial.md"] = notebook_page(ROOT / "docs/tutorial.ipynb")
    targets = {
        posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        for path, text in texts.items()
        for link, _ in LINK.findall(text)
    }
    for path in sorted(targets):
        if path not in MOVED and not path.startswith("docs/") and (ROOT / path).is_file():
            pages[place_of(path)] = source_page(path)
    pages |= {"reference/config.md": config_page(), "reference/api.md": api_page()}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def place_of(path: str) -> str:
    """Returns the place in the site of a file of the checkout."""
    if path.startswith("docs/"):
        name = path.removeprefix("docs/").replace(".ipynb", ".md")
        return name if name != "README.md" else "index.md"  # the site has its own contents
    return MOVED.get(path) or f"source/{path.lstrip('.')}.md"  # MkDocs leaves out what begins with a dot


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links of a page, which hold in the checkout, to the places of the files in the site."""
    del config, files
    uri = page.file.src_uri
    path = next((path for path, place in MOVED.items() if place == uri), f"docs/{uri}")

    def placed(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))
        return posixpath.relpath(place_of(target), posixpath.dirname(uri) or ".") + (link[2] or "")

    return LINK.sub(placed, markdown) if not uri.startswith(("reference/", "source/")) else markdown
