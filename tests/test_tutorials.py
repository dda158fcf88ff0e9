"""The notebooks run from top to bottom, and are kept without their outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import bayesspec

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


@pytest.fixture(params=TUTORIALS, ids=lambda path: path.stem)
def notebook(request):
    nbformat = pytest.importorskip("nbformat", reason='needs pip install "bayesspec-stars[tutorials]"')
    return nbformat.read(request.param, as_version=4)


def test_is_kept_without_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def test_links_lead_somewhere(notebook):
    """To other notebooks and to pages; the pages' builder moves both."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert all((TUTORIALS[0].parent / target).exists() for target in targets), targets
    assert all(target.startswith("../docs/") or "/" not in target for target in targets), targets


@pytest.mark.tutorials
# Its kernels' warnings, not ours: sockets that close late, deprecations of its own event loop.
@pytest.mark.filterwarnings("default")
def test_runs(notebook, tmp_path, monkeypatch):
    """No cell raises, and every figure is drawn."""
    nbclient = pytest.importorskip("nbclient", reason='needs pip install "bayesspec-stars[tutorials]"')
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", str(Path(bayesspec.__file__).parents[1]), prepend=os.pathsep)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    drawing = r"plt\.show\(\)|\w+\.plot\(\d+\)|\w+\.plot_corner\(.*\)|plot_latents\(.*\)"
    shown = re.findall(rf"^(?:{drawing})$", source, re.MULTILINE)
    assert figures == len(shown)
