"""Distil a speed LoRA for the tiny base model: `python -m helpers.demo.distill [--out assets/tiny-sd-lcm]`.

Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378, algorithm 1) into a LoRA (arXiv:2311.05556), in the
way of diffusers' examples/consistency_distillation/train_lcm_distill_lora_sd_wds.py: from any timestep the student
predicts the end of the path that the teacher takes with guidance, so that a picture needs few steps and no guidance.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor

from helpers.core.files import folder_bytes, replacing_folder, write_text
from helpers.core.process import run_command
from helpers.demo.autoencoder import encode
from helpers.demo.optimise import optimise
from helpers.demo.pretrain import FLAT, SCHEDULE, STYLED, scenes_with_looks
from helpers.demo.scenes import PRETRAIN_SCENES_FROM
from helpers.models.families.sd1 import LORA_TARGETS
from helpers.models.lora import LORA_FILE, Lora, extract_lora, write_lora

RANK = 8
STEPS, SCENES, BATCH = 400, 400, 8
PEAK_LEARNING_RATE, EMA_DECAY = 2e-3, 0.99
POINTS = 25  # of the teacher's path: the timesteps 39, 79, ..., 999
GUIDANCE = (2.0, 4.0)  # w of Luo et al.; w = 3 is a guidance_scale of 4
TIMESTEP_SCALING = 10.0  # of the boundary conditions, as in LCMScheduler
SIGMA_DATA = 0.5
HUBER = 1e-3
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# tiny-sd-lcm

A speed LoRA for tiny-sd and models tuned from it: with LCMScheduler or TCDScheduler it draws in four steps, without
guidance. `helpers/demo/distill.py` makes it again from its seed.
"""


def distil(base: Path, seed: int, steps: int = STEPS, scenes: int = SCENES) -> Lora:
    """Return the LoRA by which the model in `base` draws in few steps."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    unet = pipeline.unet.requires_grad_(False).to(memory_format=torch.channels_last)
    targets = [*LORA_TARGETS["attention_ff_conv"], "proj_in", "proj_out", "conv_shortcut"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    losses = _losses(pipeline, scenes)
    optimise([unet.train()], losses, steps, PEAK_LEARNING_RATE, EMA_DECAY, "speed LoRA")
    return extract_lora({"unet": unet})


def _losses(pipeline: StableDiffusionPipeline, scenes: int) -> Iterator[Tensor]:
    unet, path = pipeline.unet, DDPMScheduler(**SCHEDULE)
    latents, texts, empty = _encode_scenes(pipeline, scenes)
    signal = path.alphas_cumprod.sqrt()
    noise_level = (1 - path.alphas_cumprod).sqrt()
    stride = path.config.num_train_timesteps // POINTS

    def at(values: Tensor, timesteps: Tensor) -> Tensor:
        return values[timesteps].view(-1, 1, 1, 1)

    def clean(noisy: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return (noisy - at(noise_level, timesteps) * noise) / at(signal, timesteps)

    def consistency(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict the path's end (Luo et al. 2023, eq. 9); at timestep 0 this is the input."""
        noise = unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, text).sample
        skip, out = boundary_scalings(timesteps)
        return skip * noisy + out * clean(noisy, noise, timesteps)

    @torch.no_grad()
    def step_back(noisy: Tensor, start: Tensor, end: Tensor, text: Tensor) -> Tensor:
        """Take one guided DDIM step of the teacher, which is the UNet without the LoRA."""
        unet.disable_adapters()
        both = torch.cat([noisy, noisy]), start.repeat(2), torch.cat([text, empty.expand_as(text)])
        with_text, without = unet(*both).sample.chunk(2)
        unet.enable_adapters()
        weight = torch.empty(len(noisy), 1, 1, 1).uniform_(*GUIDANCE)
        noise = with_text + weight * (with_text - without)
        return at(signal, end) * clean(noisy, noise, start) + at(noise_level, end) * noise

    while True:
        picked = torch.randint(0, len(latents), (BATCH,))
        start = stride * torch.randint(1, POINTS + 1, (BATCH,)) - 1
        end = (start - stride).clamp(min=0)
        text = texts[picked]
        noisy = path.add_noise(latents[picked], torch.randn(BATCH, *latents.shape[1:]), start)
        with torch.no_grad():
            target = consistency(step_back(noisy, start, end, text), end, text)
        error = consistency(noisy, start, text) - target
        yield ((error**2 + HUBER**2).sqrt() - HUBER).mean()


def boundary_scalings(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out (B, 1, 1, 1) of timesteps (B,), as LCMScheduler has them; at 0 they are 1 and 0."""
    scaled = (timesteps * TIMESTEP_SCALING).view(-1, 1, 1, 1)
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


@torch.no_grad()
def _encode_scenes(pipeline: StableDiffusionPipeline, count: int) -> tuple[Tensor, Tensor, Tensor]:
    begin = PRETRAIN_SCENES_FROM + FLAT.scenes
    pixels, captions = scenes_with_looks(range(begin, begin + min(count, STYLED.scenes)))
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = pipeline.tokenizer([*captions, ""], **padded).input_ids
    texts = torch.cat([pipeline.text_encoder(part).last_hidden_state for part in ids.split(256)])
    return encode(pipeline.vae, pixels), texts[:-1], texts[-1:]


def write_speed_lora(lora: Lora, out: Path) -> None:
    """Write a speed LoRA in fp16 with its card, in the form in which the Hub has them."""
    halves = {name: tensor.half() for name, tensor in lora.tensors.items()}
    with replacing_folder(out) as folder:
        write_lora(folder / LORA_FILE, Lora(halves, lora.alpha, lora.settings), {})
        write_text(folder / "README.md", CARD)
    print(f"wrote {out}: {folder_bytes(out) / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("assets/tiny-sd"))
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-sd-lcm"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    write_speed_lora(distil(args.base, args.seed, args.steps), args.out)


if __name__ == "__main__":
    run_command(main)
