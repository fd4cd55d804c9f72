"""The arithmetic of PPO on responses: pure functions of tensors, nothing else.

Axes: B responses, T response tokens. `mask_BT` is 1 on the tokens of a response, its end token included, and 0 after
it. Position t of `logp_BT` is the token that was written at t; position t of `values_BT` is the value of the state
*before* that token. The score of a response lands on its last real token, so that no padding enters GAE.

Sources: PPO (Schulman et al. 2017), GAE (Schulman et al. 2015), RLHF's KL reward and adaptive coefficient (Ziegler et
al. 2019), the N+ implementation details (Huang et al. 2024).
"""

import math
from collections.abc import Iterator

import torch


def masked_mean(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over all real tokens of the batch, a scalar. Every token weighs the same, whatever its response's length."""
    return (x_BT * mask_BT).sum() / mask_BT.sum()


def whiten(x_BT: torch.Tensor, mask_BT: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """x scaled to variance 1 over the real tokens (unbiased), and mean 0 unless `shift_mean` is False; 0 off the mask."""
    mean = masked_mean(x_BT, mask_BT)
    count = mask_BT.sum()
    variance = masked_mean((x_BT - mean) ** 2, mask_BT) * count / (count - 1).clamp(min=1)
    white = (x_BT - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask_BT


def kl_estimate(logp_BT: torch.Tensor, ref_logp_BT: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """KL(policy || reference) per token from the policy's own samples (Schulman, joschu.net/blog/kl-approx.html).

    k1 = log p - log q: unbiased, may be negative. k3 = (r - 1) - log r with r = q / p: unbiased, never negative, and
    the one of lower variance when the two are near.
    """
    log_r = ref_logp_BT - logp_BT
    if estimator == "k1":
        return -log_r
    if estimator == "k3":
        return log_r.exp() - 1 - log_r
    raise ValueError(f"kl_estimator is {estimator!r}, not k1 or k3")


def log_p_and_entropy(
    logits_NV: torch.Tensor, ids_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of ids_N, and entropy in nats, of softmax(logits / temperature): [N] and [N], fp32.

    Gradients flow through the log-probability alone. Nothing of the vocabulary's size is kept but the logits.
    """
    return _LogP.apply(logits_NV, ids_N, temperature)


class _LogP(torch.autograd.Function):
    """Some rows at a time, so that what stands between the logits and two numbers stays in a processor's cache."""

    @staticmethod
    def parts(logits_NV: torch.Tensor) -> Iterator[slice]:
        rows = max(1, 2**19 // logits_NV.shape[1])
        return (slice(start, start + rows) for start in range(0, len(logits_NV), rows))

    @staticmethod
    def forward(ctx, logits_NV, ids_N, temperature):
        log_p_N, entropy_N, log_z_N = logits_NV.new_empty(3, len(logits_NV), dtype=torch.float32)
        for part in _LogP.parts(logits_NV):
            x = logits_NV[part].float() / temperature
            top = x.amax(-1, keepdim=True)
            weight = (x - top).exp_()
            sum_N = weight.sum(-1)
            log_z_N[part] = log_z = top.squeeze(-1) + sum_N.log()
            log_p_N[part] = x.gather(-1, ids_N[part, None]).squeeze(-1) - log_z
            entropy_N[part] = log_z - weight.mul_(x).sum(-1) / sum_N
        ctx.save_for_backward(logits_NV, ids_N, log_z_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return log_p_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _):
        """d log p(i) / d logit(j) = ([i = j] - p(j)) / temperature."""
        logits_NV, ids_N, log_z_N = ctx.saved_tensors
        grad_NV, grad_N = torch.empty_like(logits_NV), grad_N.float() / ctx.temperature
        for part in _LogP.parts(logits_NV):
            grad = (logits_NV[part].float() / ctx.temperature - log_z_N[part, None]).exp_() * -grad_N[part, None]
            grad_NV[part] = grad.scatter_add_(-1, ids_N[part, None], grad_N[part, None])
        return grad_NV, None, None


def token_rewards(score_B: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """-kl_coef * KL on every token, plus the score on the last one (Ziegler et al. 2019, eq. 2). 0 off the mask."""
    rewards_BT = -kl_coef * kl_BT * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    rewards_BT[torch.arange(len(last_B)), last_B] += score_B
    return rewards_BT


def gae(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16): advantages and returns [B, T], 0 off the mask.

        delta_t = r_t + gamma * V_{t+1} - V_t,    A_t = delta_t + gamma * lam * A_{t+1},    returns = A + V

    The state after the last real token is terminal: its value is 0.
    """
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
        next_value_B = values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def policy_loss(
    logp_BT: torch.Tensor,
    old_logp_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cliprange: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7) per token [B, T], negated, 0 off the mask; and its statistics.

    The caller divides the sum by the number of tokens of the whole minibatch, so that accumulating over parts of it
    gives the gradient of the whole.
    """
    log_ratio_BT = (logp_BT - old_logp_BT) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    statistics = {
        "policy/clipfrac": ((clipped_BT > plain_BT).float() * mask_BT).sum(),
        "policy/approx_kl": ((ratio_BT - 1 - log_ratio_BT) * mask_BT).sum(),  # k3 of old against new
        "policy/ratio": (ratio_BT * mask_BT).sum(),
    }
    return torch.maximum(plain_BT, clipped_BT) * mask_BT, statistics


def value_loss(
    values_BT: torch.Tensor,
    old_values_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cliprange: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Half the squared error per token [B, T], the larger of plain and clipped about the old value; 0 off the mask."""
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange, cliprange)
    plain_BT, bounded_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    # Inside the range the two are equal but for rounding, which does not count as clipped.
    is_clipped_BT = (bounded_BT > plain_BT) & ((values_BT - old_values_BT).abs() > cliprange)
    statistics = {"value/clipfrac": (is_clipped_BT.float() * mask_BT).sum()}
    return 0.5 * torch.maximum(plain_BT, bounded_BT) * mask_BT, statistics


def explained_variance(values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns) over the real tokens: 1 is perfect, 0 no better than a constant."""
    real = mask_BT.bool()
    return 1 - (returns_BT - values_BT)[real].var() / returns_BT[real].var().clamp(min=1e-8)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The coefficient after a batch of `episodes` whose KL was `kl` nats a response (Ziegler et al. 2019, section 2.2).

    error = clip(kl / target - 1, -0.2, 0.2),    coefficient *= 1 + error * episodes / horizon
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return kl_coef * (1 + error * episodes / horizon)


class RunningMoments:
    """Mean and standard deviation of all scores so far (Welford; Chan et al. 1982 for batches)."""

    def __init__(self, count: float = 0, mean: float = 0.0, m2: float = 0.0):
        self.count, self.mean, self.m2 = count, mean, m2

    def update(self, x_B: torch.Tensor) -> None:
        n, mean = len(x_B), x_B.mean().item()
        delta, total = mean - self.mean, self.count + n
        self.m2 += ((x_B - mean) ** 2).sum().item() + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 1.0

    def state(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}
