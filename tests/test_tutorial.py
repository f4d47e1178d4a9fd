"""The tutorial, a notebook: it runs, and lies in the repository with its outputs."""

import re

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.optional
FILE = ROOT / "docs/tutorial.ipynb"


def test_the_tutorial_runs_and_its_outputs_are_stored(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="./scripts/test.sh --docs installs it")
    nbformat = pytest.importorskip("nbformat")
    assert FILE.stat().st_size < 600_000
    notebook = nbformat.read(FILE, 4)
    stored = results(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    for found in (results(notebook), stored):
        assert found["best"] == ["push", "pump"]
        assert found["demo-umdr-fusion"] > max(found["demo-umdr-rgb"], found["demo-umdr-depth"])
        assert found["top-1"] > 60
        assert found["pictures"] == 2


def results(notebook):
    """Returns what the outputs of a notebook report: accuracies by name, predicted classes, number of pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    text = "\n".join(
        [output["text"] for output in outputs if "text" in output] + [data["text/plain"] for data in shown]
    )
    rows = re.findall(r"^(demo-umdr-\w+|top-1) +([\d.]+)%", text, re.MULTILINE)
    accuracies = {name: float(value) for name, value in rows}
    best = re.findall(r"\[\('(\w+)'", text) + re.findall(r"ClipPrediction\(array: (\w+)", text)
    return {**accuracies, "best": best, "pictures": sum("image/jpeg" in data for data in shown)}
