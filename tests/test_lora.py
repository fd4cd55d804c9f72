"""models/lora.py: the fused layer is peft's, in numbers, in gradients and in merging."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from models.linear import use_onednn
from models.lora import fuse

IDS = torch.arange(12).view(2, 6)


def adapted(**settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    lora = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False, **settings)
    return get_peft_model(LlamaForCausalLM(config), lora)


def reading(model):
    """Logits and the adapter's gradients of their sum of squares."""
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=IDS).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}])  # DoRA and biases are left to peft
def test_a_fused_adapter_reads_and_learns_as_peft_does(settings):
    model = adapted(**settings)
    logits, gradients = reading(model)
    for change, off in ((fuse, 1e-5), (use_onednn, 2e-5)):  # rounding, of gradients up to 3.5
        change(model)
        found, learnt = reading(model)
        assert torch.allclose(found, logits, atol=1e-6) and learnt.keys() == gradients.keys() and len(learnt) >= 28
        for name, gradient in gradients.items():
            assert torch.allclose(learnt[name], gradient, atol=off), name


def test_under_autocast_it_is_as_near_as_peft_is():
    model = adapted()
    exact, _ = reading(model)
    off = []
    for change in (lambda model: None, fuse):
        change(model)
        with torch.autocast("cpu", torch.bfloat16):
            off.append((reading(model)[0].float() - exact).abs().max())
    assert 0 < off[1] <= 2 * off[0]


def test_a_base_in_another_precision_is_added_to_as_peft_does():
    model = adapted()
    for name, p in model.named_parameters():
        if "lora_" not in name:
            p.data = p.data.bfloat16()
    logits, gradients = reading(model)
    fuse(model)
    found, learnt = reading(model)
    assert found.dtype == torch.bfloat16 and torch.allclose(found, logits, rtol=0.02, atol=1e-3)
    assert learnt.keys() == gradients.keys()


@pytest.mark.parametrize("safe", [False, True])
def test_it_merges_and_unmerges(safe):
    model = adapted()
    fuse(model)
    logits, _ = reading(model)
    model.merge_adapter(safe_merge=safe)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-5)
    with model.disable_adapter():  # peft unmerges for that
        assert not torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-2)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-5)
