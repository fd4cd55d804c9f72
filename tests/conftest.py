"""A tiny friend that every stage can take: two layers of 32 dimensions, a tokenizer of 500 tokens, no network.

Not covered by anything built on it: that a model of real size learns to talk (the recipes' heads state those numbers).
"""

import os

import pytest
import torch
import wandb
from hypothesis import settings
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, BertLMHeadModel

from data import sample
from models.scorer import TEXT_WEIGHTS, Scorer
from sft.tokenizer import train_tokenizer

CONTEXT = 256
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)  # two threads gain nothing on models this small, and wait for each other on a busy machine
settings.register_profile("house", deadline=None, derandomize=True)  # a busy machine fails no test, and no day differs
settings.load_profile("house")


@pytest.fixture(autouse=True)
def no_open_wandb_run(tmp_path, monkeypatch):
    """A stage that a test stops half-way leaves its wandb run open: the next test gets its own."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    yield
    wandb.finish()


@pytest.fixture(scope="session")
def friend_tokenizer():
    texts = [turn.text for dialogue in sample.load("train") for turn in dialogue.turns]
    return train_tokenizer(texts[:2000], vocab_size=500, context=CONTEXT)


@pytest.fixture(scope="session")
def friend_base(friend_tokenizer, tmp_path_factory):
    """The directory of a random base with a chat template, which says "you" often and ends now and then."""
    path = tmp_path_factory.mktemp("friend") / "base"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(friend_tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        pad_token_id=friend_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=friend_tokenizer.eos_token_id,
        initializer_range=0.1,
        **SIZES,
    )
    model = BertLMHeadModel(config)
    bias = model.cls.predictions.bias.data
    bias[friend_tokenizer.eos_token_id] = 4.5  # else a random model hardly ever ends
    bias[friend_tokenizer("<|friend|>you")["input_ids"][-1]] = 4.5  # a word that tests of PPO can like
    model.save_pretrained(path)
    friend_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def friend_adapter(friend_base, friend_tokenizer):
    """The directory of a LoRA adapter on that base that says something else than the base does."""
    path = friend_base.replace("/base", "/adapter")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(friend_base)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(path)
    friend_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_scorer(friend_tokenizer, tmp_path_factory):
    """The directory of a random scorer of preset `text`."""
    torch.manual_seed(2)
    labels = sorted(TEXT_WEIGHTS)
    config = BertConfig(
        vocab_size=len(friend_tokenizer), max_position_embeddings=64, initializer_range=0.5,
        num_labels=len(labels), **SIZES,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("scorer")
    weights = [TEXT_WEIGHTS[label] for label in labels]
    model = BertForSequenceClassification(config)
    Scorer(model, friend_tokenizer, labels, weights, "text", max_length=64).save(path)
    return str(path)
