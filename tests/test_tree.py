"""rl/tree.py: what the tree reads is what a row for each opener reads, in numbers and in gradients.

Not covered: models that look further than a mask says (state spaces, convolutions), which no recipe has.
"""

import itertools

import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoConfig, AutoModelForCausalLM

from models.sampling import left_pad
from rl import tree
from rl.tree import prefix_trees

TEMPERATURE = 0.7
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES = {
    "bert": {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
}
INSTRUCTION = [7, 8, 9]
CASES = {
    "scenes, some several times": ([[10, 11], [12], [10, 11], [10, 11], [12], [13, 14, 15, 16]], [3, 1, 5, 2, 4, 1]),
    "one scene": ([[10, 11]] * 3, [4, 2, 1]),
    "one opener": ([[10]], [3]),
    "a prompt that another begins with": ([[], [10], [10, 11]], [2, 2, 2]),
    "nothing in common": (None, [2, 3, 1]),
    "more tokens than the context": ([[i, i + 1, i + 2, i + 3] for i in range(10, 30)], [5] * 20),
}


def batch(case: str):
    ends, sizes = CASES[case]
    prompts = [[20 + i, 30, 31] for i in range(3)] if ends is None else [INSTRUCTION + end for end in ends]
    mask = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
    response = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return prompts, (*left_pad(prompts, 0), response, mask)


def model(family: str, attention: str):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    lm.get_base_model = lambda: lm  # as an adapter's
    return lm


@pytest.mark.parametrize("tokens", [8, 1000])  # many trees, one
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_each_reads_alone(family, attention, case, tokens, monkeypatch):
    monkeypatch.setattr(tree, "TOKENS", tokens)
    lm, (prompts, (query, query_mask, response, mask)) = model(family, attention), batch(case)
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)) * mask

    trees = prefix_trees(query, query_mask, response, mask, attention)
    log_p_N, entropy_N, states_NH = trees.read(lm, TEMPERATURE)
    found = trees.rows(log_p_N)
    (found * weight).sum().backward()
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}

    lm.zero_grad(set_to_none=True)
    expected, distributions, states = torch.zeros_like(found), [], []
    for row, prompt in enumerate(prompts):
        said = response[row][mask[row]]
        out = lm(input_ids=torch.tensor([prompt + said.tolist()]), output_hidden_states=True)
        distributions.append(torch.log_softmax(out.logits[0, len(prompt) - 1 : -1] / TEMPERATURE, -1))
        states.append(out.hidden_states[-1][0, len(prompt) - 1 : -1])
        expected[row, : len(said)] = distributions[-1].gather(1, said[:, None]).squeeze(1)
    (expected * weight).sum().backward()

    assert torch.allclose(found, expected, atol=1e-5) and (found[~mask] == 0).all()
    assert torch.allclose(entropy_N, Categorical(logits=torch.cat(distributions)).entropy(), atol=1e-5)
    assert torch.allclose(states_NH, torch.cat(states), atol=1e-5)
    for name, p in lm.named_parameters():
        if p.grad is not None:
            assert (gradients[name] - p.grad).abs().max() <= 1e-5 * p.grad.abs().max().clamp(min=1), name


def test_what_is_in_common_stands_once():
    _, (query, query_mask, response, mask) = batch("scenes, some several times")
    ids = prefix_trees(query, query_mask, response, mask, "sdpa").inputs["input_ids"]
    # The instruction; three scenes; all of every response but its last token.
    assert ids.shape == (1, 3 + (2 + 1 + 4) + (16 - 6)) and ids.numel() < (query_mask.sum() + mask.sum()) / 2


def test_trees_are_of_like_size_and_split_no_scene():
    prompts = [(1, 2, 3, scene) for scene in range(40) for _ in range(4)]
    responses = [[5] * (1 + row % 7) for row in range(160)]
    found = tree.cuts(prompts, responses)
    assert found[0] == 0 and found[-1] == 160 and all(row % 4 == 0 for row in found)
    sizes = [len(tree.tree(prompts[a:b], responses[a:b])[0]) for a, b in itertools.pairwise(found)]
    assert len(sizes) == 4 and max(sizes) < 1.2 * tree.TOKENS and max(sizes) - min(sizes) < 40
    assert len(sizes) * max(sizes) < 1.05 * sum(sizes)  # little is padding
    assert tree.cuts([(1,)], [[2] * 900]) == [0, 1]
    even = [(*range(20), *[scene] * 20) for scene in range(16)]  # three trees would be of five or six: a tenth padding
    assert tree.cuts(even, [[5] * 32] * 16) == [0, 4, 8, 12, 16]


def test_a_model_that_takes_no_mask_is_refused():
    _, tensors = batch("one scene")
    with pytest.raises(ValueError, match="attention 'flash_attention_2' takes no mask of its caller's"):
        prefix_trees(*tensors, "flash_attention_2")


def test_a_model_that_goes_by_the_index_is_refused():
    """MPT's ALiBi counts distances among all tokens of a row; OPT's head does not ask its trunk; a Llama goes by places."""
    tree.check_reading(model("llama", "sdpa"))
    torch.manual_seed(0)
    mpt = AutoConfig.for_model("mpt", d_model=32, n_heads=4, n_layers=2, vocab_size=50, max_seq_len=512)
    mpt.max_position_embeddings = 512
    opt = AutoConfig.for_model(
        "opt", hidden_size=32, num_attention_heads=4, num_hidden_layers=2, ffn_dim=48, vocab_size=50,
        max_position_embeddings=64, word_embed_proj_dim=32,
    )  # fmt: skip
    for config, message in (
        (mpt, "MptForCausalLM reads openers .* otherwise than alone"),
        (opt, "OPTForCausalLM cannot"),
    ):
        lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for weight in lm.parameters():  # as random ones are, nothing looks far
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.5)
        lm.get_base_model = lambda lm=lm: lm
        with pytest.raises(ValueError, match=message):
            tree.check_reading(lm)
