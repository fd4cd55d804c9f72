"""Random models of a few thousand parameters with real architectures and tokenizers of their own, saved to disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from data import sample

#: The labels of michellejieli/emotion_text_classifier in its order.
HUB_LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


def bpe(marks: list[str], vocab_size: int = 600) -> Tokenizer:
    """A byte-level BPE of the sample's first dialogues, as GPT-NeoX, SmolLM2 and RoBERTa have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (turn.text for dialogue in sample.load("validation") for turn in dialogue.turns)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_dolly(path: Path) -> str:
    """A GPT-NeoX as databricks/dolly-v2-3b: no chat template, pad is the end token, a token for each key it writes."""
    keys = ["### End", "### Instruction:", "### Response:\n"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(["<|endoftext|>", *keys]),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=keys,
    )
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer) + 8,  # dolly's embeddings have more rows than its tokenizer has tokens
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(path, GPTNeoXForCausalLM, config, tokenizer)


def save_smollm2(path: Path) -> str:
    """A Llama as SmolLM2-135M-Instruct: grouped queries, tied embeddings, ChatML marks, a chat template without
    generation marks."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(path, LlamaForCausalLM, config, tokenizer)


def save_emotion_classifier(path: Path) -> str:
    """A RoBERTa as michellejieli/emotion_text_classifier: seven labels in an order of its own."""
    backend = bpe(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        id2label=dict(enumerate(HUB_LABELS)),
        label2id={label: i for i, label in enumerate(HUB_LABELS)},
    )
    return _save(path, RobertaForSequenceClassification, config, tokenizer)


def _save(path: Path, kind, config, tokenizer) -> str:
    torch.manual_seed(0)
    kind(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
