"""Run with diffusers 0.32 and transformers 4.54: model/ as a user loads it, and a LoRA in both layouts."""

import logging
import sys
from pathlib import Path

from tests.clients.loader import Found, read_case  # before what imports torchvision

# isort: split
import torch
from diffusers import DiffusionPipeline

case, truth = read_case(sys.argv[2])
found = Found(truth)


class Unmatched(logging.Handler):
    """What the libraries warn of while they load."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if any(word in said for word in ("newly initialized", "not used", "unexpected", "missing")):
            self.lines.append(said[:200])


heard = Unmatched()
for name in ("diffusers", "transformers"):
    logging.getLogger(name).addHandler(heard)


@torch.no_grad()
def compare(file: str, pipeline: DiffusionPipeline) -> None:
    ids = pipeline.tokenizer(
        [case["prompt"], ""], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    words = pipeline.text_encoder(ids).last_hidden_state
    found.compare(file, "words", words)
    noise = pipeline.unet(truth["latents"], truth["timesteps"], words).sample
    found.compare(file, "noise", noise)
    found.compare(file, "pixels", pipeline.vae.decode(truth["latents"]).sample)
    found.unmatched(file, heard.lines)
    heard.lines.clear()


with found.loading("model"):
    compare("model", DiffusionPipeline.from_pretrained(case["folder"]))
if case["has_lora"]:
    with found.loading("lora"):
        pipeline = DiffusionPipeline.from_pretrained(case["base_folder"])
        heard.lines.clear()
        path = Path(case["lora"])
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        compare("lora", pipeline)
found.tell()
