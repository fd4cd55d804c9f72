"""models/merge.py: base + adapter written as one model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from models import merge
from models.load import load_base, load_policy
from tests.tiny_models import save_dolly, save_smollm2


def adapter_on(base: str, path: Path) -> str:
    """A run with a LoRA adapter whose weights are not 0."""
    model = get_peft_model(load_base(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(path / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path / "model")
    return str(path)


@pytest.mark.parametrize("save", (save_dolly, save_smollm2))
@torch.no_grad()
def test_the_merged_model_is_base_plus_adapter(save, tmp_path):
    base = save(tmp_path / "base")
    run = adapter_on(base, tmp_path / "sft-s1")
    directory = merge.main(run)
    assert directory == tmp_path / "sft-s1" / "merged"
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = torch.randint(0, len(tokenizer), (3, 20), generator=torch.Generator().manual_seed(0))
    expected = load_policy(run).eval()(ids).logits
    torch.testing.assert_close(merged.eval()(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected - load_base(base).eval()(ids).logits).abs().max() > 0.01, "the adapter changes nothing"
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert tokenizer.chat_template
    assert base in (directory / "README.md").read_text()
    assert not list(directory.parent.glob("*.tmp"))


def test_a_run_without_adapter_is_refused(tmp_path):
    base = save_smollm2(tmp_path / "base")
    with pytest.raises(ValueError, match="has no adapter"):
        merge.main(base)
    with pytest.raises(FileNotFoundError, match="has that stage finished"):
        merge.main(str(tmp_path / "nowhere"))


def test_a_directory_that_is_there_stays_as_it_is(tmp_path):
    run = adapter_on(save_smollm2(tmp_path / "base"), tmp_path / "sft-s1")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        merge.main(run, str(tmp_path / "mine"))


def test_the_command_line_writes_in_half_precision(tmp_path):
    run = adapter_on(save_smollm2(tmp_path / "base"), tmp_path / "sft-s1")
    command = [sys.executable, "-m", "models.merge", run, "--output_dir", tmp_path / "out", "--dtype", "bfloat16"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, capture_output=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), LlamaForCausalLM)
