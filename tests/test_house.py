"""Who may import whom: the stages meet on disk, never in each other's code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"data", "models", "experiments", "sft", "reward", "rl", "chat", "tests"}

#: Module or package -> the project's modules that it may import beside itself.
ALLOWED = {
    "data": set(),
    # The second reader of a reward writes the chat that it reads: the schema's messages, nothing else of data.
    "models": {"data.dialogue"},
    "experiments.run": {"data.source"},
    # It measures openers as rl itself does, lest two numbers of one name differ.
    "experiments.compare": {
        "data",
        "models",
        "experiments.judge",
        "experiments.run",
        "experiments.simulate",
        "reward.probes",
        "rl.evaluate",
        "rl.metrics",
    },
    "sft": {"data", "models", "experiments.run"},
    "reward": {"data", "models", "experiments.run"},
    "rl": {"data", "models", "experiments.run"},
    "chat": {"data", "models", "experiments.run"},
}


def imports(source: str) -> set[str]:
    """The project's modules that the code imports anywhere, functions included: "data.source", "experiments.run"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide who imports whom"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def under(module: str, places: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{place}.") for place in places)


def files_of(part: str) -> list[Path]:
    path = ROOT / part.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("part", ALLOWED)
def test_imports(part):
    files = files_of(part)
    assert files, f"{part} has no modules"
    for file in files:
        outside = {m for m in imports(file.read_text(encoding="utf-8")) if not under(m, ALLOWED[part] | {part})}
        assert not outside, (
            f"{file.relative_to(ROOT)} imports {sorted(outside)}; {part} may import {sorted(ALLOWED[part])}"
        )


def test_the_rule_sees_every_form_of_import():
    code = (
        "import os, reward.train\nfrom experiments import run\ndef f():\n  from sft.tokenizer import PAD\n  import rl"
    )
    found = imports(code)
    assert found == {"reward.train", "experiments.run", "sft.tokenizer.PAD", "rl"}
    assert [m for m in sorted(found) if not under(m, ALLOWED["reward"] | {"reward"})] == ["rl", "sft.tokenizer.PAD"]
    with pytest.raises(AssertionError, match="relative"):
        imports("from . import train")
