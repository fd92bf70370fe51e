"""The notebook of the embedded teacher: what is committed, and that it runs."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples/shapes/embedded_teacher.ipynb"
ITERATIONS = re.compile(r"^ITERATIONS = (\d+)$", re.M)
KIBIBYTE = 1024


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_committed_notebook_was_run_from_top_to_bottom_and_is_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert NOTEBOOK.stat().st_size < 400 * KIBIBYTE
    assert ".venv" not in NOTEBOOK.read_text(encoding="utf-8")


def test_its_text_states_the_iterations_of_its_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    run = ITERATIONS.search(code_cells(notebook)[0].source)[1]
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert f"a run with {run} iterations" in text


def test_its_cells_import_names_that_exist():
    cells = [cell.source for cell in code_cells(nbformat.read(NOTEBOOK, as_version=4))]
    python = [cell for cell in cells if not cell.startswith("%")]  # others are magics
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse("\n".join(python)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert ("tdmvid.config", "load_config") in imports
    assert not [
        (module, name)
        for module, name in imports
        if not hasattr(importlib.import_module(module), name)
    ]


@pytest.mark.slow
def test_the_notebook_runs_with_two_iterations(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = code_cells(notebook)[0]
    first.source = ITERATIONS.sub("ITERATIONS = 2", first.source)
    for cell in code_cells(notebook):  # a teacher of fewer steps is quicker, and as much is run
        cell.source = cell.source.replace("steps=50, cfg=2.0", "steps=5, cfg=2.0").replace(
            '"evaluate={}",', '"evaluate={}",\n        "log.teacher_steps=5",'
        )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    exported = tmp_path / "runs" / "notebook" / "export"
    assert (exported / "pytorch_lora_weights.safetensors").stat().st_size > 0
    assert "image/png" in code_cells(notebook)[-1].outputs[0].data
