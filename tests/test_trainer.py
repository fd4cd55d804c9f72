"""rl/trainer.py, rl/rollout.py and rl/train.py on the tiny friend: what an update does, resumes, and refusals.

Beside stock trl: tests/test_parity.py. Several processes: tests/test_processes.py.
"""

import json
import math
import os
import shutil
import signal
import time
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl.experimental.ppo import PPOConfig

from data.scenes import Scene
from experiments.run import Run
from models import sampling
from models.load import load_policy, load_scorer, load_tokenizer
from models.sampling import left_pad
from rl import evaluate, train
from rl import trainer as trainer_module
from rl.rollout import MergedCopy, Rollout, minibatches, reading, scene_rows
from rl.train import policy_with_reference
from rl.trainer import POLICY, REFERENCE, Clock, OpenerConfig, OpenerPPOTrainer, check, checkpoints, is_whole
from tests.tiny_models import save_smollm2
from tests.tiny_scenes import FACTS, Likes

SCENES = [Scene(f"s{i}", (FACTS[i % 6], FACTS[(2 * i + 1) % 6]), "Hello." if i % 2 else None) for i in range(10)]


class Says(Likes):
    """A scorer that gives what it was told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def score(self, rows):
        return self.answer(rows), torch.ones(len(rows), 1)


forks = pytest.mark.skipif(
    torch.cuda.is_available(), reason="autograd cannot be forked where it has started a GPU's threads"
)


@pytest.fixture
def make(friend_adapter, tmp_path):
    """Makes a trainer in a directory of its own, without wandb."""

    def trainer(name="run", scorer=None, config=None, scenes=SCENES, gold=None, **settings):
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
        sent = []  # what goes to wandb
        run = Run(directory, "id", "step", SimpleNamespace(log=sent.append, sent=sent))
        policy, tokenizer = policy_with_reference(friend_adapter, config), load_tokenizer(friend_adapter)
        return OpenerPPOTrainer(config, args, run, tokenizer, policy, scorer or Likes(), scenes, SCENES[:3], gold)

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


@pytest.mark.parametrize("separate", [False, True])
def test_accumulation_changes_nothing(make, separate):
    settings = {"config": {"separate_value_model": separate}, "total_episodes": 16, "adam_epsilon": 1e-5}
    whole = make("whole", per_device_train_batch_size=8, gradient_accumulation_steps=1, **settings)
    parts = make("parts", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings)
    for trainer in (whole, parts):
        trainer.train()
        assert trainer.optimizer_steps == 2 * 2 * 2
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


def test_a_sample_does_not_depend_on_its_batch(make):
    trainer = make()
    whole, _ = trainer.rollout(1)
    half = np.arange(4, 8)
    rows_ = scene_rows(1, 8, len(SCENES), seed=1)[half]
    part = trainer.read([SCENES[row] for row in rows_], rows_, 8 + half, 1, POLICY, Clock())
    expected = whole.rows(torch.from_numpy(half))
    assert torch.equal(part.response_BT, expected.response_BT) and torch.equal(part.mask_BT, expected.mask_BT)
    assert torch.allclose(part.logp_BT, expected.logp_BT, atol=1e-5)


def test_the_evaluator_reads_what_a_rollout_reads(make):
    """The same noise gives the same openers, scores and KL as an update's, of the policy and of the reference."""
    trainer = make(temperature=0.7, missing_eos_penalty=1.0)
    with torch.no_grad():
        for name, weight in trainer.policy_model.named_parameters():
            if f"lora_B.{POLICY}" in name:
                weight.add_(0.2)
    todo = [scene for scene in SCENES for _ in range(2)]
    for adapter in (POLICY, REFERENCE):
        found = trainer.evaluator.openers(SCENES, adapter, 2, seed=7)
        for start in range(0, len(todo), 8):  # local_rollout_forward_batch_size
            keys = np.arange(start, min(start + 8, len(todo)))
            read = trainer.read(todo[start : start + 8], keys, keys, 7, adapter, Clock())
            samples = sampling.Samples(read.response_BT, read.mask_BT, read.ended_B)
            part = found[start : start + 8]
            assert [row["opener"] for row in part] == sampling.decode(samples, trainer.processing_class)
            assert [row["score"] for row in part] == read.score_B.tolist()
            assert [row["ended"] for row in part] == read.ended_B.tolist()
            assert [row["tokens"] for row in part] == read.mask_BT.sum(1).tolist()
            kl_B = ((read.logp_BT - read.ref_logp_BT) * read.mask_BT).sum(1)
            assert [row["kl"] for row in part] == kl_B.tolist()
            assert adapter == REFERENCE or kl_B.abs().max() > 0.1


def test_a_value_model_of_its_own_is_trained_in_full(make):
    trainer = make(config={"separate_value_model": True}, total_episodes=16)
    before = weights(trainer)
    trainer.train()
    again = make(config={"separate_value_model": True}, total_episodes=16)
    again.train()  # finds all updates done, and loads them
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(before[name], weight)}
    trunk = {name for name in before if "value_model.trunk" in name}
    assert trunk and len(trunk - moved) <= 1  # embeddings of tokens that never came stay
    assert not {name for name in moved if "value_model" not in name and f".{POLICY}." not in name}
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(trainer).items())


def test_metrics_by_hand(make):
    """Two openers, of two tokens and one, and a model that says what it is told to."""
    trainer = make(
        per_device_train_batch_size=2, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1,
        kl_coef=0.5, gamma=1.0, lam=1.0, cliprange=0.2, cliprange_value=0.5,
    )  # fmt: skip
    ones, mask = torch.ones(2, 2, dtype=torch.long), torch.tensor([[True, True], [True, False]])
    rollout = Rollout(
        ones, ones, torch.tensor([[0, 0], [1, 1]]), mask, torch.tensor([True, False]), torch.arange(2),
        score_B=torch.tensor([4.0, 1.0]),
        logp_BT=torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), ref_logp_BT=torch.tensor([[-1.5, -2.0], [-2.0, 0.0]]),
        values_BT=torch.tensor([[1.0, 2.0], [0.5, 0.0]]),
    )  # fmt: skip
    ratio = torch.tensor([[1.5, 1.0], [0.9, 7.0]])
    entropy, values = torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[2.0, 2.0], [0.5, 9.0]])
    weight = torch.zeros((), requires_grad=True)

    def model(query, query_mask, response, response_mask, temperature):
        row = response[:, 0]
        return (rollout.logp_BT + ratio.log())[row] + weight, entropy[row], values[row] + weight

    trainer.model = model
    trainer.model.parameters = lambda: [weight]
    found = trainer.improve(rollout, 0)

    # KL: 0.5 + 0 and -1. Rewards: -0.25, 4 and 0.5 + 1. Returns are the sums to come, with lambda = 1: 3.75, 4; 1.5.
    returns, old = np.array([3.75, 4, 1.5]), np.array([1, 2, 0.5])
    advantages = (returns - old - np.mean(returns - old)) / np.std(returns - old, ddof=1)
    surrogate = np.minimum(advantages * [1.5, 1, 0.9], advantages * [1.2, 1, 0.9])
    expected = {
        "objective/score": 2.5, "objective/kl": (0.5 - 1) / 2, "objective/kl_coef": 0.5,
        "objective/rlhf_reward": 2.5 - 0.5 * -0.25, "objective/entropy": 3.0,
        "response/length": 1.5, "response/ended": 0.5,
        "policy/loss": -surrogate.mean(), "policy/ratio": 3.4 / 3, "policy/first_ratio": 3.4 / 3,
        "policy/clipfrac": 1 / 3, "policy/approx_kl": (0.5 - math.log(1.5) - 0.1 - math.log(0.9)) / 3,
        # value 2 from 1 may count as 1.5 at most: the larger error of the two
        "value/loss": 0.5 * (2.25**2 + 2**2 + 1) / 3, "value/clipfrac": 1 / 3,
        "value/explained_variance": 1 - np.var(returns - old) / np.var(returns),
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_the_score_is_paid_on_the_last_real_token(make, monkeypatch):
    trainer, seen = make(kl_coef=0.0), {}
    rollout, _ = trainer.rollout(0)
    gae = train.OpenerPPOTrainer.improve.__globals__["ppo"].gae
    monkeypatch.setattr("rl.trainer.ppo.gae", lambda rewards, *rest: (seen.update(r=rewards), gae(rewards, *rest))[1])
    trainer.improve(rollout, 0)
    for reward, mask, score in zip(seen["r"], rollout.mask_BT, rollout.score_B, strict=True):
        last = int(mask.sum()) - 1
        assert reward[last] == score and reward.abs().sum() == score.abs()


def test_the_company_of_a_batch_changes_no_number(make):
    trainer = make()
    rollout, _ = trainer.rollout(0)
    one = rollout.rows(torch.tensor([3]))
    with torch.no_grad():
        found = trainer.model(one.query_BP, one.query_mask_BP, one.response_BT, one.mask_BT, 1.0)
    assert torch.allclose(found[0][0], rollout.logp_BT[3], atol=1e-5)
    assert torch.allclose(found[2][0], rollout.values_BT[3], atol=1e-5)
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
    with_it, without = (trainer.evaluator.scores(scene, openers, ended) for trainer in (strict, free))
    assert (without - with_it).tolist() == [0, 2.5]


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
            with reading(trainer.policy_model, name):
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


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("linear", [0, 0.5, 1, 2 / 3, 1 / 3]),
        ("cosine", [0, 0.5, 1, 0.75, 0.25]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1]),
        ("constant", [1, 1, 1, 1, 1]),
    ],
)
def test_schedules(make, kind, factors):
    """The learning rate of each of five updates, two of them to warm up."""
    trainer = make(total_episodes=40, lr_scheduler_type=kind, warmup_steps=2, learning_rate=1e-3)
    found = []
    for _ in factors:
        found.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert found == pytest.approx([1e-3 * factor for factor in factors])


def test_the_best_is_chosen_by_the_proxy_within_max_kl(make):
    """Five evaluations: the highest score is too far from the SFT policy, the highest gold has a low score."""
    trainer = make(config={"max_kl": 2.0}, total_episodes=32, eval_steps=1)
    told = iter([(0.0, 0.0, 0.0), (3.0, 9.0, 1.0), (4.0, 0.0, 1.5), (9.0, 0.0, 2.5), (1.0, 99.0, 1.0)])

    def openers(*args, **kwargs):
        score, gold, kl = next(told)
        row = {"scene_id": "s0", "sample": 0, "opener": "hello", "ended": True, "tokens": 2}
        return [row | {"score": score, "gold": gold, "kl": kl}]

    trainer.evaluator.openers = openers
    trainer.train()
    assert trainer.best == {"update": 2, "score": 4.0, "kl": 1.5}
    assert [row["eval/gold"] for row in rows(trainer) if "eval/gold" in row] == [0, 9, 0, 0, 99]
    last = weights(trainer, f".{POLICY}.")
    trainer.load_best()
    assert any(not torch.equal(weight, last[name]) for name, weight in weights(trainer, f".{POLICY}.").items())


def test_the_average_is_what_is_evaluated_and_saved(make):
    """By hand: after three updates with decay .75 it is .75^3 of SFT's weights and .25 .75^2, .25 .75, .25 of the three."""
    trainer, alone, seen, evaluated = make(config={"average_decay": 0.75}), make("alone"), [], []
    start = weights(trainer, f".{POLICY}.")
    validate = trainer.evaluator.validate
    trainer.evaluator.validate = lambda *a, **k: (
        evaluated.append(weights(trainer, f".{POLICY}.")),
        validate(*a, **k) | {"eval/score": float(len(evaluated)), "eval/kl": 0.0},
    )[1]
    improve = trainer.improve
    trainer.improve = lambda *a: (improve(*a), seen.append(weights(trainer, f".{POLICY}.")))[0]
    trainer.train()
    alone.train()
    for name, weight in weights(trainer, f".{POLICY}.").items():  # training itself knows nothing of it
        assert torch.equal(weight, weights(alone, f".{POLICY}.")[name]) and torch.equal(weight, seen[-1][name])
    parts = [start, *seen]
    for name, weight in evaluated[-1].items():
        by_hand = sum(share * part[name] for share, part in zip((27 / 64, 9 / 64, 3 / 16, 1 / 4), parts, strict=True))
        assert torch.allclose(weight, by_hand, atol=1e-6), name
    trainer.load_best()
    for name, weight in weights(trainer, f".{POLICY}.").items():
        assert torch.equal(weight, evaluated[-1][name])
    with pytest.raises(ValueError, match="average_decay is 1.0: it must be between 0 and 1"):
        OpenerConfig(average_decay=1.0)


def test_an_evaluation_logs_both_scores_and_a_table_of_openers(make):
    trainer = make(gold=Says(lambda found: 7.0 + torch.arange(len(found))), config={"val_samples": 2})
    trainer.train()
    found = [row for row in rows(trainer) if "eval/score" in row]
    assert [row["eval/gold"] for row in found] == [pytest.approx(9.5)] * 3  # 7, 8, ... 12
    kept = {"eval/score", "eval/kl", "eval/tokens", "eval/ended", "eval/distinct_1", "eval/distinct_2"}
    assert all(kept <= row.keys() for row in found) and found[0]["eval/kl"] == pytest.approx(0, abs=1e-4)
    tables = [row["openers"] for row in trainer.run.wandb.sent if "openers" in row]
    assert len(tables) == 3
    for table, step in zip(tables, (0, 16, 24), strict=True):
        assert table.columns == ["step", "scene", "profile", "greeting", "opener", "score", "kl"]
        assert [row[:3] for row in table.data[:3:2]] == [[step, s.id, "; ".join(s.profile)] for s in SCENES[:2]]
        score = np.mean([row[5] for row in table.data])
        assert score == pytest.approx(next(row["eval/score"] for row in found if row["step"] == step))


def test_a_stop_token_ends_an_opener(make):
    plain, _ = make("plain").rollout(0)
    token = int(plain.response_BT[plain.mask_BT].mode().values)
    short, _ = make("short", stop_token_id=token).rollout(0)
    for ids, mask, ended in zip(short.response_BT, short.mask_BT, short.ended_B, strict=True):
        assert ended == (token in ids[mask]) and token not in ids[mask][:-1]
    assert short.ended_B.any()


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


#: Where a process is struck: at which call, counted from the start, of which function. An evaluation of six draws, then
#: updates of six draws and four steps each; every second one is saved.
GENERATING, UPDATING = (sampling, "draw", 33), (OpenerPPOTrainer, "_step", 15)
SAVING, SAVED = (torch, "save", 2), (trainer_module, "write_whole", 2)


def strike(monkeypatch, point, number: signal.Signals):
    """From here on the process sends itself a signal at that point."""
    owner, name, count = point
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def in_a_child(work, timeout=600) -> int:
    """Runs `work` in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("the forked process did not end")


def same_run(again, alone):
    """Bit for bit: every row, every weight, the best and its weights."""
    assert rows(again) == rows(alone)
    expected = weights(alone)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again).items())
    assert again.best == alone.best and again.optimizer_steps == alone.optimizer_steps
    best = "best/adapter.safetensors"
    assert (again.run.dir / best).read_bytes() == (alone.run.dir / best).read_bytes()


LONG = {
    "total_episodes": 40,
    "eval_steps": 3,
    "config": {"kl_target": 1.0, "normalize_score": True, "average_decay": 0.5},
}


@forks
def test_a_killed_run_goes_on_as_if_it_had_not_been(make, monkeypatch):
    alone = make("alone", **LONG)
    alone.train()
    points = {"generating": GENERATING, "updating": UPDATING, "saving": SAVING, "before the rename": SAVED}
    for name, point in points.items():
        with monkeypatch.context() as context:
            strike(context, point, signal.SIGKILL)
            assert in_a_child(lambda name=name: make(name, **LONG).train()) == -signal.SIGKILL, name
        assert [path.name for path in checkpoints(alone.run.dir.parent / name)] == ["checkpoint-2"]
        torch.manual_seed(99)  # no random state is needed
        np.random.seed(99)
        again = make(name, **LONG)
        again.train()
        same_run(again, alone)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_it_is_the_same_run_and_goes_on_as_the_same(make, checkpointing):
    torch._dynamo.reset()
    settings = {"average_decay": 0.5}, {"gradient_checkpointing": checkpointing, "adam_epsilon": 1e-5}
    eager = make("eager", config=settings[0], **settings[1])
    eager.train()
    compiled = make("compiled", config=settings[0], torch_compile=True, **settings[1])
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    compiled.train()
    assert graphs["unique_graphs"] > 0
    assert len(rows(compiled)) == len(rows(eager)) == 3 + 3
    for row, other in zip(rows(compiled), rows(eager), strict=True):
        assert row == pytest.approx(other, abs=1e-4)

    stopped = make("stopped", config=settings[0], torch_compile=True, save_steps=1, **settings[1])
    stopped._leave_if_told = lambda done: 1 / (done < 1)  # at the end of the first update
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    assert [path.name for path in checkpoints(stopped.run.dir)] == ["checkpoint-1"]
    torch._dynamo.reset()  # as in a process of its own
    again = make("stopped", config=settings[0], torch_compile=True, save_steps=1, **settings[1])
    again.train()
    same_run(again, compiled)


@forks
def test_sigterm_saves_before_leaving(make, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    alone = make("alone", **LONG)
    alone.train()
    for name, point, found in (
        ("generating", (sampling, "draw", 14), "checkpoint-1"),  # what is saved is the update before
        ("updating", (OpenerPPOTrainer, "_step", 6), "checkpoint-2"),  # the update is brought to its end
    ):
        with monkeypatch.context() as context:
            strike(context, point, signal.SIGTERM)
            assert in_a_child(lambda name=name: make(name, save_steps=100, **LONG).train()) == 143, name
        assert [path.name for path in checkpoints(alone.run.dir.parent / name)] == [found]
        again = make(name, save_steps=100, **LONG)
        again.train()
        same_run(again, alone)
    assert signal.getsignal(signal.SIGTERM) == before  # given back after training


def test_of_a_half_written_checkpoint_the_one_before_it_is_used(make, capsys):
    settings = {"total_episodes": 32, "save_steps": 1, "eval_steps": 3}
    alone = make("alone", **settings)
    alone.train()
    make("broken", **settings).train()
    last = alone.run.dir.parent / "broken" / "checkpoint-4"
    assert is_whole(last)
    whole = (last / "optimizer.pt").read_bytes()
    (last / "optimizer.pt").write_bytes(whole[: len(whole) // 2])  # as after a power cut
    assert not is_whole(last)
    again = make("broken", **settings)
    again.train()
    assert "checkpoint-4 is not whole: going on from the one before it" in capsys.readouterr().out
    assert is_whole(last)
    same_run(again, alone)


def test_a_checkpoint_of_another_batch_is_refused(make):
    make(total_episodes=8).train()
    with pytest.raises(
        ValueError, match="was made with 8 episodes a batch, now per_device_train_batch_size x .* makes 4"
    ):
        make(total_episodes=8, per_device_train_batch_size=2).train()


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
            "adapter.safetensors", "value_head.safetensors", "optimizer.pt", "best.safetensors", "state.json",
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


def test_prompts_are_padded_on_the_left():
    ids, mask = left_pad([[1, 2, 3], [4]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    real = torch.tensor([[True, True], [True, False]])
    x = torch.arange(4.0).view(2, 2)
    part = Rollout(ids, mask, ids[:, :2], real, real[:, 0], torch.arange(2), x[:, 0], x, x, x).rows(torch.tensor([1]))
    assert part.query_BP[part.query_mask_BP.bool()].tolist() == [4]
    assert part.values_BT[part.mask_BT].tolist() == [2.0] and part.scene_B.tolist() == [1]


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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_mini_batches": 16}, "num_mini_batches 16 must divide .* = 8"),  # more minibatches than samples
        ({"num_mini_batches": 0}, "num_mini_batches is 0: it must be 1 or more"),
        ({"total_episodes": 0}, "total_episodes is 0"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs is 0"),
        ({"response_length": 0}, "response_length is 0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty is -1.0"),
        ({"kl_coef": 0.0}, "kl_coef is 0.0: kl_target adapts it by factors"),
        ({"eval_steps": 0.5}, "eval_steps is 0.5, a share of the run: give a number of updates"),
        ({"processes": 3}, "gradient_accumulation_steps 2 must be divisible by the 3 processes"),
        ({"processes": 2, "num_mini_batches": 8}, "num_mini_batches 8 must divide .* = 8 / 2 processes"),
    ],
)
def test_a_key_that_cannot_work_is_named(changed, message):
    settings = SimpleNamespace(
        total_episodes=8, num_ppo_epochs=1, num_mini_batches=1, response_length=4, missing_eos_penalty=None, kl_coef=0.1,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, temperature=1.0, processes=1, eval_steps=None,
        save_steps=5,
    )  # fmt: skip
    vars(settings).update(changed)
    with pytest.raises(ValueError, match=message):
        check(OpenerConfig(kl_target=1.0), settings, SCENES, settings.processes)


def test_the_openers_of_a_scene_stay_together(make):
    """In the batch and in its minibatches, from scenes that come in whole passes; each with noise of its own."""
    trainer = make(config={"num_generations": 2})
    rollout, _ = trainer.rollout(1)
    pairs = rollout.scene_B.view(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert pairs[:, 0].tolist() == scene_rows(1, 4, len(SCENES), seed=1).tolist()
    first, second = rollout.response_BT.view(4, 2, -1).unbind(1)
    assert not torch.equal(first, second)
    for rows_ in minibatches(1, 8, 2, 2, seed=1, num_generations=2):
        assert (rows_[1::2] - rows_[::2] == 1).all() and (rows_[::2] % 2 == 0).all()
    assert sorted(np.concatenate([*minibatches(1, 8, 1, 2, seed=1, num_generations=2)])) == list(range(8))
    trainer.train()
    assert [row["optimizer_steps"] for row in rows(trainer) if "optimizer_steps" in row][-1] == 3 * 2 * 2
    with pytest.raises(ValueError, match="num_mini_batches 2 x num_generations 8 must divide .* = 8"):
        make(config={"num_generations": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [("kl_target", 0.0), ("score_clip", 0.0), ("kl_limit", -1.0), ("max_approx_kl", 0.0), ("max_kl", 0)],
)
def test_a_limit_must_be_above_0(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        OpenerConfig(**{key: value})


def test_a_trunk_trained_in_full_is_not_quantized():
    with pytest.raises(ValueError, match="separate_value_model trains a trunk in full, which quantization 4bit cannot"):
        OpenerConfig(separate_value_model=True, quantization="4bit")


def test_a_kl_that_explodes_ends_the_run(make):
    trainer = make(config={"kl_limit": 1e-3}, learning_rate=0.1, save_steps=1)
    with pytest.raises(FloatingPointError, match=r"nats a response before update 2, kl_limit is 0.001: raise kl_coef"):
        trainer.train()
    assert [path.name for path in checkpoints(trainer.run.dir)] == ["checkpoint-1"]


def test_an_adapter_of_another_base_is_refused(friend_adapter, tmp_path):
    path = shutil.copytree(friend_adapter, tmp_path / "adapter")
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = save_smollm2(tmp_path / "other")
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit its base .*other"):
        policy_with_reference(str(path), OpenerConfig())


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
    monkeypatch.setattr(evaluate, "scenes_of", lambda source, split, root, most: SCENES[:6])
    directory = tmp_path / "ppo"
    args = PPOConfig(
        output_dir=str(directory), sft_model_path=friend_adapter, reward_model_path=tiny_scorer, total_episodes=32,
        per_device_train_batch_size=16, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1,
        response_length=6, temperature=1.0, learning_rate=1e-2, use_cpu=True, bf16=False, seed=2, disable_tqdm=True,
    )  # fmt: skip
    train.main(OpenerConfig(run_dir=str(directory), test_samples=2), args)

    summary = json.loads((directory / "summary.json").read_text())
    for name in ("sft", "ppo"):
        found = [json.loads(line) for line in (directory / f"openers_{name}.jsonl").read_text().splitlines()]
        assert [(r["scene_id"], r["sample"]) for r in found] == [(s.id, i) for s in SCENES[:6] for i in range(2)]
        assert summary[name]["score"] == pytest.approx(np.mean([r["score"] for r in found]))
    assert summary["sft"]["kl"] == pytest.approx(0, abs=1e-4)
    assert summary["best"]["update"] in (0, 2) and (directory / summary["best"]["adapter"]).exists()
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
        is_sft = torch.allclose(logits, load_policy(friend_adapter).eval()(input_ids=ids).logits)
    assert is_sft == (summary["best"]["update"] == 0)  # the best may be the one before training
    assert load_tokenizer(str(directory)).chat_template
    assert {p.name for p in (directory / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    lineage = json.loads((directory / "lineage.json").read_text())
    assert [parent["path"] for parent in lineage["parents"]] == [friend_adapter, tiny_scorer]


def test_ppo_starts_from_an_adapter_alone(friend_base):
    with pytest.raises(ValueError, match="has no adapter_config.json: training starts from an SFT run's adapter"):
        policy_with_reference(friend_base, OpenerConfig())


def test_the_copy_of_a_policy_owns_its_weights(friend_adapter):
    policy = policy_with_reference(friend_adapter, OpenerConfig())
    theirs = {p.data_ptr() for p in policy.parameters()}
    assert not theirs & {p.data_ptr() for p in MergedCopy(policy).model.parameters()}


def test_the_tiny_scorer_loads(tiny_scorer):
    score_B, _ = load_scorer(tiny_scorer).score([{"context": [], "response": t} for t in ("hello there", "why not?")])
    assert score_B.isfinite().all() and score_B[0] != score_B[1]
