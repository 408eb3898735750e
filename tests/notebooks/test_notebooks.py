"""The notebooks run from a fresh kernel, and show what they say."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
SECONDS = 300


def executed(name):
    """The notebook's cells after a run; a cell that raises fails the test."""
    book = nbformat.read(FOLDER / name, as_version=4)
    # The interpreter of the tests, whatever kernels are registered here.
    client = NotebookClient(
        book, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER.parent)}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    return client.execute().cells


def printed(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def pictures(cell):
    return [out for out in cell.outputs if "image/png" in out.get("data", {})]


@pytest.mark.slow
@pytest.mark.torch
def test_the_model_opened():
    pytest.importorskip("torch")
    code = [cell for cell in executed("02_model.ipynb") if cell.cell_type == "code"]
    _, parameters, image, attention, parity = code
    assert int(re.search(r"([\d,]+) parameters", printed(parameters))[1].replace(",", "")) > 100_000
    assert "model.language_model.layers.*.mlp.down_proj.weight" in printed(parameters)
    assert re.search(r"tiles of 48 pixels -> \d+ features of 64 channels", printed(image))
    assert pictures(image) and pictures(attention)
    rows = [line.split() for line in printed(parity).splitlines() if line.strip()]
    assert len(rows) > 40 and {"lm_head", "model.vision_model"} <= {row[0] for row in rows}
    assert all(float(relative) < 1e-4 for _, _, relative in rows)
