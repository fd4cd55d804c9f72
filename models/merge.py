"""Writes a run's base and adapter as one model, which AutoModelForCausalLM loads without peft.

    python -m models.merge runs/tiny/ppo-s1                # into runs/tiny/ppo-s1/merged
    python -m models.merge RUN --output_dir DIR --dtype bfloat16

Merging in the base's own half precision rounds the adapter away in part: the default adds in float32 and stays there.
"""

import argparse
import shutil
from pathlib import Path

import torch

from models.load import base_of, load_policy, load_tokenizer, resolve

CARD = """# {name}

{base} with the adapter of `{run}` merged in: one model of {size:.1f} M parameters in {dtype}, tokenizer and chat
template beside it. Written by `python -m models.merge`.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")

The licences of the base and of the data that it and the adapter were trained on apply.
"""


def main(run: str, output_dir: str | None = None, dtype: str = "float32") -> Path:
    """Merges the adapter of `run` (a run, a shipped model or a path) into `output_dir`, default <run>/merged.

    Returns the directory, which comes into being whole. Raises ValueError where there is no adapter to merge, and
    FileExistsError where the directory is already there.
    """
    path = Path(resolve(run))
    if not (path / "adapter_config.json").exists():
        raise ValueError(f"{run} has no adapter (adapter_config.json): it is a whole model already")
    directory = Path(output_dir) if output_dir else Path(run) / "merged"
    if directory.exists():
        raise FileExistsError(f"{directory} is there already: remove it, or give another --output_dir")
    tokenizer = load_tokenizer(run)
    model = load_policy(run).merge_and_unload().to(getattr(torch, dtype))

    new = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    card = CARD.format(name=directory.name, base=base_of(run), run=run, size=size, dtype=dtype)
    (new / "README.md").write_text(card, encoding="utf-8")
    new.replace(directory)
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m models.merge", description="base + adapter -> one model")
    parser.add_argument("run", help="an SFT or PPO run, a shipped model's name, or a path")
    parser.add_argument("--output_dir", help="default: RUN/merged")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of what is written"
    )
    print(main(**vars(parser.parse_args())))
