"""The notebooks of docs/notebooks are committed without outputs, and their code runs.

The code of all cells is executed in this process, in one fresh namespace, in a temporary folder,
with nothing of Jupyter. So a cell is plain Python, without `!` and `%` lines. Drawing goes to no
screen. The slow tests execute each notebook in a kernel of Jupyter, too, where it is installed:
pip install -e '.[notebooks]'
"""

import ast
import base64
import io
import json
import os
import pathlib
import re
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("first_task", "pixels", "finetune_on_a_twin")


def load(name):
    """Read a notebook as JSON."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code(book):
    """Return the text of each code cell, by its id."""
    return {c["id"]: "".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"}


def test_every_notebook_is_listed_on_its_page_and_tested_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert set(re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", page)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_holds_no_outputs(name):
    book = load(name)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert book["metadata"]["kernelspec"]["language"] == "python"
    ids = [cell["id"] for cell in book["cells"]]
    assert ids == [f"{name}-{i:02}" for i in range(len(ids))]  # saved again, they stay
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            keys |= {"outputs", "execution_count"}
        else:
            assert cell["cell_type"] == "markdown"
        assert set(cell) == keys and cell["metadata"] == {}
        lines = cell["source"]
        assert lines and all(line.endswith("\n") for line in lines[:-1])
        assert not lines[-1].endswith("\n")
    for text in code(book).values():
        ast.parse(text)  # no `!`, no `%`


@pytest.mark.parametrize("name", NAMES)
def test_a_notebooks_links_lead_somewhere(name):
    prose = "".join("".join(c["source"]) for c in load(name)["cells"] if c["cell_type"] != "code")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert links
    for link in links:
        assert (FOLDER / link).exists(), link


@pytest.fixture
def sandbox(tmp_path, monkeypatch, one_thread):
    """A temporary working folder; afterwards no module and no figure of the notebook is left."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(sys.modules)
    shown = []

    def show():
        shown.extend(pyplot.figure(number) for number in pyplot.get_fignums())
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    yield shown
    pyplot.close("all")
    for module in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[module], "__file__", None) or ""):
            del sys.modules[module]


def run(name):
    """Execute a notebook; return its namespace."""
    namespace = {"__name__": "__main__"}
    for cell, text in code(load(name)).items():
        exec(compile(text, cell, "exec"), namespace)  # a traceback names the cell
    return namespace


def test_a_task_of_ones_own_is_trained_and_its_onnx_file_balances_the_pole(sandbox, capsys):
    found = run("first_task")
    said = capsys.readouterr()
    assert re.search(r"success (9\d|100)\.\d% \(success_at_end", said.out + said.err)
    assert len(sandbox) == 3
    angles = torch.stack(found["angles"])
    assert float(angles.abs().max()) > 0.5  # left alone, they fall
    assert max(abs(pole) for _, pole in found["path"][100:]) < 0.2
    assert found["frames"][0].std() > 5 and (found["frames"][0] != found["frames"][1]).any()


def test_a_student_of_pixels_lifts_the_cube_and_not_without_its_images(sandbox):
    found = run("pixels")
    assert len(sandbox) == 2 and len(found["images"]) == 4
    assert found["sees"] >= 0.75 and found["does_not"] <= 0.25
    first, last = found["moments"][0]["wrist_rgb"], found["moments"][-1]["wrist_rgb"]
    assert (first.float() - last.float()).abs().mean() > 2


@pytest.mark.slow
def test_a_student_gains_from_what_succeeded_on_the_twin(sandbox):
    found = run("finetune_on_a_twin")
    assert len(found["recorded"]) >= 20 and len(sandbox) == 1
    assert found["after"] > found["before"] + 0.1


# In Jupyter.


def execute(name, temporary):
    """Execute a notebook as Jupyter does, from its folder; return its cells of code."""
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")
    book = pytest.importorskip("nbformat").read(FOLDER / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    client = nbclient.NotebookClient(book, timeout=600, resources=where)
    client.execute(env=env | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)})
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("first_task", r"success (9\d|100)\.\d% \(success_at_end"),
        ("pixels", r"success with images (7[5-9]|[89]\d|100)%, without (1?\d|2[0-5])%"),
        ("finetune_on_a_twin", r"before (\d+)%, after (\d+)%"),
    ],
)
def test_a_notebook_says_and_draws_in_jupyter_what_it_should(tmp_path, name, says):
    before = sorted(FOLDER.iterdir())
    cells = execute(name, tmp_path)
    assert sorted(FOLDER.iterdir()) == before
    outputs = [output for cell in cells for output in cell.outputs]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    found = re.search(says, text)
    assert found, text
    if name == "finetune_on_a_twin":
        assert int(found[2]) > int(found[1]) + 10
    complaints = "".join(o.text for o in outputs if o.get("name") == "stderr")
    assert "ipywidgets" not in complaints and "Traceback" not in complaints
    for cell in cells:
        images = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(images) == cell.source.count("plt.show()")
        for image in images:
            with Image.open(io.BytesIO(base64.b64decode(image))) as shown:
                assert np.asarray(shown.convert("L")).std() > 10
