"""Write the files that transformers 4 needs to load a pipeline saved by transformers 5.

transformers 5 saves a tokenizer as one tokenizer.json, and a new text encoder without `text_model.` in its names.
transformers 4 needs vocab.json and merges.txt, and silently takes random weights for names that it does not find.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from helpers.core.files import write_json, write_text

PREFIX, PROJECTION = "text_model.", "text_projection."
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a CLIPTokenizer as the files that transformers 4 reads: vocab.json, merges.txt and settings."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    special = {name: str(getattr(tokenizer, name)) for name in SPECIAL}
    write_json(folder / "vocab.json", model["vocab"])
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    write_json(folder / "special_tokens_map.json", special)
    if added := {t: i for t, i in tokenizer.get_vocab().items() if t not in model["vocab"]}:
        write_json(folder / "added_tokens.json", added)
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.model_max_length,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings | special)


def write_text_encoder_names(path: Path) -> None:
    """Add the prefix `text_model.` to the weight names in a text encoder's file, as in all published files.

    The projection of SDXL's second text encoder has none there.
    """
    state = load_file(path)
    named = {
        name if name.startswith((PREFIX, PROJECTION)) else PREFIX + name: tensor
        for name, tensor in state.items()
    }
    if named.keys() != state.keys():
        save_file(named, path, metadata={"format": "pt"})
