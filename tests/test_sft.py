"""sft/: train.py, pretrain.py and tokenizer.py on the tiny friend: what is learnt, counted, resumed and refused."""

import hashlib
import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import wandb
from safetensors.torch import load_file
from transformers import BertConfig, BertLMHeadModel
from trl import SFTConfig

from data import sample
from data.corpora import without_leaks
from data.dialogue import INSTRUCTIONS, Dialogue, Turn, messages
from data.openers import openers_of, people
from data.scenes import Scene, profile_hash
from models.load import load_policy, load_tokenizer
from sft import distill, pretrain, train
from sft.pretrain import PretrainConfig
from sft.tokenizer import END, FRIEND, PERSON, SYSTEM
from sft.train import FriendConfig, FriendTrainer, chats, configure, lora_model, sampled, spread

TEXTS = [
    "Good morning!",
    "You sound happy — has something nice happened?",
    "Yes: my bees came back.",
    "Oh, how lovely!",
    "Indeed.",
]
SPEAKERS = ["person", "friend", "person", "friend", "person"]
DIALOGUE = Dialogue("d", "sample", "train", tuple(map(Turn, SPEAKERS, TEXTS)), profile=("keeps bees",))


@pytest.fixture(scope="module")
def splits():
    """A few short dialogues of the sample a split, and no system message beyond the instruction."""
    found = {}
    for split, most in (("train", 24), ("validation", 6), ("test", 6)):
        short = sorted(sample.load(split), key=lambda d: sum(len(turn.text) for turn in d.turns))
        found[split] = [replace(dialogue, profile=()) for dialogue in short[:most]]
    return found


@pytest.fixture
def few(splits, monkeypatch):
    monkeypatch.setattr(train, "mixture", lambda *_: (splits, []))


def settings(directory, friend_base, **more):
    config = {"run_dir": str(directory), "model_name_or_path": friend_base, "lora_r": 4, "max_new_tokens": 4}
    defaults = {
        "max_length": 160, "max_steps": 6, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2, "eval_steps": 2, "logging_steps": 1, "gradient_checkpointing": False, "bf16": False,
        "use_cpu": True, "disable_tqdm": True, "seed": 1,
    }  # fmt: skip
    args = SFTConfig(output_dir=str(directory), **(defaults | more))
    return FriendConfig(**config), args


def make_trainer(directory, friend_base, dialogues, role="friend"):
    config, args = settings(directory, friend_base)
    config.role = role
    tokenizer = load_tokenizer(friend_base)
    dataset = chats(dialogues, config, tokenizer, args.max_length)
    configure(args, directory)
    return FriendTrainer(
        model=lora_model(config), args=args, processing_class=tokenizer, train_dataset=dataset, eval_dataset=dataset
    )


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize(("role", "spoken"), [("friend", TEXTS[1::2]), ("person", TEXTS[0::2])])
def test_the_loss_is_on_the_role_alone(friend_base, tmp_path, role, spoken):
    trainer = make_trainer(tmp_path, friend_base, [DIALOGUE], role)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"][0]
    learnt = trainer.processing_class.decode(labels[labels != -100])
    assert learnt == "".join(f" {text}{END}" for text in spoken)
    everything = trainer.processing_class.decode(batch["input_ids"][0])
    assert INSTRUCTIONS["friend"].split("\n")[0] in everything and "keeps bees" in everything
    assert everything.count(FRIEND) == len(spoken) and everything.count(PERSON) == 5 - len(spoken)


def test_bits_per_byte_are_those_of_a_plain_loop(friend_base, splits, tmp_path):
    trainer = make_trainer(tmp_path, friend_base, splits["validation"])
    found = trainer.evaluate()
    nats = tokens = size = 0
    tokenizer, mark = trainer.processing_class, trainer.processing_class.convert_tokens_to_ids(FRIEND)
    for dialogue in splits["validation"]:
        ids = tokenizer.apply_chat_template(messages(dialogue, INSTRUCTIONS["friend"]), return_dict=True)["input_ids"]
        with torch.no_grad():
            log_p = trainer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        speaking = False
        for t, token in enumerate(ids):
            if speaking:
                nats, tokens = nats - log_p[t - 1, token].item(), tokens + 1
            speaking = token == mark or (speaking and token != tokenizer.eos_token_id)
        size += sum(len(turn.text.encode()) for turn in dialogue.turns if turn.speaker == "friend")
    assert found["eval_loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert found["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_training_minimises_what_evaluation_measures(friend_base, splits, tmp_path):
    trainer = make_trainer(tmp_path, friend_base, splits["train"][:4])
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))  # the fresh adapter adds 0, dropout or not
    assert loss.item() == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


def test_the_batch_size_changes_no_evaluation(friend_base, splits, tmp_path):
    trainer = make_trainer(tmp_path, friend_base, splits["validation"])
    expected = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 1
    assert trainer.evaluate() == pytest.approx(expected, rel=1e-5)


def test_a_dialogue_that_is_too_long_loses_its_last_turns(friend_base):
    tokenizer, config = load_tokenizer(friend_base), FriendConfig()
    chat = messages(DIALOGUE, INSTRUCTIONS["friend"])
    size = len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])
    assert chats([DIALOGUE], config, tokenizer, size)[0]["messages"] == chat
    shorter = chats([DIALOGUE], config, tokenizer, size - 1)[0]
    assert shorter["messages"] == chat[:-1]
    assert shorter["spoken_bytes"] == len((TEXTS[1] + TEXTS[3]).encode())
    least = len(tokenizer.apply_chat_template(chat[:3], return_dict=True)["input_ids"])
    assert chats([DIALOGUE], config, tokenizer, least)[0]["spoken_bytes"] == len(TEXTS[1].encode())
    with pytest.raises(ValueError, match="no friend turns in this split .* check sources and max_length"):
        chats([DIALOGUE], config, tokenizer, least - 1)


def test_the_evaluated_rows_are_spread_over_the_split(friend_base, splits):
    dataset = chats(splits["train"], FriendConfig(), load_tokenizer(friend_base), 256)
    assert spread(dataset, 100) is dataset
    few = spread(dataset, 5)["messages"]
    assert (
        len(few) == 5
        and few[0] == dataset[0]["messages"]
        and few[4] == dataset[round(4 * len(dataset) / 5)]["messages"]
    )


def test_samples_that_the_context_has_no_room_for_are_left_out(friend_base, splits):
    config, tokenizer = FriendConfig(max_new_tokens=4), load_tokenizer(friend_base)
    long = replace(DIALOGUE, turns=(*DIALOGUE.turns[:-1], Turn("person", "plum " * 120), Turn("friend", "Yes.")))
    dialogues = chats([DIALOGUE, long, DIALOGUE], config, tokenizer, 1000)
    columns, found = sampled(load_policy(friend_base), tokenizer, dialogues, config, seed=1)
    replies = [row for row in found if row[0] == "reply"]
    assert columns == ["kind", "heard", "system", "said", "human"] and len(replies) == 2
    assert replies[0][1] == " | ".join(TEXTS[:3]) and replies[0][4] == TEXTS[3]
    assert {row[0] for row in found} == {"reply", "opener"}


# ------------------------------------------------------------------------------------------------ the stage


def test_the_stage_end_to_end(friend_base, few, tmp_path):
    config, args = settings(tmp_path / "sft", friend_base, max_steps=12, eval_steps=5)
    train.main(config, args)
    directory = tmp_path / "sft"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["after"]["eval_loss"] < summary["before"]["eval_loss"] - 0.2
    assert summary["test"]["test_bits_per_byte"] > 0 and summary["steps"] == 12
    assert summary["examples"] == {"train": 24, "validation": 6, "test": 6}
    found = rows(directory)
    losses = {row["step"]: row["eval/loss"] for row in found if "eval/loss" in row}
    assert list(losses) == [0, 5, 10, 12]  # before, during, after
    assert summary["after"]["eval_loss"] == pytest.approx(min(losses.values()))  # the best weights are what is kept
    assert [row["step"] for row in found if "train/loss" in row] == list(range(1, 13))

    assert not list((directory / "model").glob("*.bin"))
    adapter = json.loads((directory / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == friend_base and (adapter["r"], adapter["lora_alpha"]) == (4, 32)
    policy, ids = load_policy(str(directory)).eval(), torch.tensor([[5, 60, 70]])
    with torch.no_grad():
        assert not torch.allclose(policy(input_ids=ids).logits, load_policy(friend_base).eval()(input_ids=ids).logits)
    assert load_tokenizer(str(directory)).chat_template == load_tokenizer(friend_base).chat_template
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in samples} == {"reply", "opener"}


class Killed(Exception):
    pass


def killed(config, args, monkeypatch, step=None, at=None):
    """Runs the stage and kills it in training step `step`, or where it reaches the function `at` of the stage."""
    if at:
        monkeypatch.setattr(train, at, raise_killed)
    else:
        real = FriendTrainer.training_step

        def dying(self, *rest):
            if self.state.global_step == step:
                raise Killed
            return real(self, *rest)

        monkeypatch.setattr(FriendTrainer, "training_step", dying)
    with pytest.raises(Killed):
        train.main(config, args)
    wandb.finish()
    monkeypatch.undo()


def raise_killed(*_):
    raise Killed


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_run_goes_on_as_if_it_had_not_been(friend_base, splits, tmp_path, monkeypatch, step):
    def patch():
        monkeypatch.setattr(train, "mixture", lambda *_: (splits, []))

    patch()
    train.main(*settings(tmp_path / "alone", friend_base))
    killed(*settings(tmp_path / "killed", friend_base), monkeypatch, step=step)
    patch()
    train.main(*settings(tmp_path / "killed", friend_base))
    expected = load_file(tmp_path / "alone" / "model" / "adapter_model.safetensors")
    found = load_file(tmp_path / "killed" / "model" / "adapter_model.safetensors")
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())
    keep = ("step", "eval/loss", "train/loss", "train/grad_norm")
    alone, again = (
        [{k: row[k] for k in keep if k in row} for row in rows(tmp_path / name)] for name in ("alone", "killed")
    )
    assert len(alone) == len(again)
    for row, other in zip(alone, again, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_a_run_killed_after_its_last_step_trains_no_more(friend_base, splits, tmp_path, monkeypatch):
    def patch():
        monkeypatch.setattr(train, "mixture", lambda *_: (splits, []))

    patch()
    killed(*settings(tmp_path / "sft", friend_base, max_steps=5), monkeypatch, at="sampled")
    patch()
    monkeypatch.setattr(FriendTrainer, "training_step", raise_killed)
    train.main(*settings(tmp_path / "sft", friend_base, max_steps=5))
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    losses = [row["eval/loss"] for row in rows(tmp_path / "sft") if "eval/loss" in row]
    assert summary["steps"] == 5 and summary["after"]["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_the_seed_decides_the_adapter(friend_base, few, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(train, "lora_model", lambda config: made.append(lora_model(config)) or made[-1])
    monkeypatch.setattr(train, "fit", raise_killed)
    for i, seed in enumerate((1, 1, 2)):
        with pytest.raises(Killed):
            train.main(*settings(tmp_path / f"run{i}", friend_base, seed=seed))
        wandb.finish()
    first, same, other = ([p for n, p in model.named_parameters() if "lora_A" in n][0] for model in made)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_loss_that_is_no_number_ends_the_run(friend_base, few, tmp_path, monkeypatch):
    real = FriendTrainer.compute_loss

    def broken(self, *rest, **more):
        loss = real(self, *rest, **more)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(FriendTrainer, "compute_loss", broken)
    with pytest.raises(FloatingPointError, match="loss is nan at step 4"):
        train.main(*settings(tmp_path / "sft", friend_base))
    kept = load_file(tmp_path / "sft" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in kept.values())
    assert not (tmp_path / "sft" / "summary.json").exists()


# ------------------------------------------------------------------------------------------------ the base


@pytest.fixture
def base_config(friend_base, tmp_path, monkeypatch):
    """Settings of a base of two layers that starts from random weights instead of MiniLM's."""
    monkeypatch.setattr(pretrain, "minilm_decoder", lambda tokenizer, num_layers: random_decoder(tokenizer))

    def config(name, **more):
        defaults = {
            "weights_start": {"sample": 1.0}, "weights_end": {"sample": 1.0}, "train_megabytes": 0.02,
            "vocab_size": 400, "block_size": 128, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 2,
            "eval_steps": 3, "eval_dialogues": 4, "compile": False,
        }  # fmt: skip
        return PretrainConfig(run_dir=str(tmp_path / name), **(defaults | more))

    return config


def random_decoder(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), is_decoder=True, pad_token_id=0, **sizes, **dropout))


@pytest.fixture(scope="module")
def dialogues():
    return {"sample": list(sample.load("train"))[:60]}


@pytest.fixture(scope="module")
def packed(dialogues, friend_tokenizer):
    config = PretrainConfig(
        weights_start={"sample": 1.0}, weights_end={"sample": 1.0}, train_megabytes=0.05, block_size=128, batch_size=4
    )
    return pretrain.packed_rows(dialogues, friend_tokenizer, config)[0]


def test_encode_is_the_chat_template(friend_tokenizer):
    template = friend_tokenizer.apply_chat_template(messages(DIALOGUE, INSTRUCTIONS["friend"]), return_dict=True)
    marks = {"system": SYSTEM, "user": PERSON, "assistant": FRIEND}
    parts = [(marks[m["role"]], m["content"]) for m in messages(DIALOGUE, INSTRUCTIONS["friend"])]
    assert pretrain.encode(parts, friend_tokenizer) == template["input_ids"]
    for seed in range(20):  # what it reads of a dialogue is a chat of the template, with or without instruction
        parts = pretrain.pieces(DIALOGUE, np.random.default_rng(seed))
        assert [text for _, text in parts if _ != SYSTEM] == TEXTS
        roles = {SYSTEM: "system", PERSON: "user", FRIEND: "assistant"}
        chat = [{"role": roles[mark], "content": text} for mark, text in parts]
        assert (
            pretrain.encode(parts, friend_tokenizer)
            == friend_tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        )


def test_rows_hold_whole_dialogues_and_little_padding(packed, friend_tokenizer):
    ids, numbers = packed[:, 0], packed[:, 1]
    assert (ids[numbers == 0] == friend_tokenizer.pad_token_id).all() and (numbers > 0).mean() > 0.9
    assert (np.diff(numbers, axis=1)[(numbers[:, 1:] > 0)] >= 0).all() and numbers.max() > 1
    text = friend_tokenizer.decode([int(token) for token in ids[numbers > 0]])
    assert PERSON in text and FRIEND in text and SYSTEM in text


def test_positions_restart_and_labels_stay_within_a_dialogue():
    row = np.zeros((1, 2, 7), dtype=np.int32)
    row[0] = [[11, 12, 13, 21, 22, 31, 0], [1, 1, 1, 2, 2, 3, 0]]
    ids, positions, labels, mask = pretrain.as_tensors(row)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0]]
    assert labels.tolist() == [[12, 13, -100, 22, -100, -100, -100]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_a_dialogue_sees_nothing_of_its_neighbours(packed, friend_base):
    model = load_policy(friend_base).eval()
    row = next(row for row in packed if row[1].max() >= 3)
    middle = row[1] == 2
    other = row.copy()
    other[0, ~middle] = (other[0, ~middle] + 7) % 500

    def logits(row):
        ids, positions, _, mask = pretrain.as_tensors(row[None])
        with torch.no_grad():
            hidden = model.bert(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
            return model.cls(hidden)[0, torch.from_numpy(middle)]

    assert torch.allclose(logits(row), logits(other), atol=1e-5)
    alone = torch.from_numpy(row[0, middle]).long()[None]
    with torch.no_grad():
        assert torch.allclose(logits(row), model(input_ids=alone).logits[0], atol=1e-4)  # as the friend will read it


def test_of_what_a_larger_friend_said_the_opener_alone_is_learnt(tmp_path, friend_tokenizer):
    file = tmp_path / "taught.jsonl"
    people = [(["keeps bees"], None, "Are the bees well?"), (["has a dog"], "It rains.", "Does the dog mind the rain?")]
    keys = ("profile", "greeting", "opener")
    file.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in people))
    with pytest.raises(ValueError, match="weights_start names 'taught', which needs openers_file"):
        PretrainConfig(weights_start={"taught": 1.0}, weights_end={"taught": 1.0})
    with pytest.raises(ValueError, match="no 'taught': nothing would be read of it"):
        PretrainConfig(weights_start={"sample": 1.0}, weights_end={"sample": 1.0}, openers_file=str(file))
    config = PretrainConfig(
        weights_start={"taught": 1.0}, weights_end={"taught": 1.0}, openers_file=str(file), train_megabytes=0.002,
        block_size=128, batch_size=2,
    )  # fmt: skip
    train = {"taught": list(openers_of("taught", file))}
    assert [d.turns[-1].speaker for d in train["taught"]] == ["friend", "friend"]
    rows, _ = pretrain.packed_rows(train, friend_tokenizer, config)
    ids, positions, labels, _ = pretrain.as_tensors(rows)
    learnt = friend_tokenizer.decode(labels[labels != -100])
    assert set(map(str.strip, learnt.replace(END, "|").split("|"))) == {opener for *_, opener in people} | {""}
    assert (labels[labels != -100] == ids[:, 1:][labels[:, :-1] != -100]).all()
    texts = friend_tokenizer.batch_decode(ids)
    assert all("keeps bees" in text or "has a dog" in text for text in texts), "the profile is always read"
    assert any(INSTRUCTIONS["friend"] in text for text in texts)
    assert int(positions.max()) < 128 and (np.abs(rows[:, 1]).max(1) >= 1).all()


def test_the_rows_depend_on_the_seed_alone(dialogues, friend_tokenizer):
    def rows_of(seed):
        config = PretrainConfig(
            weights_start={"sample": 1.0}, weights_end={"sample": 1.0}, train_megabytes=0.02, block_size=128,
            batch_size=4, seed=seed,
        )  # fmt: skip
        return pretrain.packed_rows(dialogues, friend_tokenizer, config)[0]

    first = rows_of(1)
    assert np.array_equal(first, rows_of(1)) and not np.array_equal(first[:4], rows_of(2)[:4])


def test_too_little_text_for_a_batch_is_refused(dialogues, friend_tokenizer):
    config = PretrainConfig(weights_start={"sample": 1.0}, weights_end={"sample": 1.0}, train_megabytes=0.001)
    with pytest.raises(ValueError, match=r"train_megabytes 0.001 fill \d+ rows, less than one batch of 16"):
        pretrain.packed_rows(dialogues, friend_tokenizer, config)


def test_training_repeats_no_held_out_dialogue():
    again = replace(DIALOGUE, id="again", turns=tuple(replace(t, text=t.text.upper() + " ") for t in DIALOGUE.turns))
    other = replace(DIALOGUE, id="other", turns=DIALOGUE.turns[:2])
    assert without_leaks({"x": [again, other]}, [DIALOGUE]) == {"x": [other]}


def test_openers_that_are_missing_or_others_are_told_before_a_run_is_opened(base_config, tmp_path):
    file = tmp_path / "taught.jsonl"
    more = {"weights_start": {"taught": 1.0}, "weights_end": {"taught": 1.0}, "openers_file": str(file)}
    with pytest.raises(FileNotFoundError, match="taught.jsonl"):
        pretrain.main(base_config("base", **more))
    file.write_text("")
    with pytest.raises(ValueError, match="taught.jsonl has no openers"):
        pretrain.main(base_config("base", **more))
    assert not (tmp_path / "base").exists()
    file.write_text('{"profile": ["keeps bees"], "greeting": null, "opener": "Are the bees well?"}\n')
    pretrain.main(base_config("base", train_megabytes=0.01, **more))
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    assert settings["openers_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_base_goes_on_as_if_it_had_not_been(base_config, tmp_path, monkeypatch, optimizer):
    pretrain.main(base_config("alone", optimizer=optimizer))
    loss_of, steps = pretrain.row_loss, []

    def dying(model, ids, *rest):
        if torch.is_grad_enabled():
            if len(steps) == 4:
                raise Killed
            steps.append(1)
        return loss_of(model, ids, *rest)

    monkeypatch.setattr(pretrain, "row_loss", dying)
    with pytest.raises(Killed):
        pretrain.main(base_config("killed", optimizer=optimizer))
    wandb.finish()
    monkeypatch.setattr(pretrain, "row_loss", loss_of)
    pretrain.main(base_config("killed", optimizer=optimizer))

    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("alone", "killed"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    alone, again = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(tmp_path / name)]
        for name in ("alone", "killed")
    )
    assert alone == again and alone[0]["step"] == 3
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["eval/bits_per_byte/sample"] < alone[0]["eval/bits_per_byte/sample"]


def test_a_base_loads_by_its_run(base_config, tmp_path):
    pretrain.main(base_config("base"))
    model, tokenizer = load_policy(str(tmp_path / "base")), load_tokenizer(str(tmp_path / "base"))
    assert model.dtype == torch.float32 and len(tokenizer) == model.config.vocab_size
    stored = load_file(tmp_path / "base" / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}


def test_a_kill_while_saving_loses_no_checkpoint(friend_base, tmp_path):
    model = load_policy(friend_base)
    optimizers = [torch.optim.AdamW(model.parameters())]
    assert pretrain.resume(tmp_path, model, optimizers) == 0
    pretrain.save(tmp_path, model, optimizers, step=3)
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")  # killed between the two renames
    assert pretrain.resume(tmp_path, model, optimizers) == 3
    pretrain.save(tmp_path, model, optimizers, step=6)
    (tmp_path / ".checkpoint.old").mkdir()
    (tmp_path / ".checkpoint.old" / "state.pt").write_bytes(b"")  # killed before the old one was gone
    assert pretrain.resume(tmp_path, model, optimizers) == 6
    pretrain.save(tmp_path, model, optimizers, step=9)
    assert pretrain.resume(tmp_path, model, optimizers) == 9 and not (tmp_path / ".checkpoint.old").exists()


def test_the_schedule_warms_up_stays_and_decays():
    config = PretrainConfig(
        weights_start={"sample": 1.0}, weights_end={"sample": 1.0}, warmup_steps=4, decay_fraction=0.5
    )
    scales = [pretrain.learning_rate_scale(step, 20, config) for step in range(20)]
    assert scales[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and scales[10] == 1.0 and scales[15] == 0.5
    assert scales[-1] == pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------ what a larger friend says


@pytest.fixture
def distill_config(friend_adapter, monkeypatch, tmp_path):
    derived = [Scene("hit:1", ("went to a park",), None), Scene("hit:2", ("lost a shoe",), "My shoe is gone.")]
    monkeypatch.setattr(distill, "derived_scenes", lambda split, root: derived)
    monkeypatch.setattr(distill, "people", lambda: islice(people(), 6))

    def config(name, **more):
        defaults = {"imagined_people": 5, "num_return_sequences": 2, "max_new_tokens": 12, "batch_size": 4}
        file = str(tmp_path / f"{name}.jsonl")
        return distill.DistillConfig(teacher=friend_adapter, output_file=file, **(defaults | more))

    return config


def test_a_teachers_openers_for_people(distill_config, tmp_path):
    distill.main(distill_config("taught"))
    found = [json.loads(line) for line in (tmp_path / "taught.jsonl").read_text().splitlines()]
    assert 10 < len(found) < 2 * 13 and len({json.dumps(row) for row in found}) == len(found)
    known = {profile_hash(scene.profile) for scene, _ in islice(people(), 6)} | {profile_hash(["lost a shoe"])}
    profiles = {profile_hash(row["profile"]) for row in found}
    assert len(known & profiles) > 3 and len(profiles - known) > 3  # imagined ones, and the park
    assert len(list(openers_of("taught", tmp_path / "taught.jsonl"))) == len(found), "pretrain reads it"
    assert not (tmp_path / "taught.part").exists()
    distill.main(distill_config("other", batch_size=3))
    assert (tmp_path / "other.jsonl").read_text() == (tmp_path / "taught.jsonl").read_text()


def test_imagined_people_are_made_of_two_and_can_be_had_again():
    made, known = distill.imagined(20, seed=1), [scene for scene, _ in people()]
    facts, greetings = {fact for scene in known for fact in scene.profile}, {scene.greeting for scene in known}
    assert made == distill.imagined(20, seed=1) != distill.imagined(20, seed=2)
    assert all(set(scene.profile) <= facts and scene.greeting in greetings for scene in made)
    assert all(len(set(scene.profile)) == len(scene.profile) >= 1 for scene in made)
    new = {profile_hash(scene.profile) for scene in made} - {profile_hash(scene.profile) for scene in known}
    assert len(new) >= 15 and not {(profile_hash(s.profile), s.greeting) for s in made} & {
        (profile_hash(s.profile), s.greeting) for s in known
    }


def test_a_killed_distillation_goes_on_where_it_stood(distill_config, tmp_path, monkeypatch):
    distill.main(distill_config("alone"))
    said, calls = distill.say, []

    def dying(*args, **kwargs):
        if len(calls) == 2:
            raise Killed
        calls.append(1)
        return said(*args, **kwargs)

    monkeypatch.setattr(distill, "say", dying)
    with pytest.raises(Killed):
        distill.main(distill_config("killed"))
    with open(tmp_path / "killed.part", "a") as part:
        part.write('["half a li')  # of a kill while it wrote
    monkeypatch.setattr(distill, "say", said)
    with pytest.raises(ValueError, match="killed.part was begun with other settings, teacher or people"):
        distill.main(distill_config("killed", temperature=0.7))
    distill.main(distill_config("killed"))
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "alone.jsonl").read_text()


# ------------------------------------------------------------------------------------------------ the tokenizer


@pytest.mark.parametrize("text", ["Hello there.", "It's 5 o'clock — déjà vu, 你好 🐝", "a\nb", "x" * 300])
def test_text_survives_the_tokenizer(friend_tokenizer, text):
    ids = friend_tokenizer(f"{FRIEND}{text}{END}")["input_ids"]
    assert friend_tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_a_word_is_one_token_wherever_it_stands(friend_tokenizer):
    first, second = (friend_tokenizer(f"{PERSON}{text}")["input_ids"][-1] for text in ("you", "and you"))
    assert first == second and friend_tokenizer.decode([first]) == " you"


def test_marks_are_single_tokens_and_pad_is_0(friend_tokenizer):
    assert friend_tokenizer.pad_token_id == 0 and friend_tokenizer.eos_token == END
    assert friend_tokenizer.convert_tokens_to_ids([END, SYSTEM, PERSON, FRIEND]) == [1, 2, 3, 4]
    chat = [{"role": "user", "content": "Hi"}]
    prompt = friend_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{PERSON}Hi{END}{FRIEND}"
    with pytest.raises(Exception, match="role must be system, user or assistant, not bot"):
        friend_tokenizer.apply_chat_template([{"role": "bot", "content": "Hi"}])
