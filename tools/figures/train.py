"""04: noise and its prediction, a LoRA, the effective batch, loss curves, min-SNR weights."""

from functools import partial

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from helpers.demo.optimise import to_model
from helpers.models.families import Components, sd1
from helpers.models.objective import Ddpm
from helpers.train.loss import diffusion_loss
from helpers.train.model import Denoiser
from tools.figures.drawn import BEAR, CAT, FROG, RABBIT, flat
from tools.figures.inference import BASE, pipeline
from tools.figures.sheet import BLUE, GREY, RED, SKY, Sheet

TIMESTEPS = (50, 500, 950)
HIDDEN, RANK = 320, 16  # Stable Diffusion v1's narrowest attention, and TrainConfig.rank
SCENES = (CAT, BEAR, RABBIT, FROG)


@torch.no_grad()
def noise() -> Sheet:
    """One picture's latents, noised at three timesteps, and what the tiny base takes the noise for."""
    parts = pipeline(BASE)
    model = Denoiser.of(Components.of(sd1, parts), with_text=False)
    objective = Ddpm(DDPMScheduler.from_pretrained(BASE, subfolder="scheduler"))
    picture = flat(CAT, 128)
    pixels = to_model(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
    latents = parts.vae.encode(pixels).latent_dist.mean * parts.vae.config.scaling_factor
    words = {"encoder_hidden_states": parts.encode_prompt(CAT.caption, "cpu", 1, False)[0]}
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    sheet = Sheet(880)
    sheet.title("One training step: add noise, guess the noise")
    sheet.picture(picture, 190, 66, 180)
    sheet.write(280, 268, "picture", 24, align="center")
    sheet.arrow((385, 156), (515, 156))
    sheet.write(450, 128, "VAE", 24, GREY, "center")
    sheet.picture(_shown(latents), 530, 66, 180)
    sheet.write(620, 268, "latents", 24, align="center")
    for column, t in enumerate(TIMESTEPS):
        step, x = torch.tensor([t]), 200 + 236 * column
        noisy = objective.add_noise(latents, drawn, step)
        guess = model(noisy, step, words)
        loss = diffusion_loss(model, objective, latents, drawn, step, **words).item()
        sheet.write(x + 105, 322, f"timestep {t}", 24, BLUE, "center", weight="bold")
        sheet.picture(_shown(noisy), x, 344, 210)
        sheet.picture(_shown(guess), x, 606, 210)
        sheet.arrow((x + 105, 558), (x + 105, 602))
        sheet.write(x + 105, 846, f"loss {loss:.3f}", 26, align="center", weight="bold")
    for y, words in ((449, "latents\nand noise"), (580, "UNet"), (711, "its guess\nof the\nnoise")):
        sheet.write(20, y, words, 24, GREY)
    sheet.write(20, 846, "how wrong", 24, GREY)
    return sheet


def _shown(latents: Tensor) -> Image.Image:
    """Three of four channels as red, green and blue, from -3 to 3."""
    levels = ((latents[0, :3].permute(1, 2, 0) / 6 + 0.5).clamp(0, 1) * 255).byte()
    return Image.fromarray(levels.numpy())


def lora() -> Sheet:
    """Drawn to scale."""
    frozen, trained = HIDDEN * HIDDEN, 2 * HIDDEN * RANK
    sheet = Sheet(520)
    sheet.title("A LoRA beside its frozen matrix")
    sheet.cell(40, 90, HIDDEN, HIDDEN, "#c9ced6")
    sheet.write(200, 230, "frozen", 28, align="center", weight="bold")
    sheet.write(200, 272, f"{HIDDEN} × {HIDDEN}", 24, align="center")
    sheet.write(408, 250, "+", 44, align="center")
    sheet.cell(456, 90, RANK, HIDDEN, BLUE)
    sheet.write(504, 250, "×", 36, align="center")
    sheet.cell(540, 242, HIDDEN, RANK, BLUE)
    sheet.write(540, 206, f"{RANK} × {HIDDEN}", 24, BLUE)
    sheet.write(494, 116, f"{HIDDEN} × {RANK}", 24, BLUE)
    sheet.write(540, 304, "trained, rank 16", 28, BLUE, weight="bold")
    sheet.write(200, 448, f"{frozen:,} numbers", 26, align="center")
    sheet.write(200, 486, "stay as they are", 24, GREY, "center")
    sheet.write(660, 448, f"{trained:,} numbers", 26, BLUE, "center")
    sheet.write(660, 486, f"{trained / frozen:.0%} of the matrix", 24, GREY, "center")
    return sheet


def batch() -> Sheet:
    """The preset t4: two passes of two images are one step on four."""
    sheet = Sheet(400)
    sheet.title("Effective batch: 2 images × 2 passes = 4 a step")
    for passed in range(2):
        y = 80 + 120 * passed
        sheet.box(20, y, 240, 100)
        for i in range(2):
            sheet.picture(flat(SCENES[2 * passed + i], 128), 36 + 112 * i, y + 8, 84)
        sheet.arrow((264, y + 50), (340, y + 50))
        sheet.box(344, y + 14, 210, 72, SKY)
        sheet.write(449, y + 50, "gradients", 24, align="center")
        sheet.arrow((558, y + 50), (634, 190))
    sheet.box(640, 140, 240, 100, BLUE)
    sheet.write(760, 190, "one optimizer\nstep", 26, "#ffffff", "center", weight="bold")
    sheet.write(140, 344, "train_batch_size", 24, align="center")
    sheet.write(140, 376, "2: what memory holds", 22, GREY, "center")
    sheet.write(600, 344, "gradient_accumulation_steps", 24, align="center")
    sheet.write(600, 376, "2: added up before a step", 22, GREY, "center")
    return sheet


def curves() -> Sheet:
    """How a training looks that learns, one that has converged, one that overfits: drawn, not measured."""
    steps = np.arange(0, 451, 25)
    fall = partial(_falling, steps)
    late = np.clip(steps - 150, 0, None)
    ways = (
        ("still learning", "train on", fall(0.35, 300) - 0.03, fall(0.35, 300)),
        ("converged", "it has what it can", fall(0.45, 60) - 0.04, fall(0.45, 60)),
        ("overfitting", "learns by heart", fall(0.1, 110), fall(0.45, 60) + (late / 520) ** 1.3),
    )
    sheet = Sheet(410)
    for column, (name, words, training, held_out) in enumerate(ways):
        axes = sheet.chart(50 + 288 * column, 90, 250, 200)
        axes.plot(steps, held_out, color=RED, linewidth=3.5)
        axes.plot(steps, training, color=BLUE, linewidth=3.5, linestyle="--")
        axes.set(xticks=[], yticks=[], ylim=(0, 1.1))
        middle = 175 + 288 * column
        sheet.write(middle, 26, name, 26, align="center", weight="bold")
        sheet.write(middle, 62, words, 23, GREY, "center")
        sheet.write(middle, 310, "steps", 22, GREY, "center")
        if name == "overfitting":
            best = int(np.argmin(held_out))
            axes.plot(steps[best], held_out[best], "o", color=RED, markersize=11)
            axes.annotate(
                "best",
                (steps[best], held_out[best]),
                xytext=(-6, 16),
                size=16,
                textcoords="offset points",
            )
    sheet.write_upwards(24, 190, "loss")
    for x, words, colour, line in (
        (60, "validation loss (held-out images)", RED, "-"),
        (560, "training images", BLUE, "--"),
    ):
        sheet.axes.plot([x, x + 60], [372, 372], color=colour, linewidth=3.5, linestyle=line)
        sheet.write(x + 76, 372, words, 23)
    return sheet


def _falling(steps: np.ndarray, end: float, over: float) -> np.ndarray:
    return end + (1 - end) * np.exp(-steps / over)


def snr() -> Sheet:
    objective = Ddpm(DDPMScheduler.from_pretrained(BASE, subfolder="scheduler"))
    timesteps = torch.arange(objective.num_timesteps)
    weights = objective.loss_weights(timesteps, 5.0).numpy()
    sheet = Sheet(440)
    sheet.title("Min-SNR: how much each timestep's loss counts")
    axes = sheet.chart(100, 70, 755, 270)
    axes.plot(timesteps, weights, color=BLUE, linewidth=3.5)
    axes.plot([0, 150], [1, 1], color=GREY, linewidth=3.5, linestyle=":")
    axes.set(xlim=(0, 1000), ylim=(0, 1.3), xticks=[0, 250, 500, 750, 1000], yticks=[0, 0.5, 1])
    sheet.write_upwards(34, 205, "weight")
    sheet.write(100, 412, "0: hardly any noise", 23, GREY)
    sheet.write(880, 412, "1000: noise alone", 23, GREY, "right")
    sheet.write(220, 230, "snr_gamma 5", 24, BLUE)
    sheet.write(112, 108, "snr_gamma 0: all count alike", 24, GREY)
    return sheet
