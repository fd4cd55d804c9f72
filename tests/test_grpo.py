"""rl/grpo.py, rl/stable.py and rl/evaluate.py on the tiny friend: trl's numbers against ours, the reference, a resume.

What DPO has of its own: tests/test_dpo.py.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig
from trl.trainer.utils import use_adapter

from data.scenes import Scene
from experiments.run import Run
from models.load import load_policy
from models.sampling import left_pad
from rl import evaluate, grpo, stable
from rl.grpo import check, opener_trainer
from rl.rollout import POLICY, REFERENCE, reading
from rl.stable import StableConfig, check_scenes, configure, derive_positions, fit, load_best, make_evaluator
from rl.tree import prefix_trees
from tests.tiny_scenes import SCENES, Likes


@pytest.fixture
def make(friend_adapter, tiny_scorer, tmp_path):
    """Makes an evaluator and trl's trainer in a directory of their own, without wandb."""

    def made(name="run", scorer=None, config=None, **settings):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        defaults = {
            "max_steps": 8, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_generations": 4,
            "num_iterations": 2, "max_completion_length": 6, "temperature": 0.7, "learning_rate": 3e-3, "beta": 0.05,
            "eval_steps": 4, "logging_steps": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True,
            "seed": 1, "disable_tqdm": True,
        }  # fmt: skip
        args = GRPOConfig(output_dir=str(directory), **(defaults | settings))
        settings = {"sft_model_path": friend_adapter, "reward_model_path": tiny_scorer} | (config or {})
        run = Run(directory, "id", "step", SimpleNamespace(log=lambda row: None))
        configure(args, directory)
        evaluator = make_evaluator(StableConfig(**settings), args, run, args.temperature, 6, batch_size=8)
        evaluator.scorer = scorer or Likes()
        return evaluator, opener_trainer(args, evaluator, SCENES)

    return made


def adapter(policy, name):
    return {n: p.detach().clone() for n, p in policy.named_parameters() if f".{name}." in n}


def rows(evaluator, keep=lambda key: not any(word in key for word in ("time", "runtime", "per_second"))):
    lines = (evaluator.run.dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if keep(key)} for line in lines]


# ------------------------------------------------------------------------------------------------ trl's numbers


def test_the_reference_is_the_sft_adapter_and_only_the_policy_learns(make, friend_adapter):
    evaluator, trainer = make()
    before = adapter(evaluator.policy, POLICY)
    base = {n: p.clone() for n, p in evaluator.policy.named_parameters() if "lora" not in n}
    ids = torch.tensor([[5, 60, 70, 80]])
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in adapter(evaluator.policy, POLICY).items())
    sft, trained = load_policy(friend_adapter).eval(), evaluator.policy.eval()
    with torch.no_grad():
        with use_adapter(trained, REFERENCE):  # as trl does
            reference = trained(input_ids=ids).logits
        assert torch.allclose(reference, sft(input_ids=ids).logits, atol=1e-6)
        with sft.disable_adapter():
            assert not torch.allclose(reference, sft(input_ids=ids).logits, atol=1e-2)
    assert all(torch.equal(base[n], p) for n, p in trained.named_parameters() if n in base)
    trainable = {n for n, p in trained.named_parameters() if p.requires_grad}
    assert trainable and all(f".{POLICY}." in n for n in trainable)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for n, p in trained.named_parameters() if f".{POLICY}." in n}


def test_trl_reads_what_we_read_under_left_padding(make):
    """Per-token log-probabilities of the reference, at the sampling temperature, of prompts of unequal length."""
    evaluator, trainer = make()
    for weight in adapter(evaluator.policy, POLICY):
        evaluator.policy.get_parameter(weight).data.add_(0.1)  # so that policy and reference differ
    of, samples, _ = next(evaluator.written(SCENES[:8], POLICY, 1, seed=3))
    query, query_mask = left_pad(evaluator._prompts(of), evaluator.tokenizer.pad_token_id)
    assert len(set(query_mask.sum(1).tolist())) > 2
    trees = prefix_trees(query, query_mask, samples.response_BT, samples.mask_BT, "sdpa")
    ids, mask = torch.cat([query, samples.response_BT], 1), torch.cat([query_mask, samples.mask_BT.long()], 1)
    found = {}
    for name in (REFERENCE, POLICY):
        with torch.no_grad(), use_adapter(evaluator.policy, name):
            found[name], _, _ = trainer._get_per_token_logps_and_entropies(
                evaluator.policy, ids, mask, samples.response_BT.shape[1]
            )
        with torch.no_grad(), reading(evaluator.policy, name):
            expected = trees.rows(trees.read(evaluator.policy, temperature=0.7)[0])
        assert torch.allclose(found[name][samples.mask_BT], expected[samples.mask_BT], atol=1e-4), name
        for row in (0, 7):  # and as each one reads alone, without padding
            own, size = ids[row][mask[row].bool()], int(samples.mask_BT[row].sum())
            with torch.no_grad(), reading(evaluator.policy, name):
                logits = evaluator.policy(input_ids=own[None]).logits[0, -size - 1 : -1]
            alone = torch.log_softmax(logits / 0.7, -1).gather(1, own[-size:, None]).squeeze(1)
            assert torch.allclose(found[name][row, :size], alone, atol=1e-4)
    kl_B = ((found[POLICY] - found[REFERENCE]) * samples.mask_BT).sum(1)
    assert torch.allclose(evaluator.kl(of, samples, POLICY), kl_B, atol=1e-3) and kl_B.abs().max() > 1e-2


def test_without_the_hook_padding_would_change_the_numbers(friend_adapter):
    policy = load_policy(friend_adapter).eval()
    ids, mask = left_pad([[5, 60, 70], [6, 61, 71, 81, 91, 62]], 0)
    with torch.no_grad():
        alone = policy(input_ids=ids[:1, 3:]).logits
        before = policy(input_ids=ids, attention_mask=mask).logits[:1, 3:]
        derive_positions(policy)
        after = policy(input_ids=ids, attention_mask=mask).logits[:1, 3:]
    assert not torch.allclose(before, alone, atol=1e-2) and torch.allclose(after, alone, atol=1e-5)


def test_trl_samples_from_the_policy_under_left_padding(make):
    """Near temperature 0 trl's generation and our sampler write the same openers."""
    evaluator, trainer = make(temperature=1e-4)
    prompts = evaluator._prompts(SCENES[:8])
    trls, _ = trainer._generate_single_turn(prompts, None, {})
    _, samples, _ = next(evaluator.written(SCENES[:8], POLICY, 1, seed=1))
    ours = [ids[mask].tolist() for ids, mask in zip(samples.response_BT, samples.mask_BT, strict=True)]
    assert trls == ours and len(set(map(tuple, ours))) > 1


def test_trl_asks_with_the_prompt_that_we_ask_with(make):
    evaluator, trainer = make()
    found, _, _ = trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))
    assert found == evaluator._prompts(SCENES)


def test_the_reward_is_the_score_less_a_penalty_for_a_missing_end(make):
    evaluator, trainer = make(config={"missing_eos_penalty": 2.5})
    end = evaluator.end_token_id
    you = evaluator.tokenizer("you you")["input_ids"]
    (score,) = trainer.reward_funcs
    assert score(completion_ids=[[*you, end], you, [end]], scene=[0, 1, 2], prompts=[], trainer_state=None) == [
        2.0, -0.5, 0.0,
    ]  # fmt: skip


def test_the_kl_is_0_before_the_first_step(make):
    evaluator, trainer = make(max_steps=4)
    fit(trainer, evaluator, SCENES[:3])
    first = next(row for row in rows(evaluator) if "train/kl" in row)
    assert first["step"] == 1 and first["train/kl"] == pytest.approx(0, abs=1e-5)
    evaluations = {row["step"]: row["eval/kl"] for row in rows(evaluator) if "eval/kl" in row}
    assert evaluations[0] == pytest.approx(0, abs=1e-4) and abs(evaluations[4]) > 1e-3


def test_dropout_is_off(make):
    _, trainer = make()
    assert all(m.p == 0 for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout))


# ------------------------------------------------------------------------------------------------ a run


def test_grpo_raises_a_score_it_can_raise(make):
    evaluator, trainer = make(
        max_steps=24, per_device_train_batch_size=16, num_generations=8, steps_per_generation=1, num_iterations=2,
        learning_rate=1e-2, beta=1e-4, eval_steps=12, temperature=1.0,
    )  # fmt: skip
    summary = fit(trainer, evaluator, SCENES[:6])
    rewards = [row["train/reward"] for row in rows(evaluator) if "train/reward" in row]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 1, rewards
    scores = {row["step"]: row["eval/score"] for row in rows(evaluator) if "eval/score" in row}
    assert list(scores) == [0, 12, 24] and scores[24] > scores[0]
    assert summary["best"]["score"] == max(scores.values()) and summary["optimizer_steps"] == 24


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(make, monkeypatch):
    alone, trainer = make("alone", max_steps=8)
    expected = fit(trainer, alone, SCENES[:3])
    killed, trainer = make("killed", max_steps=8)
    with monkeypatch.context() as context:
        check_finite = killed.run.check_finite

        def strike(loss, step):
            if step == 6:
                raise KeyboardInterrupt
            check_finite(loss, step)

        context.setattr(killed.run, "check_finite", strike)
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, killed, SCENES[:3])
    assert [path.name for path in killed.run.dir.glob("checkpoint-*")] == ["checkpoint-4"]
    torch.manual_seed(99)
    again, trainer = make("killed", max_steps=8)
    assert fit(trainer, again, SCENES[:3]) == expected
    assert rows(again)[:-1] == rows(alone)[:-1]  # the last has the losses' mean since the resume
    for name, weight in adapter(alone.policy, POLICY).items():
        assert torch.equal(weight, again.policy.get_parameter(name)), name
    done, trainer = make("killed", max_steps=8)  # after the last step, before summary.json: nothing is trained
    trainer.train = None
    assert fit(trainer, done, SCENES[:3]) == expected


def test_the_best_is_read_off_the_metrics_within_max_kl(make, friend_adapter):
    evaluator, trainer = make(config={"max_kl": 2.0})
    trainer.train()
    found = [(0, 0.5, 0.0), (4, 1.0, 1.5), (8, 9.0, 2.5)]
    for step, score, kl in found:
        evaluator.run.log({"eval/score": score, "eval/kl": kl}, step=step)
    best = load_best(evaluator)
    assert best == {"step": 4, "score": 1.0, "kl": 1.5, "adapter": "checkpoint-4/adapter_model.safetensors"}

    def stands(path):
        saved = load_file(f"{path}/adapter_model.safetensors")
        return all(
            torch.equal(saved[name.replace(f".{POLICY}.", ".")], weight)
            for name, weight in adapter(evaluator.policy, POLICY).items()
        )

    assert stands(evaluator.run.dir / "checkpoint-4") and not stands(evaluator.run.dir / "checkpoint-8")
    evaluator.config.max_kl = 1.0
    assert load_best(evaluator)["step"] == 0 and stands(friend_adapter)
    evaluator.config.max_kl = -1.0
    assert load_best(evaluator) is None


def test_the_stage_end_to_end(friend_adapter, tiny_scorer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "scenes_of", lambda source, split, root, most: SCENES[:6])
    directory = tmp_path / "grpo"
    args = GRPOConfig(
        output_dir=str(directory), max_steps=4, per_device_train_batch_size=8, num_generations=4, eval_steps=2,
        max_completion_length=6, temperature=1.0, learning_rate=1e-2, beta=0.01, gradient_checkpointing=False,
        bf16=False, use_cpu=True, seed=2, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    config = StableConfig(
        run_dir=str(directory), sft_model_path=friend_adapter, reward_model_path=tiny_scorer, test_samples=2,
        gold_model_path=tiny_scorer,
    )  # fmt: skip
    grpo.main(config, args)
    summary = json.loads((directory / "summary.json").read_text())
    for name in ("sft", "grpo"):
        found = [json.loads(line) for line in (directory / f"openers_{name}.jsonl").read_text().splitlines()]
        assert [(r["scene_id"], r["sample"]) for r in found] == [(s.id, i) for s in SCENES[:6] for i in range(2)]
        assert summary[name]["score"] == pytest.approx(np.mean([r["score"] for r in found]))
        assert [r["gold"] for r in found] == [r["score"] for r in found]
    assert summary["sft"]["kl"] == pytest.approx(0, abs=1e-4)
    assert summary["gain"]["score"] == pytest.approx(summary["grpo"]["score"] - summary["sft"]["score"])
    assert summary["gold_gain"]["gold"] == pytest.approx(summary["gain"]["score"])
    assert summary["best"]["step"] in (0, 2, 4) and summary["temperature"] == 1.0
    shown = capsys.readouterr().out
    assert "GRPO - SFT on 6 test scenes" in shown

    saved = load_file(directory / "model" / "adapter_model.safetensors")
    start = load_file(f"{friend_adapter}/adapter_model.safetensors")
    assert saved.keys() == start.keys()
    assert all(torch.equal(saved[k], start[k]) for k in saved) == (summary["best"]["step"] == 0)
    assert {p.name for p in (directory / "model").iterdir() if p.is_dir()} == set()  # the reference is not saved
    policy = load_policy(str(directory))
    assert policy.peft_config["default"].base_model_name_or_path == friend_adapter.replace("/adapter", "/base")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0: without a KL"),
        ({"scenes": SCENES[:1]}, r"1 training scenes, but generation_batch_size 8 / num_generations 4 takes 2"),
        ({"eval_steps": 6}, r"eval_steps is 6: .* must be a multiple of steps_per_generation x num_iterations = 4"),
    ],
)
def test_a_key_that_cannot_work_is_named(changed, message):
    settings = {
        "beta": 0.1, "generation_batch_size": 8, "num_generations": 4, "eval_steps": 4, "gradient_accumulation_steps": 1,
        "steps_per_generation": 2, "num_iterations": 2,
    }  # fmt: skip
    scenes = changed.pop("scenes", SCENES)
    with pytest.raises(ValueError, match=message):
        check(SimpleNamespace(**(settings | changed)), scenes)


def test_settings_that_cannot_work_are_refused(make, friend_adapter):
    paths = {"sft_model_path": friend_adapter, "reward_model_path": friend_adapter}
    with pytest.raises(ValueError, match="sft_model_path is missing"):
        StableConfig(reward_model_path="x")
    with pytest.raises(ValueError, match="missing_eos_penalty is -1.0"):
        StableConfig(**paths, missing_eos_penalty=-1.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        stable.make_evaluator(StableConfig(**paths), None, None, 0.0, 6, 8)
    evaluator, _ = make()
    with pytest.raises(ValueError, match="gave no training scenes"):
        check_scenes(evaluator, [], SCENES)
    with pytest.raises(ValueError, match=r"scene 'long': its prompt has \d+ tokens; .* context of 256"):
        check_scenes(evaluator, SCENES, [Scene("long", ("likes plums and pears",) * 60)])


def test_a_score_or_a_loss_that_is_no_number_ends_the_run(make):
    class Broken:
        def score(self, rows):
            return torch.tensor([float("nan")] * len(rows)), torch.ones(len(rows), 1)

    _, trainer = make("nan", scorer=Broken())
    with pytest.raises(ValueError, match="the scorer gave nan for scene 's"):
        trainer.train()
    _, trainer = make("loss")
    trainer.compute_loss = lambda *args, **kwargs: torch.tensor(float("nan"), requires_grad=True)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        trainer.train()
