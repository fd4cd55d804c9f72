"""The recipes for real models, taken through all stages with their own keys on tiny random models of the same
architectures. Only places, sizes, lengths and steps are overridden, and bf16's GPU is a CPU.

Not covered here: the weights themselves, a GPU; 8 and 4 bits only where bitsandbytes is installed.
"""

import json
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from trl import SFTConfig
from trl.experimental.ppo import PPOConfig

from data import daily, empathetic, sample
from data.dialogue import INSTRUCTIONS, messages
from data.scenes import prompt_messages, scenes_of
from experiments.run import parse_config
from models.load import load_base, load_classifier, load_scorer, load_tokenizer
from reward import train as reward
from rl import generate
from rl import train as rl
from rl.rollout import MergedCopy
from rl.trainer import OpenerConfig
from sft import train as sft
from tests.tiny_models import HUB_LABELS, save_dolly, save_emotion_classifier, save_smollm2

RECIPES = Path(__file__).parent.parent / "experiments"
BASES = {"dolly-3b": save_dolly, "smollm2": save_smollm2}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(RECIPES.parent)  # recipes name their chat template from the root


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bases")
    return {name: save(directory / name) for name, save in BASES.items()}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """What each reward recipe starts from: a classifier as the hub's, and a Bert as MiniLM with the same tokenizer."""
    directory = tmp_path_factory.mktemp("encoders")
    classifier = save_emotion_classifier(directory / "classifier")
    tokenizer = load_scorer(classifier).tokenizer
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(directory / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory / "bert")
    return {"dolly-3b": classifier, "smollm2": str(directory / "bert")}


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """EmpatheticDialogues and DailyDialog in their columns, a few dialogues a split, the words the sample's."""
    root = tmp_path_factory.mktemp("corpora")
    for split in ("train", "validation", "test"):
        dialogues = list(sample.load(split))[:16]
        rows = [
            {"conv_id": d.id, "utterance_idx": i, "context": "joyful", "prompt": f"I have {number + 2} {split} dogs.",
             "speaker_idx": i % 2, "utterance": turn.text, "selfeval": "", "tags": ""}
            for number, d in enumerate(dialogues[:8]) for i, turn in enumerate(d.turns, 1)
        ]  # fmt: skip
        write_parquet(root, empathetic.REPO, split, rows)
        rows = [
            {"dialog": [turn.text for turn in d.turns], "act": [1] * len(d.turns),
             "emotion": [i % 2 * 4 for i in range(len(d.turns))]}  # neutral, happiness
            for d in dialogues[8:]
        ]  # fmt: skip
        write_parquet(root, daily.REPO, split, rows)
    return str(root)


def write_parquet(root: Path, repo: str, split: str, rows: list[dict]) -> None:
    (root / repo).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / repo / f"{split}.parquet")


def parsed(monkeypatch, recipe: str, *types: type, **overrides):
    """Settings as the command line gives them: `--config experiments/<recipe> --key value ...`."""
    flags = [text for key, value in overrides.items() for text in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(RECIPES / recipe), *flags])
    return parse_config(*types)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_a_tiny_model_goes_through_all_stages(name, bases, encoders, corpora, tmp_path, monkeypatch):
    where = {stage: tmp_path / f"{stage}-s1" for stage in ("sft", "reward", "ppo")}
    small = {"use_cpu": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}

    sft.main(*parsed(
        monkeypatch, f"{name}/sft.yaml", sft.FriendConfig, SFTConfig, run_dir=where["sft"], data_root=corpora,
        model_name_or_path=bases[name], max_eval_dialogues=4, max_length=320, max_new_tokens=4, max_steps=2, **small,
    ))  # fmt: skip
    recipe = yaml.safe_load((RECIPES / name / "sft.yaml").read_text())
    adapter = json.loads((where["sft"] / "model" / "adapter_config.json").read_text())
    assert adapter["r"] == recipe.get("lora_r", 16)
    if "lora_target_modules" in recipe:
        assert adapter["target_modules"] == [recipe["lora_target_modules"]]
    weights = load_file(where["sft"] / "model" / "adapter_model.safetensors")
    assert all(weight.any() for weight in weights.values()), "an adapter's B is still 0"
    template = Path(recipe["chat_template_path"]).read_text()
    assert load_tokenizer(str(where["sft"])).chat_template == template

    reward.main(*parsed(
        monkeypatch, f"{name}/reward.yaml", reward.RewardConfig, run_dir=where["reward"], data_root=corpora,
        model_name_or_path=encoders[name], num_train_epochs=0.05, max_eval_samples=20, eval_steps=0.5,
    ))  # fmt: skip

    checkpointed = []
    checkpoint = transformers.modeling_utils.checkpoint
    counting = lambda *args, **kwargs: checkpointed.append(1) or checkpoint(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", counting)
    rl.main(*parsed(
        monkeypatch, f"{name}/ppo.yaml", OpenerConfig, PPOConfig, run_dir=where["ppo"], data_root=corpora,
        sft_model_path=where["sft"], reward_model_path=where["reward"], max_scenes=20, total_episodes=16,
        response_length=6, test_samples=1, num_mini_batches=2, warmup_steps=0, **small,
    ))  # fmt: skip
    summary = json.loads((where["ppo"] / "summary.json").read_text())
    assert bool(checkpointed) == (name == "dolly-3b")  # gradient_checkpointing: trl's default, off for the small one
    assert summary["optimizer_steps"] == 2 * 2 * 2  # updates x minibatches x epochs
    assert abs(summary["sft"]["kl"]) < 0.05  # to itself: bfloat16's rounding
    rows = [json.loads(line) for line in (where["ppo"] / "metrics.jsonl").read_text().splitlines()]
    ratios = [row["policy/first_ratio"] for row in rows if "policy/first_ratio" in row]
    assert len(ratios) == 2
    assert ratios == pytest.approx([1, 1], abs=0.02)
    trained = load_file(where["ppo"] / "model" / "adapter_model.safetensors")
    assert trained.keys() == weights.keys()
    assert load_tokenizer(str(where["ppo"])).chat_template == template

    scenes = tmp_path / "scenes.jsonl"
    scenes.write_text('{"id": "a", "profile": ["keeps bees"], "greeting": null}\n{"id": "b", "greeting": "hi there"}\n')
    generate.main(generate.GenerateConfig(
        run_dir=str(where["ppo"]), scenes_file=str(scenes), output_file=str(tmp_path / "openers.jsonl"),
        num_return_sequences=2, max_new_tokens=6,
    ))  # fmt: skip
    openers = [json.loads(line) for line in (tmp_path / "openers.jsonl").read_text().splitlines()]
    assert [(row["scene_id"], row["sample"]) for row in openers] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


@pytest.mark.parametrize("name", BASES)
def test_the_loss_falls_on_the_friends_words_and_end_tokens_alone(name, bases):
    tokenizer = templated(name, bases)
    dialogue = next(sample.load("train"))
    chat = messages(dialogue, INSTRUCTIONS["original"])
    row = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [i for i, kept in zip(row["input_ids"], row["assistant_masks"], strict=True) if kept]
    friend = [turn.text for turn in dialogue.turns if turn.speaker == "friend"]
    assert tokenizer.decode(learnt) == "".join(text + tokenizer.eos_token for text in friend)


@pytest.mark.parametrize("name", BASES)
def test_the_generation_prompt_is_how_the_friends_turn_begins_in_training(name, bases):
    tokenizer = templated(name, bases)
    for scene in scenes_of("sample", "validation", most=20):
        chat = prompt_messages(scene, INSTRUCTIONS["original"])
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        answered = [*chat, {"role": "assistant", "content": "What a day!"}]
        whole = tokenizer.apply_chat_template(answered, return_dict=True)["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert tokenizer.eos_token_id not in whole[len(prompt) : -1 - (name == "smollm2")]


def test_dollys_prompt_is_the_originals(bases):
    tokenizer = templated("dolly-3b", bases)
    turns = (("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello!"))
    chat = [{"role": role, "content": content} for role, content in turns]
    begin = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nBe kind.\n\n"
    )
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert prompt == begin + "### Response:\n"
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == begin + "Input:\nHi.\n\n### Response:\nHello!<|endoftext|>"
    with pytest.raises(Exception, match="not critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": ""}], tokenize=False)


@pytest.mark.parametrize("preset", ("text", "reaction"))
def test_a_classifier_gives_the_reward_its_encoder_but_not_its_head(preset, encoders):
    """The hub's head has the same size under preset text, but its labels stand in another order."""
    path = encoders["dolly-3b"]
    labels, _ = reward.labels_and_weights(preset)
    model, saved = load_classifier(path, labels, preset), load_file(Path(path) / "model.safetensors")
    state = model.state_dict()
    assert tuple(model.config.id2label.values()) == tuple(labels) != HUB_LABELS
    for name in saved.keys() & state.keys():
        is_head = name.startswith("classifier.")
        assert is_head != torch.equal(state[name], saved[name]), name


def templated(name: str, bases):
    recipe = yaml.safe_load((RECIPES / name / "sft.yaml").read_text())
    return load_tokenizer(bases[name], recipe["chat_template_path"])


@pytest.mark.parametrize("quantization", ("8bit", "4bit"))
@pytest.mark.parametrize("name", BASES)
@torch.no_grad()
def test_sampling_from_a_quantized_base_is_sampling_from_the_policy(quantization, name, bases):
    """The merged copy holds the layers under an adapter as plain numbers: to 8- or 4-bit codes nothing can be added."""
    pytest.importorskip("bitsandbytes")
    base = load_base(bases[name], quantization=quantization).train()  # in eval mode 4 bits are packed for CPU kernels
    assert any(module.weight.element_size() == 1 for module in base.modules() if isinstance(module, torch.nn.Linear))
    policy = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in (p for key, p in policy.named_parameters() if "lora_" in key):
        parameter.normal_(0, 0.3)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with policy.disable_adapter():
        without = policy(ids).logits.float()
    expected, found = policy(ids).logits.float(), MergedCopy(policy).merge("default")(ids).logits.float()
    assert (found - expected).abs().max() < 0.1 * (expected - without).abs().max()
