"""The captioner "blip": a local image-to-text model, such as BLIP. No other module of 01 to 03 loads torch."""

from collections.abc import Iterator

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers.config import CaptionConfig
from helpers.core.records import Caption, Post, append_row
from helpers.core.run import Run
from helpers.figures.pictures import open_rgb
from helpers.models.untrusted import open_model

MAX_TOKENS = 60
BEAMS = 3


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption each image with the model, and yield each row after appending it to captions.jsonl."""
    processor, model = load(config.blip_model)
    for post in posts:
        try:
            image = open_rgb(run.image(post.file_name))
        except OSError as error:
            text, status = "", f"failed: cannot be read ({error})"
        else:
            text = describe(image, processor, model)
            status = "ok" if text else "failed: the model returned no text"
        row = Caption(post.file_name, text, status, "blip", config.blip_model)
        append_row(run.captions, row)
        yield row


def load(name: str) -> tuple[AutoProcessor, AutoModelForImageTextToText]:
    """Load an image-to-text model, on the GPU if there is one, and its processor. Raises RunError for other models."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    advice = "give the hub id or the folder of an image-to-text model such as Salesforce/blip-image-captioning-large"
    with open_model("blip_model", name, advice) as folder:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        safely = {"use_safetensors": True, "trust_remote_code": False}
        model = AutoModelForImageTextToText.from_pretrained(folder, **safely)
    return processor, model.to(device).eval()


@torch.inference_mode()
def describe(
    image: Image.Image, processor: AutoProcessor, model: AutoModelForImageTextToText
) -> str:
    """Return the caption that the model generates for an image, by a deterministic beam search."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, num_beams=BEAMS, do_sample=False)
    return " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
