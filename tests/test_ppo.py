"""rl/ppo.py and rl/metrics.py: by numbers worked by hand, by property, and against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl import ppo
from rl.metrics import copied, distinct, interval


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@st.composite
def batches(draw, names=3):
    """`names` tensors [B, T] and a mask with 1 to T real tokens a row."""
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    mask_BT = (torch.arange(T)[None] < torch.tensor(lengths)[:, None]).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return *(torch.randn(B, T, generator=generator, dtype=torch.float64) for _ in range(names)), mask_BT


# ------------------------------------------------------------------------------------------------ by hand


def test_masked_mean_weighs_every_token_alike():
    # (1 + 2 + 6) / 3, not the mean of 1.5 and 6
    assert ppo.masked_mean(tensor([1, 2], [6, 100]), tensor([1, 1], [1, 0])).item() == 3.0


def test_whiten_by_hand():
    # 1, 3, 5: mean 3, unbiased variance 4
    x, mask = tensor([1, 3], [5, 77]), tensor([1, 1], [1, 0])
    assert torch.allclose(ppo.whiten(x, mask), tensor([-1, 0], [1, 0]))
    assert torch.allclose(ppo.whiten(x, mask, shift_mean=False), tensor([2, 3], [4, 0]))


def test_whiten_of_a_single_token_is_finite():
    assert ppo.whiten(tensor([7, 9]), tensor([1, 0])).tolist() == [[0, 0]]


def test_kl_estimates_by_hand():
    # p = 1/2, q = 1/4: k1 = ln 2; r = 1/2: k3 = 1/2 - 1 + ln 2
    logp, ref = tensor([math.log(0.5)]), tensor([math.log(0.25)])
    assert ppo.kl_estimate(logp, ref, "k1").item() == pytest.approx(math.log(2))
    assert ppo.kl_estimate(logp, ref, "k3").item() == pytest.approx(math.log(2) - 0.5)
    with pytest.raises(ValueError, match="kl_estimator is 'k2'"):
        ppo.kl_estimate(logp, ref, "k2")


def test_the_estimates_agree_with_the_kl_they_estimate():
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        assert torch.isclose((p * ppo.kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


def test_log_p_and_entropy_by_hand():
    # ln 2 of two alike; 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2. At temperature 2, logits of 2 ln p are those of p.
    p = torch.tensor([[0.5, 0.5, 1e-30], [0.5, 0.25, 0.25]])
    log_p, entropy = ppo.log_p_and_entropy(2 * p.log(), torch.tensor([1, 2]), temperature=2.0)
    assert torch.allclose(log_p, -math.log(2) * torch.tensor([1.0, 2]))
    assert torch.allclose(entropy, math.log(2) * torch.tensor([1, 1.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 700])  # of 2,000 tokens: parts of 262 rows
def test_log_p_and_its_gradient_are_those_of_log_softmax(size, dtype):
    logits = (5 * torch.randn(size, 2000)).to(dtype).requires_grad_()
    ids, weight = torch.randint(2000, (size,)), torch.randn(size)
    found, entropy = ppo.log_p_and_entropy(logits, ids, 0.7)
    (found * weight).sum().backward()
    gradient, logits.grad = logits.grad, None
    distribution = torch.distributions.Categorical(logits=logits.double() / 0.7)
    expected = distribution.log_prob(ids)
    (expected * weight).sum().backward()
    assert torch.allclose(found, expected.float(), atol=1e-4, rtol=1e-5)
    assert torch.allclose(entropy, distribution.entropy().float(), atol=1e-4, rtol=1e-5)
    assert gradient.dtype == dtype and torch.allclose(gradient, logits.grad, atol=1e-5, rtol=1e-2)
    assert not entropy.requires_grad


def test_explained_variance_by_hand():
    # returns 1, 3, 5: variance 4. Errors 0, 1, -1: variance 1. What stands off the mask does not count.
    returns, values = tensor([1, 3], [5, 99]), tensor([1, 2], [6, 0])
    assert ppo.explained_variance(values, returns, tensor([1, 1], [1, 0])).item() == pytest.approx(0.75)


def test_running_moments_by_hand():
    moments = ppo.RunningMoments()
    assert moments.std == 1.0  # nothing seen
    for part in (tensor(1, 3), tensor(5)):
        moments.update(part)
    assert (moments.count, moments.mean, moments.std) == (3, 3.0, 2.0)


def test_the_score_lands_on_the_last_real_token():
    rewards = ppo.token_rewards(tensor(10, 20), tensor([1, 2, 3], [4, 5, 6]), tensor([1, 1, 0], [1, 1, 1]), kl_coef=0.1)
    assert torch.allclose(rewards, tensor([-0.1, 9.8, 0], [-0.4, -0.5, 19.4]))


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5. Row 0: delta_2 = 4 - 3 = 1; delta_1 = 2 + 0.5 * 3 - 2 = 1.5; delta_0 = 1 + 0.5 * 2 - 1 = 1
    # A_2 = 1, A_1 = 1.5 + 0.25 * 1 = 1.75, A_0 = 1 + 0.25 * 1.75 = 1.4375. Row 1 ends after one token: A_0 = 5 - 1.
    rewards, values = tensor([1, 2, 4], [5, 9, 9]), tensor([1, 2, 3], [1, 9, 9])
    advantages, returns = ppo.gae(rewards, values, tensor([1, 1, 1], [1, 0, 0]), gamma=0.5, lam=0.5)
    assert torch.allclose(advantages, tensor([1.4375, 1.75, 1], [4, 0, 0]))
    assert torch.allclose(returns, tensor([2.4375, 3.75, 4], [5, 0, 0]))


def test_policy_loss_by_hand():
    # ratios 2, 1/2, 1.1 at cliprange 0.2; advantages 1, 1, -1
    logp, old = tensor([math.log(2), math.log(0.5), math.log(1.1)]), tensor([0, 0, 0])
    loss, statistics = ppo.policy_loss(logp, old, tensor([1, 1, -1]), tensor([1, 1, 1]), cliprange=0.2)
    assert torch.allclose(loss, tensor([-1.2, -0.5, 1.1]))  # only the gain from going too far is cut
    assert statistics["policy/clipfrac"].item() == 1
    assert statistics["policy/ratio"].item() == pytest.approx(3.6)
    assert statistics["policy/approx_kl"].item() == pytest.approx(3.6 - 3 - math.log(1.1))


def test_the_policy_gradient_stops_where_it_is_clipped():
    logp = tensor([math.log(2), math.log(0.5), 0.0]).requires_grad_()
    loss, _ = ppo.policy_loss(logp, tensor([0, 0, 0]), tensor([1, 1, 1]), tensor([1, 1, 0]), cliprange=0.2)
    loss.sum().backward()
    assert torch.allclose(logp.grad, tensor([0, -0.5, 0]))


def test_value_loss_by_hand():
    # value 3 from old 1, clip 0.5 -> 1.5. Return 4: plain 1, clipped 6.25. Return 0: plain 9, clipped 2.25.
    loss, statistics = ppo.value_loss(tensor([3, 3]), tensor([1, 1]), tensor([4, 0]), tensor([1, 1]), cliprange=0.5)
    assert torch.allclose(loss, tensor([3.125, 4.5]))
    assert statistics["value/clipfrac"].item() == 1
    # 0.1 + (0.3 - 0.1) is not 0.3, but nothing was clipped
    _, statistics = ppo.value_loss(tensor([0.3]), tensor([0.1]), tensor([0]), tensor([1]), cliprange=0.5)
    assert statistics["value/clipfrac"].item() == 0


def test_adapted_kl_coef_by_hand():
    assert ppo.adapted_kl_coef(0.1, kl=6.6, target=6.0, episodes=100, horizon=1000) == pytest.approx(0.1 * 1.01)
    assert ppo.adapted_kl_coef(0.1, kl=60, target=6.0, episodes=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert ppo.adapted_kl_coef(0.1, kl=-5, target=6.0, episodes=100, horizon=1000) == pytest.approx(0.1 * 0.98)


# ------------------------------------------------------------------------------------------------ by property


@given(batches(1))
def test_whitened_means_mean_0_and_variance_1(batch):
    x, mask = batch
    white = ppo.whiten(x, mask)[mask.bool()]
    if len(white) > 1:
        assert white.mean().abs() < 1e-6 and abs(white.var() - 1) < 1e-3
    shifted = ppo.whiten(x, mask, shift_mean=False)[mask.bool()]
    assert torch.allclose(shifted - white, x[mask.bool()].mean(), atol=1e-6)


@given(batches(2), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_plain_loop(batch, gamma, lam):
    rewards, values, mask = batch
    advantages, returns = ppo.gae(rewards * mask, values, mask, gamma, lam)
    for b, length in enumerate(mask.sum(1).long().tolist()):
        for t in range(length):
            expected = 0.0  # the sum of (gamma lambda)^l delta_{t + l}
            for later in range(t, length):
                after = values[b, later + 1] if later + 1 < length else 0.0
                expected += (gamma * lam) ** (later - t) * (rewards[b, later] + gamma * after - values[b, later])
            assert advantages[b, t].item() == pytest.approx(float(expected), abs=1e-9)
            assert returns[b, t].item() == pytest.approx(float(expected + values[b, t]), abs=1e-9)


@given(batches(2))
def test_k3_is_never_negative(batch):
    logp, ref, _ = batch
    assert (ppo.kl_estimate(logp, ref, "k3") >= 0).all()


@given(batches(1))
def test_explained_variance(batch):
    returns, mask = batch
    if mask.sum() < 2 or returns[mask.bool()].var() < 1e-3:
        return
    mean = ppo.masked_mean(returns, mask)
    assert ppo.explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert ppo.explained_variance(torch.full_like(returns, mean), returns, mask).item() == pytest.approx(0, abs=1e-9)
    assert ppo.explained_variance(2 * mean - returns, returns, mask).item() == pytest.approx(-3)


@settings(max_examples=50)
@given(batches(4), st.integers(0, 2**32))
def test_padding_changes_nothing(batch, seed):
    """Other numbers off the mask, and columns of padding: the same results on the real tokens, 0 elsewhere."""
    *tensors, mask = batch
    mask_wide = torch.nn.functional.pad(mask, (0, 2))
    generator = torch.Generator().manual_seed(seed)
    wide = []
    for x in tensors:
        noise = 3 * torch.randn(mask_wide.shape, generator=generator, dtype=torch.float64)
        wide.append(torch.where(mask_wide.bool(), torch.nn.functional.pad(x, (0, 2)), noise))

    def everything(logp, old, rewards, values, mask):
        score = torch.arange(len(mask), dtype=torch.float64)
        pg, pg_statistics = ppo.policy_loss(logp, old, rewards, mask, 0.2)
        vf, vf_statistics = ppo.value_loss(values, old, rewards, mask, 0.2)
        per_token = [
            ppo.whiten(logp, mask), ppo.whiten(logp, mask, shift_mean=False),
            ppo.token_rewards(score, ppo.kl_estimate(logp, old), mask, 0.1),
            *ppo.gae(rewards * mask, values, mask), pg, vf,
        ]  # fmt: skip
        return per_token, [ppo.masked_mean(logp, mask), *pg_statistics.values(), *vf_statistics.values()]

    (tokens, scalars), (tokens_wide, scalars_wide) = everything(*tensors, mask), everything(*wide, mask_wide)
    for narrow, broad in zip(tokens, tokens_wide, strict=True):
        assert torch.allclose(torch.nn.functional.pad(narrow, (0, 2)), broad)
        assert (broad[mask_wide == 0] == 0).all()
    assert torch.allclose(torch.stack(scalars), torch.stack(scalars_wide))


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=8), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_scores(parts):
    moments = ppo.RunningMoments()
    for part in parts:
        moments.update(torch.tensor(part, dtype=torch.float64))
        moments = ppo.RunningMoments(**moments.state())  # as a resumed run does
    scores = np.concatenate(parts)
    assert moments.mean == pytest.approx(scores.mean(), abs=1e-6)
    assert moments.std == pytest.approx(scores.std(ddof=1) if len(scores) > 1 else 1.0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ openers


def test_distinct_by_hand():
    # one two one two / one: five words, two different; pairs within a text: "one two", "two one", "one two"
    assert distinct(["One, two, one two!", "one"], 1) == 2 / 5
    assert distinct(["One, two, one two!", "one"], 2) == 2 / 3
    assert distinct(["one"], 2) == distinct([], 1) == 0.0


def test_copied_wants_a_whole_run_of_words():
    training = ["I went to the market by the river to buy plums."]
    texts = ["he said: went to the MARKET by the river, to sit", "went to the market by the lake to buy plums"]
    assert copied(texts, training) == 0.5
    assert copied(texts, training, n=5) == 1.0


def test_the_interval_covers_the_mean_and_narrows_with_the_scenes():
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = interval(values)
    expected = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(values.mean() - expected, abs=0.02)
    assert high == pytest.approx(values.mean() + expected, abs=0.02)
    assert interval(np.full(5, 2.0)) == (2.0, 2.0)
