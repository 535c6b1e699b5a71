"""The verdict on trainings of a model small enough to be run forty times: few images, and many."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from helpers.device import Device
from helpers.train.cache import Examples
from helpers.train.loss import FixedLoss, diffusion_loss
from helpers.train.verdict import judge

CPU = Device(torch.device("cpu"), "no", "sdpa", ())
STEPS, EVERY, BATCH = 1000, 100, 16


class Denoiser(nn.Module):
    """A perceptron where a UNet stands: latents (B, 4, 4, 4) and timesteps in, noise out."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64)
        )

    def forward(self, latents, timesteps, texts):
        time = timesteps[:, None] / 1000
        noise = self.layers(torch.cat([latents.flatten(1), time], dim=1))
        return SimpleNamespace(sample=noise.view_as(latents))


def scenes(count, source):
    """Blobs of any colour at any place: what many examples teach and eight do not."""
    across = torch.arange(4.0)
    place = torch.rand(count, 2, generator=source) * 3
    colour = torch.randn(count, 4, 1, 1, generator=source)
    far = (across[None, :, None] - place[:, :1, None]) ** 2
    far = far + (across[None, None, :] - place[:, 1:, None]) ** 2
    return 2 * colour * torch.exp(-far / 2)[:, None]


def curves(count, seed):
    """Held-out loss on 85 images, a tenth of 850 as a user has them, and on a thousand, which is the truth."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    model, schedule = Denoiser(), DDPMScheduler(beta_schedule="scaled_linear")
    texts = torch.zeros(1024, 1)
    images, few, many = (scenes(n, source) for n in (count, 85, 1024))
    measures = [
        FixedLoss(Examples(held_out, texts[: len(held_out)]), schedule, seed, pairs)
        for held_out, pairs in ((few, 8 * 85), (many, 4096))
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = [[(0, measure(model, CPU))] for measure in measures]
    for step in range(1, STEPS + 1):
        picked = torch.randint(0, count, (BATCH,), generator=source)
        noise = torch.randn(BATCH, 4, 4, 4, generator=source)
        times = torch.randint(0, 1000, (BATCH,), generator=source)
        losses = diffusion_loss(model, schedule, images[picked], texts[:BATCH], noise, times)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            for curve, measure in zip(seen, measures, strict=True):
                curve.append((step, measure(model, CPU)))
    return seen


def assert_judged_right(seed):
    few, truth = curves(8, seed)
    verdict = judge(few)
    minimum = min(truth, key=lambda point: point[1])[0]
    assert verdict.words.startswith("overfitting"), (seed, verdict)
    assert abs(verdict.best_step - minimum) <= EVERY, (seed, verdict.best_step, minimum)
    clean = judge(curves(20_000, seed)[0])
    assert not clean.words.startswith("overfitting"), (seed, clean)


@pytest.mark.parametrize("seed", [0, 1])
def test_few_images_overfit_and_many_do_not(seed):
    assert_judged_right(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_twenty_times_of_twenty(seed):
    assert_judged_right(seed)
