"""The notebooks: they run from start to end, and lie in the repository without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What each is known to have done: pictures shown, and files written.
EXPECTED = {
    "everything": (5, set()),
    "image": (9, {"picture.safetensors"}),
    "jit_and_shard": (1, set()),
    "video": (10, {"masks", "overlay.mp4", "session.zip"}),
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that looks like the repository to a notebook, and settings that make it quick."""
    shutil.copytree(ROOT / "assets", tmp_path / "assets")
    (tmp_path / "notebooks").mkdir()
    for setting in ("MODEL", "CHECKPOINT", "IMAGE", "VIDEO"):
        monkeypatch.delenv(f"SAM2_{setting}", raising=False)
    monkeypatch.setenv("SAM2_IMAGE_SIZE", "64")
    monkeypatch.setenv("SAM2_POINTS_PER_SIDE", "4")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def test_there_are_four():
    assert {path.stem for path in NOTEBOOKS} == EXPECTED.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_start_to_end(clone, path):
    num_pictures, files = EXPECTED[path.stem]
    notebook = read(path)
    where = {"metadata": {"path": str(clone / "notebooks")}}  # as Jupyter does, beside the assets
    NotebookClient(notebook, timeout=600, resources=where).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == num_pictures
    out = clone / "out" / "notebooks"
    assert {file.name for file in out.glob("*")} == files
    assert list((clone / "notebooks").iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
