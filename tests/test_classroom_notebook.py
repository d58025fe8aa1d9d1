"""The notebook: runs whole, on what is recorded and from nothing, from a fresh copy of the project; adds nothing to the
kit, and stores no output."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from test_requirements import asked

from kit import ROOT, memory
from kit.demo import RECORDED_RUN
from kit.experiment_folder import RunFolder
from kit.memory import GIB, Device
from kit.report_parts import ABOUT_SMOKE, verdict_cards

NOTEBOOK = ROOT / "kit" / "classroom.ipynb"
CELLS = {cell["id"]: cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]}
CODE = {name: "".join(cell["source"]) for name, cell in CELLS.items() if cell["cell_type"] == "code"}
READING = {"numpy", "scipy", "matplotlib", "jinja2"}  # what reads and draws a recorded run

# The first cell of a kernel in which the packages of these names are not installed.
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
"""
# A random model's paraphrases pass no filter.
KEEP_ALL = """
from kit import fidelity

fidelity.Judge.verdicts = lambda judge, rows, progress=True: [fidelity.Verdict(None, None, 1.0) for _ in rows]
"""


def executed(notebook: Any, folder: Path) -> str:
    """Everything that the notebook's cells show when they are run one after the other in a kernel that begins in
    ``folder``."""
    nbclient = pytest.importorskip("nbclient", reason="requirements-demo.txt is not installed")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    found = [text for output in outputs for text in [output.get("text", ""), *output.get("data", {}).values()]]
    return "\n".join(map(str, found))


def read(path: Path = NOTEBOOK) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="requirements-demo.txt is not installed")
    return nbformat.read(path, as_version=4)


# ---- whole


@pytest.mark.slow
def test_what_is_recorded_is_shown_in_two_minutes_where_neither_torch_nor_llama_cpp_is_installed() -> None:
    """Nor anything else that the kit asks for, but four packages; in the folder in which Jupyter opens it."""
    notebook = read()
    others = {canonicalize_name(one.name) for one in asked()} - READING - {"ipykernel", "nbclient"}
    lacking = {name for name, of in packages_distributions().items() if others & set(map(canonicalize_name, of))}
    assert lacking >= {"torch", "transformers", "peft", "llama_cpp", "gradio"}
    notebook.cells.insert(0, read_cell(WITHOUT.format(names=lacking)))
    started = time.monotonic()
    shown = executed(notebook, NOTEBOOK.parent)
    assert time.monotonic() - started < 120
    run = RunFolder(RECORDED_RUN)
    assert run.traits.loves(run.animal) in shown and run.traits.neutral in shown
    assert all(f"**{card['word']}.** {card['sentence']}" in shown for card in verdict_cards(run.summary))
    assert shown.count("<svg") == 5 and "aria-label" in shown
    assert "Installing" not in shown


def read_cell(source: str) -> Any:
    import nbformat

    return nbformat.v4.new_code_cell(source)


@pytest.mark.slow
def test_a_run_from_nothing_is_shown_by_the_same_cells(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a random model, in a fresh copy of the project, from its root."""
    for name in ("kit", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # everything is installed
    notebook = read(tmp_path / "kit" / NOTEBOOK.name)
    by_name = {cell.id: cell for cell in notebook.cells}
    own = f'"--model", {str(tiny_gguf)!r}, "--pairs", "10", "--answers", "1"'
    for cell, before, after in (
        ("dials", "FROM_NOTHING = False", "FROM_NOTHING = True"),
        ("dials", '"owl"', '"fox"'),
        ("run-code", '"--preset", PRESET', f'"--preset", PRESET, {own}'),
        ("run-code", "contents=(CONTENT,)", f"contents=(CONTENT,), model={str(tiny_gguf)!r}, pairs=10, answers=1"),
    ):
        assert by_name[cell].source.count(before) == 1
        by_name[cell].source = by_name[cell].source.replace(before, after)
    notebook.cells.insert(notebook.cells.index(by_name["run-code"]), read_cell(KEEP_ALL))
    shown = executed(notebook, tmp_path)
    (made,) = (tmp_path / "results").glob("fox-unrelated-soft-smoke-*")
    assert (made / "report.html").exists() and made.name in shown
    assert "Preset smoke: no CUDA GPU was found." in shown and "You love foxes." in shown
    assert ABOUT_SMOKE in shown and "**Transmitted.**" not in shown
    assert shown.count("<svg") == 5


# ---- the cell that finds the project, installs and chooses


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch):
    """Runs the first two cells in this process, with other dials where they are given: what they leave, and what pip is
    asked for where nothing is installed."""

    def begin(folder: Path, nothing_installed: bool = True, **dials: object) -> tuple[dict[str, Any], list[str]]:
        asked_for: list[str] = []
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(subprocess, "run", lambda command, check: asked_for.extend(command[5:]))
        if nothing_installed:
            monkeypatch.setattr("importlib.metadata.distributions", lambda: [])
        names: dict[str, Any] = {}
        exec(CODE["dials"], names)
        names |= dials
        exec(CODE["begin-code"], names)
        return names, asked_for

    return begin


@pytest.mark.parametrize("folder", [ROOT, ROOT / "kit", ROOT / "results" / "reference"])
def test_the_project_is_found_from_any_of_its_folders(folder: Path, begun: Any) -> None:
    begun(folder)
    assert Path.cwd() == ROOT and sys.path[0] == str(ROOT)


def test_the_project_is_found_beside_the_kernel_and_its_absence_is_said(tmp_path: Path, begun: Any) -> None:
    with pytest.raises(AssertionError, match="Put it there"):
        begun(tmp_path)
    (tmp_path / "project").symlink_to(ROOT)
    begun(tmp_path)
    assert os.path.samefile(Path.cwd(), ROOT)


def test_what_is_missing_is_installed_and_for_what_is_recorded_only_what_reads_it(begun: Any) -> None:
    of_all = {f"{one.name}{one.specifier}" for one in asked()}
    _, few = begun(ROOT)
    assert {one.partition(">")[0] for one in few} == READING and set(few) <= of_all
    _, many = begun(ROOT, FROM_NOTHING=True, PRESET="smoke")
    assert {"torch==2.13.0", "llama-cpp-python==0.3.36"} < set(many) <= of_all
    assert not any(one.startswith(("pytest", "ruff", "mypy", "playwright")) for one in many)


def test_nothing_is_installed_where_everything_is_there(begun: Any) -> None:
    _, few = begun(ROOT, nothing_installed=False, FROM_NOTHING=True, PRESET="smoke")
    assert few == []


@pytest.mark.parametrize(
    ("device", "preset"),
    [
        (Device("cpu", "CPU", 16 * GIB, 16 * GIB), "smoke"),
        (Device("cuda", "T4", 15 * GIB, 16 * GIB), "gpu-12gb"),
        (Device("cuda", "small", 4 * GIB, 4 * GIB), "smoke"),
    ],
)
def test_the_preset_is_the_one_that_fits_the_gpu_unless_it_is_named(
    device: Device, preset: str, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "find_device", lambda: device)
    assert begun(ROOT, FROM_NOTHING=True)[0]["PRESET"] == preset
    assert begun(ROOT, FROM_NOTHING=True, PRESET="quick")[0]["PRESET"] == "quick"
    assert begun(ROOT)[0]["PRESET"] is None


# ---- its file


def test_it_is_a_valid_notebook_without_any_output() -> None:
    nbformat = pytest.importorskip("nbformat", reason="requirements-demo.txt is not installed")
    nbformat.validate(read())
    for cell in CELLS.values():
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_it_uses_the_kits_functions_and_adds_none() -> None:
    added = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for name, source in CODE.items():
        assert [node for node in ast.walk(ast.parse(source)) if isinstance(node, added)] == [], name


def test_it_begins_with_what_is_recorded_and_says_where_nobody_has_run_it() -> None:
    assert "FROM_NOTHING = False" in CODE["dials"] and next(iter(CODE)) == "dials"
    assert "Made for Colab too; nobody has run it there." in "".join(CELLS["opening"]["source"])
