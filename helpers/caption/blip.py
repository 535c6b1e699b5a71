"""The captioner "blip": an image-to-text model from the Hub, such as BLIP, that runs locally without a key or cost.

The only module of notebooks 01 to 03 that loads torch, and only if it is chosen.
"""

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
    """Caption each image with the model, appending the row to captions.jsonl before yielding it.

    Raises RunError if the model cannot be loaded.
    """
    processor, model = load(config.blip_model)
    for post in posts:
        row = _caption(config, run, post, processor, model)
        append_row(run.captions, row)
        yield row


def load(name: str) -> tuple[AutoProcessor, AutoModelForImageTextToText]:
    """Load an image-to-text model and its processor, the model on the GPU if there is one.

    Raises RunError if `name` is not an image-to-text model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    advice = "give the hub id or the folder of an image-to-text model such as Salesforce/blip-image-captioning-large"
    with open_model("blip_model", name, advice) as folder:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False
        )
    return processor, model.to(device).eval()


def _caption(
    config: CaptionConfig,
    run: Run,
    post: Post,
    processor: AutoProcessor,
    model: AutoModelForImageTextToText,
) -> Caption:
    try:
        image = open_rgb(run.image(post.file_name))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = f"failed: cannot be read ({error})"
        return Caption(post.file_name, "", why, "blip", config.blip_model)
    text = describe(image, processor, model)
    status = "ok" if text else "failed: the model returned no text"
    return Caption(post.file_name, text, status, "blip", config.blip_model)


@torch.inference_mode()
def describe(
    image: Image.Image, processor: AutoProcessor, model: AutoModelForImageTextToText
) -> str:
    """Return the caption that the model generates for an image by beam search, which is deterministic."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, num_beams=BEAMS, do_sample=False)
    return " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
