"""Writes a run's base and adapter as one model, which loads without peft: in transformers, vLLM, llama.cpp's converter.

    python -m models.merge runs/tiny/ppo-s1                # into runs/tiny/ppo-s1/merged
    python -m models.merge RUN --output_dir DIR --dtype bfloat16

Merging in the base's own half precision rounds the adapter away in part: the default adds in float32 and stays there.

vLLM and llama.cpp know architectures by name. They know those of Llama and GPT-NeoX, so SmolLM2 and dolly; they have no
decoder called BertLMHeadModel, which friend-base is: a model merged on it runs in transformers alone, and the card says so.
Both may run on transformers 4, which cannot read all that transformers 5 writes: `for_transformers_4` says it twice.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from models.load import base_of, load_policy, load_tokenizer, resolve

#: Architectures of recipes' bases that are in vLLM's registry and in llama.cpp's convert_hf_to_gguf.py.
SERVED = ("LlamaForCausalLM", "GPTNeoXForCausalLM")

CARD = """# {name}

{base} with the adapter of `{run}` merged in: one model of {size:.1f} M parameters in {dtype}, tokenizer and chat
template beside it. Written by `python -m models.merge`.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")

{serving}

The licences of the base and of the data that it and the adapter were trained on apply.
"""

SERVING = """`vllm serve {name}`; `python convert_hf_to_gguf.py {name}` from llama.cpp, which knows a tokenizer by a
hash of its own list: it has those of published models, and refuses one trained from scratch."""
NEOX = """ Its converter
reads GPT-NeoX with transformers 4 alone: later ones hide `rotary_pct` from it."""
NOT_SERVED = """It loads in transformers alone. vLLM and llama.cpp have no decoder of the architecture {architecture}:
`make serve` serves it. A Llama or GPT-NeoX base (experiments/smollm2, experiments/dolly-3b) gives one that they take."""


def main(run: str, output_dir: str | None = None, dtype: str = "float32") -> Path:
    """Merges the adapter of `run` (a run, a shipped model or a path) into `output_dir`, default <run>/merged.

    Returns the directory, which comes into being whole. Raises ValueError where there is no adapter to merge, or one of a
    reward, and FileExistsError where the directory is already there.
    """
    path = Path(resolve(run))
    if not (path / "adapter_config.json").exists():
        raise ValueError(f"{run} has no adapter (adapter_config.json): it is a whole model already")
    if (path / "scorer.json").exists():
        raise ValueError(f"{run} is a reward, which writes no text: merge an SFT, PPO, GRPO or DPO run")
    directory = Path(output_dir) if output_dir else Path(run) / "merged"
    if directory.exists():
        raise FileExistsError(f"{directory} is there already: remove it, or give another --output_dir")
    tokenizer = load_tokenizer(run)
    model = load_policy(run).merge_and_unload().to(getattr(torch, dtype))

    new = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    for_transformers_4(new, tokenizer.chat_template)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    card = CARD.format(
        name=directory.name, base=base_of(run), run=run, size=size, dtype=dtype, serving=serving(new, directory.name)
    )
    (new / "README.md").write_text(card, encoding="utf-8")
    new.replace(directory)
    return directory


def for_transformers_4(directory: Path, chat_template: str) -> None:
    """Adds what earlier releases look for under other names; transformers 5 reads these names as well."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if config["model_type"] == "gpt_neox":
            config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": chat_template}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(marks := config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = marks
        del config["extra_special_tokens"]
    for key in ("backend", "is_local", "local_files_only"):  # how it was loaded here
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def serving(directory: Path, name: str) -> str:
    """What besides transformers can load a saved model."""
    architecture = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    if architecture not in SERVED:
        return NOT_SERVED.format(architecture=architecture)
    return SERVING.format(name=name) + (NEOX if architecture.startswith("GPTNeoX") else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m models.merge", description="base + adapter -> one model")
    parser.add_argument("run", help="an SFT or PPO run, a shipped model's name, or a path")
    parser.add_argument("--output_dir", help="default: RUN/merged")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of what is written"
    )
    merged = main(**vars(parser.parse_args()))
    print(f"{merged}\n{serving(merged, str(merged))}")
