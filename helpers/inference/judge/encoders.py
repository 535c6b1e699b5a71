"""Encoders from pictures to features: colour and texture statistics, or a pretrained image model."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from helpers.core.errors import RunError
from helpers.inference.judge.style import features
from helpers.models.untrusted import open_model

Encoder = Callable[[Sequence[Image.Image]], np.ndarray]  # (N, D) float32
BUILT_IN = "built-in, no weights"
ADVICE = "give a hub id such as openai/clip-vit-large-patch14 or facebook/dinov2-base, or a folder"


def make_builtin_encoder(train: Sequence[Image.Image]) -> Encoder:
    """Return an Encoder that computes style.py's features, standardized on `train` and clipped to -5..5."""
    found = np.stack([features(image) for image in train])
    mean, std = found.mean(0), found.std(0) + 1e-6

    def encode(images: Sequence[Image.Image]) -> np.ndarray:
        return np.clip((np.stack([features(i) for i in images]) - mean) / std, -5, 5)

    return encode


class ImageModel:
    """An encoder that uses a CLIP, SigLIP or DINOv2 from the Hub or a folder. Raises RunError if loading fails."""

    def __init__(self, name: str) -> None:
        with open_model("the encoder", name, ADVICE) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
            self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        self.name, self.device = name, "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], batch_size: int = 16) -> np.ndarray:
        """Return the images' embeddings as unit vectors, (N, D)."""
        batches = []
        for start in range(0, len(images), batch_size):
            batch = [image.convert("RGB") for image in images[start : start + batch_size]]
            pixels = self.processor(images=batch, return_tensors="pt").to(self.device)
            has_head = hasattr(self.model, "get_image_features")
            output = (self.model.get_image_features if has_head else self.model)(**pixels)
            batches.append(_normalize(output))
        return np.concatenate(batches)


class ClipScore(ImageModel):
    """A CLIP model that scores how well pictures fit their prompts.

    CLIPScore is 100 times the cosine of the two embeddings, and at least 0. Hessel et al. 2021, arXiv:2104.08718.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if not hasattr(self.model, "get_text_features"):
            raise RunError(
                f"clip_model {name!r} reads no text: give a CLIP, such as openai/clip-vit-base-patch16"
            )
        with open_model("clip_model", name, ADVICE) as folder:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return the CLIPScore (N,) of each image with the prompt at the same index."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        inputs = {name: tokens[name].to(self.device) for name in names if name in tokens}
        texts = _normalize(self.model.get_text_features(**inputs))
        return 100 * np.clip((self(images) * texts).sum(1), 0, None)


def _normalize(output: object) -> np.ndarray:
    """Return a model's output, a tensor or an object with `pooler_output`, as unit vectors (N, D)."""
    vectors = output if torch.is_tensor(output) else output.pooler_output
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
