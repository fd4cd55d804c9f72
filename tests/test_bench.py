"""Each benchmark from its command line at its smallest size: that it runs, and the figures that its help promises.

Not covered: the figures themselves, which mean nothing at these sizes.
"""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trl.experimental.ppo.ppo_trainer import get_reward

from data.scenes import scenes_of
from experiments.bench import __main__ as command
from experiments.bench.ppo import SMALLEST, TextReward, even_scenes, flops, random_friend
from experiments.bench.side import Side
from models.load import load_scorer, load_tokenizer
from rl.evaluate import opener_prompt, opinions
from rl.train import policy_with_reference
from rl.trainer import OpenerConfig

PPO = {
    "episodes_per_s", "stock_episodes_per_s", "ratio", "ratio_std", "peak_mb_above_loading", "stock_peak_mb_above_loading",
    "memory_ratio", "generate_s", "score_s", "forward_s", "update_s", "first_update_s", "response_tokens",
    "gflop_per_episode", "matmul_peak_gflops", "share_of_peak",
}  # fmt: skip


@pytest.fixture(scope="module")
def friend(tmp_path_factory):
    """A random friend of the smallest size."""
    return random_friend(tmp_path_factory.mktemp("bench"), SMALLEST["shape"])


def run(capsys, *argv: str) -> dict:
    """The last line that the command prints, as JSON."""
    command.main([*argv, "--rounds", "1", "--smallest"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_ppo(capsys, tiny_scorer, friend_adapter):
    figures = run(capsys, "ppo", "--scorer", tiny_scorer, "--friend", friend_adapter)
    assert list(figures) == ["fp32", "bf16", "scenes", "apart"]
    for part in figures.values():
        assert set(part) == PPO
        assert all(math.isfinite(value) for value in part.values())
        assert part["ratio"] > 0 and part["memory_ratio"] > 0 and 0 < part["share_of_peak"] < 1
    assert figures["fp32"]["response_tokens"] == figures["bf16"]["response_tokens"] == 4
    assert figures["scenes"]["response_tokens"] < 4  # they end where they end


@pytest.mark.slow
def test_reward(capsys, tiny_scorer):
    figures = run(capsys, "reward", "--scorer", tiny_scorer)
    assert figures["ratio"] > 0 and figures["memory_ratio"] > 0
    assert figures["largest_logit_difference"] < 1e-4
    assert {"texts_per_s", "stock_texts_per_s", "ratio_std", "one_opener_ms", "peak_mb_above_loading"} < set(figures)


@pytest.mark.slow
def test_sft(capsys, friend_base):
    figures = run(capsys, "sft", "--base", friend_base)
    assert set(figures) == {
        "tokens_per_s", "stock_tokens_per_s", "ratio", "ratio_std", "real_tokens_per_s", "stock_real_tokens_per_s",
        "held_out_loss", "stock_held_out_loss", "dialogues", "peak_mb_above_loading", "stock_peak_mb_above_loading",
        "memory_ratio",
    }  # fmt: skip
    assert figures["ratio"] > 0 and figures["dialogues"] == 2 * 2 * 2
    assert figures["tokens_per_s"] < figures["real_tokens_per_s"]
    assert figures["held_out_loss"] == pytest.approx(figures["stock_held_out_loss"], abs=0.5)


@pytest.mark.slow
def test_curves(capsys, tiny_scorer, tmp_path):
    out = tmp_path / "curves.png"
    figures = run(capsys, "curves", "--scorer", tiny_scorer, "--out", str(out))
    assert list(figures) == ["size", "batch", "length", "figure"]
    for curve in ("size", "batch", "length"):
        first, second = figures[curve]
        assert second["x"] > first["x"] and first["episodes_per_s"] > 0
    assert figures["length"][1]["gflop_per_episode"] > figures["length"][0]["gflop_per_episode"]
    assert out.read_bytes().startswith(b"\x89PNG")


def fail(turns):
    raise ValueError("on purpose")


@pytest.mark.slow
def test_a_side_that_fails_is_named():
    with pytest.raises(RuntimeError, match="process of fail ended early"):
        Side(fail).round()


def test_a_command_refuses_no_rounds(capsys):
    with pytest.raises(SystemExit):
        command.main(["ppo", "--rounds", "0"])
    assert "--rounds is 0" in capsys.readouterr().err


def test_even_scenes_have_prompts_of_one_length(friend):
    tokenizer = load_tokenizer(friend)
    scenes = even_scenes(tokenizer, 70, 20)
    assert {len(opener_prompt(tokenizer, scene, "friend")) for scene in scenes} == {70}
    assert len({scene.profile for scene in scenes}) == 20
    with pytest.raises(ValueError, match="no prompt of 10 tokens"):
        even_scenes(tokenizer, 10, 1)


def test_stock_is_given_the_scores_of_our_scorer(friend, tiny_scorer):
    """However ids are padded, the bridge finds the scene and the text."""
    tokenizer, scorer = load_tokenizer(friend), load_scorer(tiny_scorer)
    scenes, texts = scenes_of("sample", "train")[:3], ["how are you", "what a lovely day it is", "bees"]
    prompts = [opener_prompt(tokenizer, scene, "friend") for scene in scenes]
    responses = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    P, T = max(map(len, prompts)), max(map(len, responses))
    pad = tokenizer.pad_token_id
    ids = torch.tensor(
        [[pad] * (P - len(p)) + p + r + [pad] * (T - len(r)) for p, r in zip(prompts, responses, strict=True)]
    )
    bridge = TextReward(scorer, tokenizer, scenes, prompts)
    found, score_B, _ = get_reward(bridge, ids, pad, P)
    assert found.shape == (3, P + T, 1)
    assert torch.allclose(score_B, opinions(scorer, scenes, texts)) and score_B.unique().numel() == 3


def test_flops_are_those_that_torch_counts(friend):
    """In a pass with outputs at every token; torch counts the half of attention that is masked too."""
    policy, S = policy_with_reference(friend, OpenerConfig()), 32
    config = policy.get_base_model().config
    config._attn_implementation = "eager"  # torch does not count what its fused attention does on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(input_ids=torch.arange(S)[None])
    with_adapter = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), policy.disable_adapter():
        policy(input_ids=torch.arange(S)[None])
    without = counter.get_total_flops()
    masked = 2 * S**2 * config.num_hidden_layers * config.hidden_size
    generated, read = without - masked, with_adapter - masked
    assert flops(policy, 0, S, epochs=0) == pytest.approx(generated + 2 * read, rel=0.01)  # and rotary angles
    one_epoch = flops(policy, 0, S, epochs=1) - flops(policy, 0, S, epochs=0)
    assert one_epoch == pytest.approx(2 * generated + 3 * (with_adapter - without), rel=0.01)
