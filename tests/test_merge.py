"""models/merge.py: base + adapter written as one model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

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


@pytest.mark.parametrize("save", (save_dolly, save_smollm2))
def test_what_vllm_and_llama_cpp_look_for_is_there(save, tmp_path):
    """Names that transformers 4 reads, on which both may run; transformers 5 writes others."""
    directory = merge.main(adapter_on(save(tmp_path / "base"), tmp_path / "sft-s1"))
    config, tokenizer, generation = (
        json.loads((directory / name).read_text())
        for name in ("config.json", "tokenizer_config.json", "generation_config.json")
    )
    assert config["architectures"][0] in merge.SERVED and config["rope_theta"] == 10_000
    if config["model_type"] == "gpt_neox":
        assert config["rotary_pct"] == 0.25 and config["rotary_emb_base"] == 10_000  # as the recipe's base has it
    assert tokenizer["chat_template"] == (directory / "chat_template.jinja").read_text()
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in tokenizer
    assert generation["eos_token_id"] == config["eos_token_id"]
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in directory.iterdir()}
    assert not {"is_local", "local_files_only"} & set(tokenizer)
    # Said twice, it is read as it was: the same rope and the same special tokens.
    base, merged = (AutoConfig.from_pretrained(path) for path in (tmp_path / "base", directory))
    assert merged.rope_parameters == base.rope_parameters
    old, new = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "base", directory))
    text = "### Response:\n<|im_start|> Hello!"
    assert new(text)["input_ids"] == old(text)["input_ids"] and new.all_special_tokens == old.all_special_tokens


def test_the_card_says_what_can_load_it(tmp_path, friend_adapter):
    card = (merge.main(adapter_on(save_smollm2(tmp_path / "base"), tmp_path / "sft-s1")) / "README.md").read_text()
    assert "vllm serve merged" in card and "convert_hf_to_gguf.py merged" in card
    card = (merge.main(friend_adapter, str(tmp_path / "friend")) / "README.md").read_text()
    assert "in transformers alone" in card and "BertLMHeadModel" in card and "vllm serve" not in card


def test_a_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a reward"):
        merge.main("friend-reward", str(tmp_path / "out"))
