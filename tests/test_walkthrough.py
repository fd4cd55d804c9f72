"""experiments/walkthrough.ipynb: it is stored without outputs, and runs from its first cell to its last on what ships."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments" / "walkthrough.ipynb"


def said(cell) -> str:
    """All that a cell printed or showed as text."""
    parts = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    return "\n".join(parts)


def test_it_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_what_it_imports_is_where_it_looks():
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    code = [re.sub(r"^%.*", "", source, flags=re.MULTILINE) for source in cells]
    imports = [node for source in code for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert len(imports) > 10
    for node in imports:
        module = importlib.import_module(node.module)
        for name in node.names:
            assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}"), name.name


@pytest.mark.slow
def test_it_runs_from_a_clean_clone(tmp_path, monkeypatch):
    """In a copy of the files that git knows or would add: no runs, no corpora."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "data", "experiments", "models", "reward", "rl", "sft",
         "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.delenv("ICEBREAKER_DATA", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(tmp_path / "experiments" / NOTEBOOK.name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "experiments")}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = "\n".join(map(said, cells))
    assert "friend: friend-sft  after PPO: friend-ppo  reward: friend-reward" in text
    assert "skipped: empathetic, daily" in text and "== rated" in text and text.count("<|friend|>") >= 9
    figures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 5  # reactions, rewards and advantages, ratios, changes, the frontier
    steps = [line for line in text.splitlines() if line.startswith("after ")]
    assert len(steps) == 5 and "'ratio': '1.000'" in steps[0] and "'clipfrac': '0.000'" in steps[0]
    losses = [float(line.split("loss ")[1].split()[0]) for line in steps]
    assert losses[-1] < losses[0] - 0.01  # the steps improve what they are told to
    assert "best of 16" in text and "gold, gain over SFT" in text
    assert not (tmp_path / "runs").exists() and not os.path.exists(tmp_path / "experiments" / "runs")
