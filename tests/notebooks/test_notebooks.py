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


def numbers(cell, pattern):
    """What the pattern finds among what the cell printed."""
    return [float(found.replace(",", "")) for found in re.findall(pattern, printed(cell))]


def drawn(cell):
    """What it shows besides what it prints, as text without colours."""
    text = "".join(out.data["text/plain"] for out in cell.outputs if "data" in out)
    return re.sub(r"\x1b\[[\d;]*m", "", text)


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


@pytest.mark.slow
def test_the_train_step_opened():
    code = [cell for cell in executed("03_train_step.ipynb") if cell.cell_type == "code"]
    start, state, roll, packed, jaxpr, flops, text, memory, told, *rest = code
    assert "'data': 2, 'fsdp': 2, 'tensor': 2} of 8 cpu devices" in printed(start)
    cut = r"mlp/gate_proj/kernel +\(1, 64, 176\) +P\(None, 'fsdp', 'tensor'\) +\(1, 32, 88\)"
    assert re.search(cut, printed(state))
    assert re.search(r"tokens +int32 +\(3, 16, 256\) +P\(None, \('data', 'fsdp'\)\)", printed(roll))
    assert printed(packed).startswith("48 turns in ") and pictures(packed)
    # Two epochs of two minibatches, each a loop over microbatches.
    assert re.search(r"\n  scan x 4 .*\n    while .* [1-9]\d* products\n", printed(jaxpr))
    counted, formula, needed, xla = numbers(flops, r"[\d,]{9,}")
    assert counted == pytest.approx(formula, rel=1e-3) and xla < counted / 2
    assert needed < formula
    arrays, donated = map(int, numbers(text, r"\d+(?= arrays| donated)"))
    assert arrays == donated > 100
    arguments, results, alias, _, bytes_of_state = numbers(memory, r"[\d,]+(?= bytes)")
    assert arguments > bytes_of_state and results > alias
    assert alias == pytest.approx(bytes_of_state, rel=1e-3)
    assert {"all-gather", "all-reduce"} <= {line.split()[0] for line in printed(told).splitlines()}
    training, rollout, gone, times, _, plain = rest
    assert re.findall(r"CPU ([\d,]+)", drawn(training)) == ["0,4", "1,5", "2,6", "3,7"]
    assert re.findall(r"CPU ([\d,]+)", drawn(rollout)) == ["0,2,4,6", "1,3,5,7"]
    assert printed(gone).startswith(f"{arrays} arrays: {arrays} deleted, {arrays} lie as before")
    medians = [float(line[28:36]) for line in printed(times).splitlines()[1:6]]
    assert 0 < medians[2] < medians[4]
    one, other = numbers(plain, r"\d+\.\d+(?= and| of)")
    assert one == pytest.approx(other, rel=1e-3) and one > 1e-3
