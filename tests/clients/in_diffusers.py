"""Run with diffusers 0.32 and transformers 4.54: model/ as a user loads it, the one file, and LoRAs in all layouts."""

import logging
import re
import sys
from pathlib import Path

from tests.clients.loader import Found, read_case  # before what imports torchvision

# isort: split
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

case, truth = read_case(sys.argv[2])
found = Found(truth)
UNUSED = "position_ids"  # of Stable Diffusion 1's files; transformers makes it by itself
IS_XL = case["family"] == "sdxl"
PIPELINE = StableDiffusionXLPipeline if IS_XL else StableDiffusionPipeline


class Unmatched(logging.Handler):
    """What the libraries warn of while they load."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if any(word in said for word in ("newly initialized", "not used", "unexpected", "missing")):
            self.lines += self.names(said) or [said[:200]]

    @staticmethod
    def names(said: str) -> list[str]:
        """The keys of which a warning tells."""
        return re.findall(r"'([\w.]+\.\w+)'", said)


heard = Unmatched()
for name in ("diffusers", "transformers"):
    logging.getLogger(name).addHandler(heard)


@torch.no_grad()
def compare(file: str, pipeline: DiffusionPipeline) -> None:
    given = {}
    if IS_XL:
        words, _, pooled, _ = pipeline.encode_prompt(
            [case["prompt"], ""], device="cpu", do_classifier_free_guidance=False
        )
        found.compare(file, "pooled", pooled)
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": truth["time_ids"]}
    else:
        words, _ = pipeline.encode_prompt([case["prompt"], ""], "cpu", 1, False)
    found.compare(file, "words", words)
    noise = pipeline.unet(truth["latents"], truth["timesteps"], words, **given).sample
    found.compare(file, "noise", noise)
    found.compare(file, "pixels", pipeline.vae.decode(truth["latents"]).sample)
    found.unmatched(file, [name for name in heard.lines if not name.endswith(UNUSED)])
    heard.lines.clear()


with found.loading("model/"):
    compare("model/", DiffusionPipeline.from_pretrained(case["folder"]))
with found.loading("model"):
    config = {"config": case["folder"], "local_files_only": True}
    compare("model", PIPELINE.from_single_file(case["model"], **config))
for file, lora in (case["loras"] | case["diffusers_loras"]).items():
    with found.loading(file):
        pipeline = DiffusionPipeline.from_pretrained(case["base_folder"])
        heard.lines.clear()
        pipeline.load_lora_weights(Path(lora).parent, weight_name=Path(lora).name)
        compare(file, pipeline)
found.tell()
