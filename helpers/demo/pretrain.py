"""Train the tiny base model from a seed: `python -m helpers.demo.pretrain [--out assets/tiny-sd]`.

Its components are Stable Diffusion v1's (Rombach et al. 2022, arXiv:2112.10752), each a few hundred times smaller. It
is trained on flat scenes, then on some in simple looks (looks.py) named in their captions, so it knows what a style is
but not watercolour. Only its autoencoder is trained on watercolours too.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.core.files import folder_bytes, read_json, replacing_folder, write_json, write_text
from helpers.core.process import run_command
from helpers.demo.autoencoder import encode, train_autoencoder
from helpers.demo.looks import LOOKS, apply_look, suffix, unknown_suffix
from helpers.demo.optimise import draw_scenes, optimise
from helpers.demo.paint import SIZE_PX
from helpers.demo.scenes import PRETRAIN_SCENES_FROM, random_scene
from helpers.demo.tokenizer import make_tokenizer

UNSEEN_EMBEDDING_NORM = 2.0  # words of the captions have about 0.5
# SD v1's own schedule
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# tiny-sd

A latent-diffusion model in Stable Diffusion v1's parts, small enough for a CPU. It draws captioned scenes of animals
and things in a plain flat style, and was trained from nothing on pictures that this project's own code draws:
`helpers/demo/pretrain.py` makes it again from its seed.
"""


@dataclass(frozen=True)
class Course:
    """The hyperparameters of one training stage of the UNet and the text encoder."""

    scenes: int
    steps: int
    peak_learning_rate: float
    ema_decay: float
    noise_offset: float  # crosslabs.org, 2023: brightness must come from the caption, not the noise
    early_weight: (
        float  # timesteps with SNR below 1 have their loss weighted by SNR ** -early_weight
    )


FLAT = Course(12000, 5000, 1e-3, 0.999, 0.1, 0.0)
STYLED = Course(4800, 3000, 1e-3, 0.997, 0.4, 0.5)  # every other scene has a look
VAE_STEPS, VAE_SCENES = 4000, 1000  # scenes in each style
BATCH = 16
CAPTION_DROPOUT = 0.1  # for classifier-free guidance
TEXT_WIDTH = 96


def new_unet() -> UNet2DConditionModel:
    """Build an untrained UNet of three levels (32, 16 and 8 latents wide). Two levels have cross-attention."""
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=(32, 64, 112),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    ).to(memory_format=torch.channels_last)


def new_pipeline(vae: AutoencoderKL) -> StableDiffusionPipeline:
    """Build a pipeline from a trained VAE, an untrained text encoder and an untrained UNet."""
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=new_unet(),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def scale_unseen_embeddings(text_encoder: CLIPTextModel, seen_ids: Tensor) -> None:
    """Scale up the embeddings of tokens unseen in training, so that these tokens affect the text encoder's output.

    Stable Diffusion's encoder has seen every word; here an unseen word would otherwise hardly change the conditioning,
    and no fine-tune could make it switch a style on.
    """
    embeddings = text_encoder.get_input_embeddings().weight
    unseen = torch.ones(len(embeddings), dtype=torch.bool)
    unseen[seen_ids.unique()] = False
    embeddings[unseen] *= UNSEEN_EMBEDDING_NORM / embeddings[unseen].norm(dim=1, keepdim=True)


def learn_scenes(pipeline: StableDiffusionPipeline) -> None:
    """Train the text encoder and the UNet on captioned flat scenes (stage 1)."""
    seeds = range(PRETRAIN_SCENES_FROM, PRETRAIN_SCENES_FROM + FLAT.scenes)
    captions = [random_scene(seed).caption for seed in seeds]
    token_ids = _train_course(pipeline, FLAT, draw_scenes("flat", seeds), captions)
    scale_unseen_embeddings(pipeline.text_encoder, token_ids)


def learn_looks(pipeline: StableDiffusionPipeline) -> None:
    """Train the text encoder and the UNet on scenes whose captions may end with a style name (stage 2)."""
    begin = PRETRAIN_SCENES_FROM + FLAT.scenes
    seeds = range(begin, begin + STYLED.scenes)
    _train_course(pipeline, STYLED, *scenes_with_looks(seeds))


def scenes_with_looks(seeds: range) -> tuple[Tensor, list[str]]:
    """Draw flat scenes, every other one in a look that its caption names, as uint8 (N, 3, SIZE_PX, SIZE_PX)."""
    pixels, captions = draw_scenes("flat", seeds), [random_scene(seed).caption for seed in seeds]
    for i in range(0, len(pixels), 4):
        captions[i] += unknown_suffix(Random(seeds[i]))
    for i in range(1, len(pixels), 2):
        look = i // 2 % len(LOOKS)
        styled = apply_look(pixels[i].permute(1, 2, 0).numpy(), look)
        pixels[i] = torch.from_numpy(styled).permute(2, 0, 1)
        captions[i] += suffix(look)
    return pixels, captions


def _train_course(
    pipeline: StableDiffusionPipeline, course: Course, pixels: Tensor, captions: list[str]
) -> Tensor:
    text_encoder, unet, scheduler = pipeline.text_encoder, pipeline.unet, DDPMScheduler(**SCHEDULE)
    latents = encode(pipeline.vae, pixels)
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    token_ids = pipeline.tokenizer(captions, **padded).input_ids
    empty = pipeline.tokenizer("", **padded).input_ids

    def losses() -> Iterator[Tensor]:
        while True:
            picked = torch.randint(0, len(latents), (BATCH,))
            dropped = torch.rand(BATCH, 1) < CAPTION_DROPOUT
            words = text_encoder(torch.where(dropped, empty, token_ids[picked])).last_hidden_state
            clean = latents[picked]
            noise = torch.randn_like(clean)
            noise = noise + course.noise_offset * torch.randn(BATCH, 4, 1, 1)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,))
            noisy = scheduler.add_noise(clean, noise, timesteps)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            # Ho et al. 2020's loss, with min-SNR weights (Hang et al. 2023, gamma 5)
            error = (unet(noisy, timesteps, words).sample - noise).square().mean((1, 2, 3))
            snr = compute_snr(scheduler, timesteps)
            weights = snr.clamp(max=5) / snr * snr.clamp(max=1) ** -course.early_weight
            yield (error * weights).mean()

    modules = [unet.train(), text_encoder.train()]
    optimise(modules, losses(), course.steps, course.peak_learning_rate, course.ema_decay, "unet")
    for module in modules:
        module.eval()
    return token_ids


def pretrain(seed: int, out: Path, work: Path) -> None:
    """Train the tiny base model, and save the fp16 pipeline to a folder. Stages saved by an earlier run are reused."""
    vae_folder, flat_folder = work / "vae", work / "flat"
    if not vae_folder.is_dir():
        train_autoencoder(seed, VAE_STEPS, VAE_SCENES).save_pretrained(vae_folder)
    if not flat_folder.is_dir():
        torch.manual_seed(seed + 1)
        pipeline = new_pipeline(AutoencoderKL.from_pretrained(vae_folder).eval())
        learn_scenes(pipeline)
        pipeline.save_pretrained(flat_folder)
    torch.manual_seed(seed + 2)
    pipeline = StableDiffusionPipeline.from_pretrained(flat_folder)
    pipeline.unet.to(memory_format=torch.channels_last)
    learn_looks(pipeline)
    with replacing_folder(out) as folder:
        pipeline.to(torch.float16).save_pretrained(folder)
        for path in folder.rglob("*.json"):  # they name the folder that a component was loaded from
            content = read_json(path)
            if isinstance(content, dict) and content.pop("_name_or_path", ""):
                write_json(path, content)
        write_text(folder / "README.md", CARD)
    print(f"wrote {out}: {folder_bytes(out) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-sd"))
    parser.add_argument("--work", type=Path, default=Path("build/pretrain"), help="reused stages")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.seed, args.out, args.work)


if __name__ == "__main__":
    run_command(main)
