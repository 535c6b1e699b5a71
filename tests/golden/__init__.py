"""A small checkpoint of each format, with the run and the base that it belongs to: it must resume for ever.

`format-1/` was written by `python -m tests.golden`, once. A change that it does not survive is a change of
format: raise checkpoint.FORMAT, read both, and add a golden checkpoint of the new one.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from helpers.core.run import Run

SETTINGS = {
    "run": "golden",
    "method": "lora",
    "rank": 2,
    "lora_targets": "attention",
    "train_text_encoder": True,
    "use_ema": True,
    "max_steps": 6,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "resolution_px": 32,
    "random_flip": True,
    "caption_dropout": 0.5,
    "prior_share": 0.0,
    "num_inference_steps": 2,
    "save_every_steps": 3,
    "validate_every_steps": 3,
    "validation_pairs": 256,
    "preview_every_steps": 100,
    "tracker": "none",
    "seed": 7,
}


def golden_folder(number: int) -> Path:
    return Path(__file__).parent / f"format-{number}"


def final_weights(run: Run) -> dict[str, Tensor]:
    """The trained weights and their average after the last step."""
    last = run.checkpoint(SETTINGS["max_steps"])
    average = load_file(last / "average.safetensors")
    weights = load_file(last / "weights.safetensors")
    return weights | {f"average.{name}": tensor for name, tensor in average.items()}
