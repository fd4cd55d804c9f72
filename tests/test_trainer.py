"""rl/trainer.py, rl/rollout.py and rl/train.py on the tiny friend: what an update does, resumes, and refusals.

Two processes are covered by the slow test of the stages.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl.experimental.ppo import PPOConfig

from data.scenes import Scene
from experiments.run import Run
from models.load import load_policy, load_scorer, load_tokenizer
from rl import train
from rl.rollout import MergedCopy, Rollout, left_pad, scene_rows
from rl.train import policy_with_reference
from rl.trainer import POLICY, REFERENCE, OpenerConfig, OpenerPPOTrainer, checkpoints

FACTS = ["keeps bees", "is 71", "cannot swim", "bakes rye bread", "plays the tuba", "lost a glove"]
SCENES = [Scene(f"s{i}", (FACTS[i % 6], FACTS[(2 * i + 1) % 6]), "Hello." if i % 2 else None) for i in range(10)]


class Likes:
    """A scorer of the same interface whose opinion is how often the response says one word."""

    def __init__(self, word="you"):
        self.word, self.model = word, torch.nn.Identity()

    def score(self, rows):
        counts = [float(row["response"].count(self.word)) for row in rows]
        return torch.tensor(counts), torch.ones(len(rows), 1)


class Says(Likes):
    """A scorer that gives what it was told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def score(self, rows):
        return self.answer(rows), torch.ones(len(rows), 1)


@pytest.fixture
def make(friend_adapter, tmp_path):
    """Makes a trainer in a directory of its own, without wandb."""

    def trainer(name="run", scorer=None, config=None, scenes=SCENES, **settings):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        defaults = {
            "total_episodes": 24, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
            "num_mini_batches": 2, "num_ppo_epochs": 2, "response_length": 6, "temperature": 1.0,
            "learning_rate": 3e-3, "kl_coef": 0.05, "local_rollout_forward_batch_size": 8, "missing_eos_penalty": None,
            "save_steps": 2, "eval_steps": 2,
            "seed": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True, "sft_model_path": friend_adapter,
        }  # fmt: skip
        args = PPOConfig(output_dir=str(directory), **(defaults | settings))
        config = OpenerConfig(**(config or {}))
        run = Run(directory, "id", "step", SimpleNamespace(log=lambda row: None))
        policy, tokenizer = policy_with_reference(friend_adapter, config), load_tokenizer(friend_adapter)
        return OpenerPPOTrainer(config, args, run, tokenizer, policy, scorer or Likes(), scenes, SCENES[:3])

    return trainer


def weights(trainer, *parts):
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {n: p.detach().clone() for n, p in named if not parts or any(part in n for part in parts)}


def rows(trainer, keep=lambda key: not key.startswith("time/")):
    lines = (trainer.run.dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if keep(key)} for line in lines]


# ------------------------------------------------------------------------------------------------ an update


def test_what_three_updates_do(make):
    trainer = make()
    before, steps = weights(trainer), []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (steps.append(1), step(*a, **k))[1]
    trainer.train()

    after = weights(trainer)
    assert trainer.optimizer_steps == len(steps) == 3 * 2 * 2  # updates x num_ppo_epochs x num_mini_batches
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    learnt = {name for name in after if f".{POLICY}." in name or "value_model" in name}
    assert moved == learnt and any("lora_B" in name for name in learnt) and "value_model.linear.weight" in moved

    updates = [row for row in rows(trainer) if "objective/kl" in row]
    assert [row["step"] for row in updates] == [8, 16, 24] and [row["update"] for row in updates] == [1, 2, 3]
    assert [row["optimizer_steps"] for row in updates] == [4, 8, 12]
    assert updates[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # policy and reference are still the same
    assert abs(updates[1]["objective/kl"]) > 1e-4
    for row in updates:
        assert row["policy/first_ratio"] == pytest.approx(1, abs=1e-4)
        assert row["policy/grad_norm"] > 0 and 0 <= row["response/ended"] <= 1 <= row["response/length"] <= 6
        assert row["objective/rlhf_reward"] == pytest.approx(row["objective/score"] - 0.05 * row["objective/kl"])
        assert np.isfinite(list(row.values())).all()
    assert [row["lr"] for row in updates] == pytest.approx([3e-3, 2e-3, 1e-3])  # what the update used
    assert [row["step"] for row in rows(trainer) if "eval/score" in row] == [0, 16, 24]  # before, during, after


def test_accumulation_changes_nothing(make):
    whole = make("whole", per_device_train_batch_size=8, gradient_accumulation_steps=1)
    parts = make("parts", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    for trainer in (whole, parts):
        trainer.train()
    expected = weights(whole)
    for name, weight in weights(parts).items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name
    for row, other in zip(rows(whole), rows(parts), strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_a_step_is_the_gradient_of_the_whole_minibatch(make):
    """Micro-batches of unequal token counts add up to the mean over the minibatch's tokens."""
    trainer = make(num_mini_batches=1, num_ppo_epochs=1, max_grad_norm=1e9)
    rollout, _ = trainer.rollout(0)
    assert len(set(rollout.mask_BT.sum(1).tolist())) > 1
    advantages = torch.randn(rollout.mask_BT.shape, generator=torch.Generator().manual_seed(0)) * rollout.mask_BT
    found = {}
    trainer.optimizer.step = lambda *a, **k: found.update(
        {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    )
    metrics = trainer._step(rollout, advantages, torch.zeros_like(advantages), np.arange(8))
    part = rollout.rows(torch.arange(8))  # tensors that autograd may keep
    logp, _, values = trainer.model(part.query_BP, part.query_mask_BP, part.response_BT, part.mask_BT, 1.0)
    mask = rollout.mask_BT.float()
    ratio = ((logp - rollout.logp_BT) * mask).exp()
    loss = (-(advantages * ratio * mask).sum() + trainer.args.vf_coef * 0.5 * (values**2 * mask).sum()) / mask.sum()
    loss.backward()
    for name, weight in trainer.model.named_parameters():
        if weight.grad is not None:
            assert torch.allclose(found[name], weight.grad, atol=1e-6), name
    assert metrics["policy/loss"] == pytest.approx(
        -(advantages * ratio * mask).sum().item() / mask.sum().item(), abs=1e-5
    )


def test_the_score_is_paid_on_the_last_real_token(make, monkeypatch):
    trainer, seen = make(kl_coef=0.0), {}
    rollout, _ = trainer.rollout(0)
    gae = train.OpenerPPOTrainer.improve.__globals__["ppo"].gae
    monkeypatch.setattr("rl.trainer.ppo.gae", lambda rewards, *rest: (seen.update(r=rewards), gae(rewards, *rest))[1])
    trainer.improve(rollout, 0)
    for reward, mask, score in zip(seen["r"], rollout.mask_BT, rollout.score_B, strict=True):
        last = int(mask.sum()) - 1
        assert reward[last] == score and reward.abs().sum() == score.abs()


def test_padding_of_a_batch_changes_no_number(make):
    trainer = make()
    rollout, _ = trainer.rollout(0)
    one = rollout.rows(torch.tensor([3]))
    assert one.query_mask_BP.all() and one.mask_BT.all()
    with torch.no_grad():
        found = trainer.model(one.query_BP, one.query_mask_BP, one.response_BT, one.mask_BT, 1.0)
    T = one.mask_BT.shape[1]
    assert torch.allclose(found[0][0], rollout.logp_BT[3, :T], atol=1e-5)
    assert torch.allclose(found[2][0], rollout.values_BT[3, :T], atol=1e-5)
    assert (rollout.logp_BT[~rollout.mask_BT] == 0).all() and (rollout.values_BT[~rollout.mask_BT] == 0).all()


def test_logp_and_kl_are_at_the_sampling_temperature(make):
    trainer = make(temperature=0.5)
    rollout, _ = trainer.rollout(0)
    ids = torch.cat([rollout.query_BP, rollout.response_BT], 1)[4]
    mask = torch.cat([rollout.query_mask_BP, rollout.mask_BT.long()], 1)[4]
    T = int(rollout.mask_BT[4].sum())
    with torch.no_grad():
        logits = trainer.policy_model(input_ids=ids[mask.bool()][None]).logits[0, -T - 1 : -1]
    expected = torch.log_softmax(logits / 0.5, -1).gather(1, ids[mask.bool()][-T:, None]).squeeze(1)
    assert torch.allclose(rollout.logp_BT[4, :T], expected, atol=1e-5)


def test_a_penalty_for_a_missing_end(make):
    scene, openers = [SCENES[0]] * 2, ["eee", "eee"]
    free, strict = make("free"), make("strict", missing_eos_penalty=2.5)
    ended = torch.tensor([True, False])
    assert (free.scores(scene, openers, ended) - strict.scores(scene, openers, ended)).tolist() == [0, 2.5]


def test_the_sampler_is_the_policy_and_the_base_stays(make):
    trainer = make()
    ids = torch.tensor([[5, 60, 70, 80]])
    base = {n: p.clone() for n, p in trainer.policy_model.named_parameters() if "lora" not in n}
    outputs = {}
    for name in (POLICY, REFERENCE):
        with torch.no_grad():
            for weight_name, weight in trainer.policy_model.named_parameters():
                if name == POLICY and f"lora_B.{POLICY}" in weight_name:
                    weight.add_(0.3)
            with trainer._adapter(name):
                expected = trainer.policy_model(input_ids=ids).logits
            outputs[name] = trainer.sampler.merge(name)(input_ids=ids).logits.clone()
        assert torch.allclose(outputs[name], expected, atol=1e-4), name
    assert not torch.allclose(outputs[POLICY], outputs[REFERENCE], atol=1e-2)
    assert all(torch.equal(base[n], p) for n, p in trainer.policy_model.named_parameters() if n in base)
    assert not [h for module in trainer.sampler.model.modules() for h in module._forward_hooks]  # no value head in it
    trainable = {n for n, p in trainer.policy_model.named_parameters() if p.requires_grad}
    assert trainable and all(f".{POLICY}." in n for n in trainable)


def test_dropout_is_off_in_training(make):
    trainer = make()
    assert any(isinstance(m, torch.nn.Dropout) for m in trainer.policy_model.modules())
    inputs = left_pad([[5, 60, 70], [5, 61]], 0)
    response = torch.tensor([[80, 90], [81, 91]])
    first, second = (trainer.model(*inputs, response, torch.ones(2, 2), 1.0)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_an_update_ends_early_when_the_policy_has_gone_far(make):
    trainer = make(config={"max_approx_kl": 1e-9}, learning_rate=1e-2, num_ppo_epochs=4)
    trainer.train()
    assert trainer.optimizer_steps < 3 * 4 * 2


def test_the_kl_coefficient_adapts_and_scores_are_shaped(make):
    trainer = make(config={"kl_target": 1.0, "kl_horizon": 100, "normalize_score": True, "score_clip": 0.5})
    trainer.train()
    coefs = [row["objective/kl_coef"] for row in rows(trainer) if "objective/kl_coef" in row]
    assert coefs[0] == 0.05 and coefs[1] == pytest.approx(0.05 * (1 - 0.2 * 8 / 100))  # a KL of 0 is below target
    assert trainer.moments.count == 24
    assert trainer._shaped(torch.tensor([-1e3, 1e3])).tolist() == [-0.5, 0.5]


def test_ppo_raises_a_score_it_can_raise(make):
    trainer = make(
        total_episodes=15 * 16, per_device_train_batch_size=16, gradient_accumulation_steps=1, num_mini_batches=2,
        learning_rate=1e-2, kl_coef=0.0, eval_steps=100, save_steps=100,
    )  # fmt: skip
    trainer.train()
    scores = [row["objective/score"] for row in rows(trainer) if "objective/score" in row]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 1, scores
    before, after = (row["eval/score"] for row in rows(trainer) if "eval/score" in row)
    assert after > before


# ------------------------------------------------------------------------------------------------ killed


class Killed(Exception):
    pass


def kill_at(trainer, update):
    """The trainer dies in the middle of an update, its rollout made."""
    improve = trainer.improve

    def dying(rollout, number):
        if number == update:
            trainer._step(rollout, rollout.values_BT, rollout.values_BT, np.arange(4))
            raise Killed
        return improve(rollout, number)

    trainer.improve = dying
    with pytest.raises(Killed):
        trainer.train()


@pytest.mark.parametrize("update", [1, 4])
def test_a_killed_run_goes_on_as_if_it_had_not_been(make, update):
    settings = {
        "total_episodes": 48, "eval_steps": 3,
        "config": {"kl_target": 1.0, "normalize_score": True},
    }  # fmt: skip
    alone = make("alone", **settings)
    alone.train()
    kill_at(make("killed", **settings), update)
    again = make("killed", **settings)
    again.train()
    assert rows(again) == rows(alone)
    expected = weights(alone)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again).items())
    assert again.best == alone.best and again.optimizer_steps == alone.optimizer_steps
    assert (again.run.dir / "best" / "adapter.safetensors").read_bytes() == (
        alone.run.dir / "best" / "adapter.safetensors"
    ).read_bytes()


def test_a_run_killed_after_its_last_update_trains_no_more(make):
    first = make()
    first.train()
    again = make()
    again.train()
    assert rows(again) == rows(first) and again.optimizer_steps == first.optimizer_steps


def test_half_a_checkpoint_is_no_checkpoint(make):
    first = make(total_episodes=8, save_steps=1)
    half = first.run.dir / ".checkpoint.tmp"
    half.mkdir()
    (half / "state.json").write_text('{"update": 9')
    first.train()
    assert [path.name for path in checkpoints(first.run.dir)] == ["checkpoint-1"] and not half.exists()


def test_two_checkpoints_are_kept_and_nothing_pickled_is_read(make):
    trainer = make(total_episodes=40, save_steps=1)
    trainer.train()
    assert [path.name for path in checkpoints(trainer.run.dir)] == ["checkpoint-4", "checkpoint-5"]
    for path in checkpoints(trainer.run.dir):
        assert {p.name for p in path.iterdir()} == {
            "adapter.safetensors", "value_head.safetensors", "optimizer.pt", "state.json",
        }  # fmt: skip
        torch.load(path / "optimizer.pt", weights_only=True)


# ------------------------------------------------------------------------------------------------ scenes


def test_scenes_come_in_whole_passes():
    passes = np.concatenate([scene_rows(update, 4, 10, seed=1) for update in range(10)]).reshape(4, 10)
    for order in passes:
        assert sorted(order) == list(range(10))
    assert not np.array_equal(passes[0], passes[1])
    assert np.array_equal(scene_rows(3, 4, 10, seed=1), scene_rows(3, 4, 10, seed=1))
    assert not np.array_equal(passes.ravel()[:8], [*scene_rows(0, 4, 10, seed=2), *scene_rows(1, 4, 10, seed=2)])


def test_a_batch_may_be_larger_than_the_dataset(make):
    rows_ = scene_rows(2, 25, 10, seed=1)
    assert len(rows_) == 25 and np.bincount(rows_, minlength=10).min() >= 2
    trainer = make(scenes=SCENES[:3], total_episodes=8)
    trainer.train()
    rollout, _ = trainer.rollout(0)
    assert np.bincount(rollout.scene_B, minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_rows_of_a_rollout_lose_their_padding():
    ids, mask = left_pad([[1, 2, 3], [4]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    real = torch.tensor([[True, True], [True, False]])
    x = torch.arange(4.0).view(2, 2)
    rollout = Rollout(ids, mask, ids[:, :2], real, real[:, 0], torch.arange(2), x[:, 0], x, x, x)
    part = rollout.rows(torch.tensor([1]))
    assert part.query_BP.tolist() == [[4]] and part.values_BT.tolist() == [[2.0]] and part.scene_B.tolist() == [1]


# ------------------------------------------------------------------------------------------------ refusals


def test_a_score_that_is_no_number_names_its_scene(make):
    def one_nan(found):
        return torch.tensor([float("nan") if i == 2 else 1.0 for i in range(len(found))])

    trainer = make(scorer=Says(one_nan))
    with pytest.raises(ValueError, match="the scorer gave nan for scene 's2'"):
        trainer.train()


def test_a_wrong_number_of_scores_is_refused(make):
    with pytest.raises(ValueError, match=r"the scorer gave \(2,\) scores for 3 openers"):
        make(scorer=Says(lambda found: torch.ones(len(found) - 1))).train()


def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(ValueError, match="num_mini_batches 3 must divide"):
        make(num_mini_batches=3)
    with pytest.raises(ValueError, match="scene_sources gave no training scenes"):
        make(scenes=[])
    with pytest.raises(ValueError, match="temperature is 0.0"):
        make(temperature=0.0)
    with pytest.raises(
        ValueError, match=r"scene 'long': its prompt has \d+ tokens; with response_length 6 .* context of 256"
    ):
        make(scenes=[*SCENES, Scene("long", ("likes plums and pears",) * 60)])


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(make):
    trainer = make()
    trainer.train()
    kept = (checkpoints(trainer.run.dir)[-1] / "adapter.safetensors").read_bytes()
    rollout, _ = trainer.rollout(0)
    rollout.logp_BT[0, 0] = float("nan")
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="loss is nan at step 13"):
        trainer.improve(rollout, 3)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert (checkpoints(trainer.run.dir)[-1] / "adapter.safetensors").read_bytes() == kept


# ------------------------------------------------------------------------------------------------ the stage


def test_the_stage_end_to_end(friend_adapter, tiny_scorer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "scenes_of", lambda source, split, root, most: SCENES[:6])
    directory = tmp_path / "ppo"
    args = PPOConfig(
        output_dir=str(directory), sft_model_path=friend_adapter, reward_model_path=tiny_scorer, total_episodes=32,
        per_device_train_batch_size=16, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1,
        response_length=6, temperature=1.0, learning_rate=1e-2, use_cpu=True, bf16=False, seed=1, disable_tqdm=True,
    )  # fmt: skip
    train.main(OpenerConfig(run_dir=str(directory), test_samples=2), args)

    summary = json.loads((directory / "summary.json").read_text())
    for name in ("sft", "ppo"):
        found = [json.loads(line) for line in (directory / f"openers_{name}.jsonl").read_text().splitlines()]
        assert [(r["scene_id"], r["sample"]) for r in found] == [(s.id, i) for s in SCENES[:6] for i in range(2)]
        assert summary[name]["score"] == pytest.approx(np.mean([r["score"] for r in found]))
    assert summary["sft"]["kl"] == pytest.approx(0, abs=1e-4)
    gain = summary["gain"]
    assert gain["scenes"] == 6 and gain["low"] <= gain["score"] <= gain["high"]
    assert gain["score"] == pytest.approx(summary["ppo"]["score"] - summary["sft"]["score"])
    shown = capsys.readouterr().out
    assert "95 % interval" in shown and str(directory) in shown.replace("\n", "")

    # The saved policy is the one that wrote the openers, and the next stage can load it by the run's name.
    policy = load_policy(str(directory)).eval()
    assert policy.peft_config["default"].base_model_name_or_path == friend_adapter.replace("/adapter", "/base")
    ids = torch.tensor([[5, 60, 70, 80]])
    with torch.no_grad():
        logits = policy(input_ids=ids).logits
        assert not torch.allclose(logits, load_policy(friend_adapter).eval()(input_ids=ids).logits)
    assert load_tokenizer(str(directory)).chat_template
    assert {p.name for p in (directory / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    lineage = json.loads((directory / "lineage.json").read_text())
    assert [parent["path"] for parent in lineage["parents"]] == [friend_adapter, tiny_scorer]


def test_ppo_starts_from_an_adapter_alone(friend_base):
    with pytest.raises(ValueError, match="has no adapter_config.json: PPO starts from an SFT run's adapter"):
        policy_with_reference(friend_base, OpenerConfig())


def test_the_copy_of_a_policy_owns_its_weights(friend_adapter):
    policy = policy_with_reference(friend_adapter, OpenerConfig())
    theirs = {p.data_ptr() for p in policy.parameters()}
    assert not theirs & {p.data_ptr() for p in MergedCopy(policy).model.parameters()}


def test_the_tiny_scorer_loads(tiny_scorer):
    score_B, _ = load_scorer(tiny_scorer).score([{"context": [], "response": t} for t in ("hello there", "why not?")])
    assert score_B.isfinite().all() and score_B[0] != score_B[1]
