"""models/compiled.py: a compiled model's numbers are the eager one's, and where torch cannot compile that is said at once.

What PPO makes of it: tests/test_trainer.py.
"""

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from transformers import LlamaConfig, LlamaForCausalLM

from models.compiled import compile_layers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def test_without_a_compiler_the_key_is_named():
    message = r"torch_compile: torch cannot compile here .*nowhere.* or leave torch_compile out"
    with inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}), pytest.raises(ValueError, match=message):
        compile_layers(llama(), CPU)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="torch_compile: Linear has no layers"):
        compile_layers(nn.Linear(2, 2), CPU)


@pytest.mark.slow
def test_layers_are_one_graph_for_all_lengths():
    model, graphs = llama(), torch._dynamo.utils.counters["stats"]
    batches = [torch.arange(rows * size).view(rows, size) % 20 for rows, size in ((2, 6), (3, 9), (4, 5))]
    expected = [model(input_ids=ids).logits for ids in batches]
    compile_layers(model, CPU)
    graphs.clear()
    for ids, logits in zip(batches, expected, strict=True):
        assert torch.allclose(model(input_ids=ids).logits, logits, atol=1e-5)
    assert 1 <= graphs["unique_graphs"] <= 3
