"""rl/dpo.py on the tiny friend: what a pair is, what is learnt from it, the reference, a resume.

What it shares with GRPO: tests/test_grpo.py.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import DPOConfig

from experiments.run import Run
from models.sampling import left_pad
from rl import dpo, evaluate
from rl.dpo import PairConfig, best_and_worst, kept_pairs, opener_trainer
from rl.rollout import POLICY, REFERENCE, reading
from rl.stable import configure, fit, make_evaluator
from rl.tree import prefix_trees
from tests.tiny_scenes import SCENES, Likes


@pytest.fixture
def make(friend_adapter, tiny_scorer, tmp_path):
    """Makes an evaluator, the pairs and trl's trainer in a directory of their own, without wandb."""

    def made(name="run", **settings):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        defaults = {
            "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "beta": 0.1, "eval_steps": 4,
            "logging_steps": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "seed": 1,
            "disable_tqdm": True, "precompute_ref_log_probs": True,
        }  # fmt: skip
        args = DPOConfig(output_dir=str(directory), **(defaults | settings))
        config = PairConfig(
            sft_model_path=friend_adapter, reward_model_path=tiny_scorer, num_candidates=6, temperature=1.0,
            missing_eos_penalty=1.0,
        )  # fmt: skip
        run = Run(directory, "id", "step", SimpleNamespace(log=lambda row: None))
        configure(args, directory)
        evaluator = make_evaluator(config, args, run, 1.0, 8, batch_size=16)
        evaluator.scorer = Likes()
        pairs = kept_pairs(directory / "pairs.jsonl", evaluator, SCENES, args.seed)
        return evaluator, pairs, opener_trainer(args, evaluator, SCENES, pairs)

    return made


def rows(evaluator, keep=lambda key: not any(word in key for word in ("time", "runtime", "per_second"))):
    lines = (evaluator.run.dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if keep(key)} for line in lines]


# ------------------------------------------------------------------------------------------------ pairs


def test_a_pair_is_the_best_and_the_worst_of_a_scene():
    def candidates(scene, *scores):
        return [{"scene_id": scene, "opener": f"{scene}{score}", "score": score} for score in scores]

    found = best_and_worst([*candidates("a", 1, 3, 2), *candidates("b", 5, 5), *candidates("c", 9, 4)])
    assert found == [
        {"scene_id": "a", "chosen": "a3", "rejected": "a1", "chosen_score": 3, "rejected_score": 1},
        {"scene_id": "c", "chosen": "c9", "rejected": "c4", "chosen_score": 9, "rejected_score": 4},
    ]
    with pytest.raises(ValueError, match="the same score: there is nothing to prefer"):
        best_and_worst(candidates("b", 5, 5))


def test_pairs_are_of_the_sft_policys_own_openers_and_are_kept(make):
    evaluator, pairs, _ = make()
    candidates = [row for *_, part in evaluator.written(SCENES, POLICY, 6, seed=1) for row in part]
    assert len(candidates) == 12 * 6 and pairs == best_and_worst(candidates)
    for pair in pairs:
        own = {row["opener"]: row["score"] for row in candidates if row["scene_id"] == pair["scene_id"]}
        assert own[pair["chosen"]] == max(own.values()) and own[pair["rejected"]] == min(own.values())
        assert pair["chosen_score"] > pair["rejected_score"]
    path = evaluator.run.dir / "pairs.jsonl"
    evaluator.sampler = None  # what an interrupted run has left is not sampled again
    assert kept_pairs(path, evaluator, SCENES, seed=1) == pairs


# ------------------------------------------------------------------------------------------------ trl's numbers


def test_the_reference_is_the_sft_adapter_as_we_read_it(make):
    """trl's precomputed log-probabilities of both sides, prompts and openers of unequal length, end token included."""
    evaluator, pairs, trainer = make()
    of = {scene.id: scene for scene in SCENES}
    by_prompt = {tuple(row["prompt_ids"]): row for row in trainer.train_dataset}
    for side in ("chosen", "rejected"):
        texts = [pair[side] for pair in pairs]
        prompts = evaluator._prompts([of[pair["scene_id"]] for pair in pairs])
        responses = [
            [*evaluator.tokenizer(text, add_special_tokens=False)["input_ids"], evaluator.end_token_id]
            for text in texts
        ]
        T = max(map(len, responses))
        response = torch.tensor([ids + [0] * (T - len(ids)) for ids in responses])
        mask = torch.tensor([[True] * len(ids) + [False] * (T - len(ids)) for ids in responses])
        trees = prefix_trees(*left_pad(prompts, evaluator.tokenizer.pad_token_id), response, mask, "sdpa")
        with torch.no_grad(), reading(evaluator.policy, REFERENCE):
            ours = trees.rows(trees.read(evaluator.policy, temperature=1.0)[0]).sum(1)
        found = [by_prompt[tuple(prompt)] for prompt in prompts]
        assert [row[f"{side}_ids"] for row in found] == responses
        assert [row[f"ref_{side}_logps"] for row in found] == pytest.approx(ours.tolist(), abs=1e-4)


@pytest.mark.parametrize("precomputed", [True, False])
def test_at_the_first_step_policy_and_reference_are_the_same(make, precomputed):
    evaluator, _, trainer = make(precompute_ref_log_probs=precomputed, max_steps=4)
    fit(trainer, evaluator, SCENES[:3])
    found = rows(evaluator)
    first = next(row for row in found if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(np.log(2), abs=1e-4)  # -log sigmoid(0)
    assert first["train/rewards/margins"] == pytest.approx(0, abs=1e-4)
    evaluations = {row["step"]: row["eval/kl"] for row in found if "eval/kl" in row}
    assert evaluations[0] == pytest.approx(0, abs=1e-4) and abs(evaluations[4]) > 1e-3
    trained = {n for n, p in evaluator.policy.named_parameters() if p.requires_grad}
    assert trained and all(f".{POLICY}." in n for n in trained)
    weights = dict(evaluator.policy.named_parameters())
    moved = [n for n in trained if not torch.equal(weights[n], weights[n.replace(f".{POLICY}.", f".{REFERENCE}.")])]
    assert moved


# ------------------------------------------------------------------------------------------------ a run


def test_dpo_raises_a_score_it_can_raise(make):
    evaluator, pairs, trainer = make(max_steps=24, eval_steps=12, learning_rate=1e-2)
    summary = fit(trainer, evaluator, SCENES)
    scores = {row["step"]: row["eval/score"] for row in rows(evaluator) if "eval/score" in row}
    assert list(scores) == [0, 12, 24] and max(scores.values()) > scores[0] + 0.5, scores
    margins = [row["train/rewards/margins"] for row in rows(evaluator) if "train/rewards/margins" in row]
    assert np.mean(margins[-3:]) > np.mean(margins[:3]) and summary["best"]["score"] == max(scores.values())


def test_the_plain_loss_on_what_was_chosen_makes_it_likelier(make):
    """experiments/*/expert.yaml: expert iteration by this stage."""
    evaluator, _, trainer = make(loss_type=["sft"], max_steps=9)
    fit(trainer, evaluator, SCENES[:3])
    losses = [row["train/loss"] for row in rows(evaluator) if "train/loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05  # the three batches of 12 pairs, first and third pass


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(make, monkeypatch):
    alone, _, trainer = make("alone")
    expected = fit(trainer, alone, SCENES[:3])
    killed, _, trainer = make("killed")

    def strike(loss, step):
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(killed.run, "check_finite", strike)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, killed, SCENES[:3])
    torch.manual_seed(99)
    again, _, trainer = make("killed")
    assert fit(trainer, again, SCENES[:3]) == expected
    found, whole = (
        [{key: value for key, value in row.items() if key != "train/num_tokens"} for row in rows(evaluator)[:-1]]
        for evaluator in (again, alone)
    )  # trl counts tokens, and the last row means losses, since the resume
    assert found == whole


def test_the_stage_end_to_end(friend_adapter, tiny_scorer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "scenes_of", lambda source, split, root, most: SCENES[:6])
    directory = tmp_path / "dpo"
    args = DPOConfig(
        output_dir=str(directory), max_steps=2, per_device_train_batch_size=4, eval_steps=1, learning_rate=1e-2,
        gradient_checkpointing=False, bf16=False, use_cpu=True, seed=2, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    config = PairConfig(
        run_dir=str(directory), sft_model_path=friend_adapter, reward_model_path=tiny_scorer, num_candidates=4,
        temperature=1.0, response_length=6, test_samples=2,
    )  # fmt: skip
    dpo.main(config, args)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["pairs"] == len((directory / "pairs.jsonl").read_text().splitlines()) <= 6
    assert summary["optimizer_steps"] == 2 and summary["best"]["step"] in (0, 1, 2)
    assert summary["gain"]["score"] == pytest.approx(summary["dpo"]["score"] - summary["sft"]["score"])
    assert len((directory / "openers_dpo.jsonl").read_text().splitlines()) == 12
    assert json.loads((directory / "config.json").read_text())["temperature"] == 1.0  # what rl.generate samples at
    assert (directory / "model" / "adapter_model.safetensors").exists()
    assert "DPO - SFT on 6 test scenes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_candidates", 1, "num_candidates is 1: a pair is made of 2"),
        ("response_length", 0, "response_length is 0: it must be above 0"),
        ("reward_model_path", "", "reward_model_path is missing"),
    ],
)
def test_a_key_that_cannot_work_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        PairConfig(**({"sft_model_path": "a", "reward_model_path": "b"} | {key: value}))
