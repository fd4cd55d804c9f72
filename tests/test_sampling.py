"""models/sampling.py: each draw is a function of seed, key and position alone, and has the model's distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from models.sampling import RoomyLayer, decode, draw, sample, uniform

V, EOS, PAD, CONTEXT = 23, 1, 0, 64
SIZES = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": CONTEXT, "initializer_range": 0.6, "pad_token_id": PAD, "eos_token_id": EOS,
}  # fmt: skip
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [5, 6], [16, 17, 18, 19]]


def tiny(kind):
    torch.manual_seed(0)
    if kind == "bert":
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertLMHeadModel(BertConfig(is_decoder=True, **dropout, **SIZES)).eval()
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES)).eval()
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval()


@pytest.fixture(scope="module", params=["bert", "llama", "gpt_neox"])
def model(request):
    return tiny(request.param)


def responses(model, prompts, keys=None, seed=3, temperature=1.0, max_new_tokens=12, eos=EOS, pad=PAD):
    """Token ids of each response, padding off, and whether it ended."""
    samples = sample(
        model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, eos_token_id=eos, pad_token_id=pad,
        seed=seed, keys=keys,
    )  # fmt: skip
    ids = [row[mask].tolist() for row, mask in zip(samples.response_BT, samples.mask_BT, strict=True)]
    return list(zip(ids, samples.ended_B.tolist(), strict=True))


def plain(model, prompt, key, seed=3, temperature=1.0, max_new_tokens=12, eos=EOS):
    """The same by the shortest code: one row, no padding, no cache."""
    ids = list(prompt)
    for t in range(max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
        noise = torch.from_numpy(uniform(seed, np.array([key]), t))
        ids.append(int(draw(logits, temperature, noise)))
        if ids[-1] == eos:
            return ids[len(prompt) :], True
    return ids[len(prompt) :], False


# ------------------------------------------------------------------------------------------------ responses


def test_a_batch_is_its_rows_one_by_one(model):
    """Left padding, the cache and rows that leave change nothing."""
    found = responses(model, PROMPTS * 4, max_new_tokens=20)
    assert found == [plain(model, prompt, key, max_new_tokens=20) for key, prompt in enumerate(PROMPTS * 4)]
    lengths = {len(ids) for ids, _ in found}
    assert len(lengths) > 3 and {ended for _, ended in found} == {True, False}  # rows did leave early, others did not


def test_greedy_is_the_argmax_without_cache(model):
    found = responses(model, PROMPTS, temperature=0)
    assert found == [plain(model, prompt, key, temperature=0) for key, prompt in enumerate(PROMPTS)]
    assert responses(model, PROMPTS, temperature=0, seed=99) == found


@pytest.mark.parametrize("size", [1, 3])
def test_order_and_batch_size_change_no_sample(size):
    model = tiny("bert")
    prompts, keys = PROMPTS * 3, list(range(100, 115))
    expected = dict(zip(keys, responses(model, prompts, keys), strict=True))
    order, found = np.random.default_rng(0).permutation(15), {}
    for start in range(0, 15, size):
        part = order[start : start + size]
        chosen = [keys[i] for i in part]
        found |= zip(chosen, responses(model, [prompts[i] for i in part], chosen), strict=True)
    assert found == expected


def test_seeds_and_keys_make_the_difference():
    model = tiny("bert")
    same = [PROMPTS[0]] * 8
    by_key = responses(model, same)
    assert len({tuple(ids) for ids, _ in by_key}) > 4
    assert responses(model, same, seed=4) != by_key
    assert responses(model, same, keys=[7] * 8)[0] == by_key[7]


def test_a_roomy_layer_holds_what_transformers_does():
    roomy, plain = RoomyLayer(room=3), DynamicLayer()
    for step, rows in enumerate([None, None, [0, 0, 2], None, None, [1], None, None, None]):  # past the room, twice
        for layer in (roomy, plain):
            if rows:
                layer.batch_select_indices(torch.tensor(rows))
        size = (4 if plain.get_seq_length() == 0 else len(plain.keys), 2, 5 if step == 0 else 1, 6)
        new = torch.randn(size), torch.randn(size)
        for found, expected in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert roomy.get_seq_length() == plain.get_seq_length() == 5 + step


def test_one_token_may_be_both_pad_and_end():
    model = tiny("bert")
    apart = responses(model, PROMPTS * 4, max_new_tokens=20)
    assert responses(model, PROMPTS * 4, pad=EOS, max_new_tokens=20) == apart
    ends = [(ids, ended) for ids, ended in apart if ended]
    assert ends and all(ids.count(EOS) == 1 and ids[-1] == EOS for ids, _ in ends)


def test_a_batch_stops_with_its_last_row_and_is_padded():
    model = tiny("bert")
    samples = sample(model, PROMPTS, max_new_tokens=50, temperature=1.0, eos_token_id=EOS, pad_token_id=PAD, seed=3)
    assert samples.response_BT.shape == samples.mask_BT.shape == (5, int(samples.mask_BT.sum(1).max()))
    assert (samples.response_BT[~samples.mask_BT] == PAD).all()


def test_an_adapter_samples_as_its_merged_weights_do(friend_adapter):
    from models.load import load_policy, load_tokenizer

    model, tokenizer = load_policy(friend_adapter).eval(), load_tokenizer(friend_adapter)
    args = {
        "max_new_tokens": 8,
        "temperature": 1.0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "seed": 1,
    }
    prompts = [tokenizer(text)["input_ids"] for text in ("<|person|>hello<|end|><|friend|>", "<|friend|>")]
    texts = decode(sample(model, prompts, **args), tokenizer)
    assert decode(sample(model.merge_and_unload(), prompts, **args), tokenizer) == texts
    base = AutoModelForCausalLM.from_pretrained(friend_adapter.replace("/adapter", "/base"))
    assert decode(sample(base, prompts, **args), tokenizer) != texts
    assert all(text == text.strip() and "<|" not in text for text in texts)


def test_prompts_that_cannot_be_are_refused():
    model = tiny("bert")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        responses(model, [[5], []])
    responses(model, [[5] * (CONTEXT - 12)])  # just fits
    with pytest.raises(ValueError, match=r"prompt 1 has 53 tokens; with max_new_tokens 12 .* context of 64"):
        responses(model, [[5], [5] * (CONTEXT - 11)])


# ------------------------------------------------------------------------------------------------ draws


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_have_the_softmax_distribution(temperature):
    logits, n = torch.tensor([2.0, 0.0, -1.0, 1.0, -30.0]), 40_000
    noise = torch.from_numpy(uniform(1, np.arange(n), position=3))
    counts = torch.bincount(draw(logits.expand(n, -1), temperature, noise), minlength=5).numpy()
    expected = n * torch.softmax(logits.double() / temperature, -1).numpy()
    assert counts[4] == 0
    assert chisquare(counts[:4], expected[:4] * counts[:4].sum() / expected[:4].sum()).pvalue > 0.01


def test_draw_by_hand():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5]])
    for u, token in ((0.0, 1), (0.4999, 1), (0.5001, 3), (1 - 2**-53, 3)):  # a token of probability 0 never comes
        assert draw(p.log(), 1.0, torch.tensor([u], dtype=torch.float64)).item() == token


def test_noise_is_uniform_and_free_of_patterns():
    rows = np.array([uniform(1, np.arange(2000), position) for position in range(20)])
    assert rows.min() >= 0 and rows.max() < 1
    assert kstest(rows.ravel(), "uniform").pvalue > 0.01
    assert len(np.unique(rows)) == rows.size
    near = np.corrcoef(rows)  # between positions; and between neighbouring keys
    assert np.abs(near[~np.eye(20, dtype=bool)]).max() < 0.1
    assert abs(np.corrcoef(rows[:, 1:].ravel(), rows[:, :-1].ravel())[0, 1]) < 0.03


def test_noise_differs_by_seed_key_and_position_and_is_repeatable():
    keys = np.arange(500)
    seeds = np.array([uniform(seed, keys, position=0) for seed in range(20)])
    assert len(np.unique(seeds)) == seeds.size
    assert (uniform(1, keys, 1) != uniform(1, keys, 0)).all()
    assert (uniform(1, keys, 0) == uniform(1, keys[::-1], 0)[::-1]).all()
    assert uniform(1, np.array([2]), 3) == pytest.approx(0.0, abs=1)
