"""The verdict on trainings of a model small enough to be run forty times: few images, and many."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from helpers.host.device import Device
from helpers.models.objective import Ddpm
from helpers.train.data import LatentDataset
from helpers.train.loss import diffusion_loss
from helpers.train.validation_loss import ValidationLoss
from helpers.train.verdict import judge

CPU = Device(torch.device("cpu"), "no", "sdpa", ())
EVERY, MEASURES, BATCH = 100, 10, 16


class Denoiser(nn.Module):
    """A perceptron where a UNet stands: latents (B, 4, 4, 4) and timesteps in, noise out."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64)
        )

    def forward(self, latents, timesteps, conditioning):
        time = timesteps[:, None] / 1000
        return self.layers(torch.cat([latents.flatten(1), time], dim=1)).view_as(latents)


def scenes(count, source):
    """Blobs of any colour at any place: what many examples teach and eight do not."""
    across = torch.arange(4.0)
    place = torch.rand(count, 2, generator=source) * 3
    colour = torch.randn(count, 4, 1, 1, generator=source)
    far = (across[None, :, None] - place[:, :1, None]) ** 2
    far = far + (across[None, None, :] - place[:, 1:, None]) ** 2
    return 2 * colour * torch.exp(-far / 2)[:, None]


def curves(count, seed, every=EVERY, held_out=85):
    """Losses as the loop measures them: held-out (a tenth of 850 images) and probe; on a thousand, the truth."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    model, objective = Denoiser(), Ddpm(DDPMScheduler(beta_schedule="scaled_linear"))
    images, few, many = (scenes(n, source) for n in (count, held_out, 1024))
    measured = [(few, 256), (images[:1024], 128), (many, 4096)]
    measures = [
        ValidationLoss(LatentDataset(some, {}), objective, seed, pairs) for some, pairs in measured
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = [[(0, measure(model, CPU))] for measure in measures]
    for step in range(1, MEASURES * every + 1):
        picked = torch.randint(0, count, (BATCH,), generator=source)
        noise = torch.randn(BATCH, 4, 4, 4, generator=source)
        times = torch.randint(0, 1000, (BATCH,), generator=source)
        losses = diffusion_loss(model, objective, images[picked], noise, times)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            for curve, measure in zip(seen, measures, strict=True):
                curve.append((step, measure(model, CPU)))
    return seen


def assert_judged_right(seed, every=EVERY, held_out=85):
    """At each length of the curves: an overfit is called where it is, and is not where there is none.

    It is where the validation loss was lowest, and the model is that step's. With 85 images that is within two
    measurements of where a thousand's was; 20 may differ.
    """
    few, probe, truth = curves(8, seed, every, held_out)
    verdict = judge(few, probe)
    minimum = min(truth, key=lambda point: point[1])[0]
    assert verdict.words.startswith("overfitting since step "), (seed, verdict)
    called = int(verdict.words.split()[-1])
    assert called == verdict.best_step, (seed, verdict)
    assert held_out < 85 or abs(called - minimum) <= 2 * every, (seed, verdict, minimum)
    clean, probe, _ = curves(20_000, seed, every, held_out)
    for length in range(1, len(clean) + 1):
        words = judge(clean[:length], probe).words
        assert not words.startswith("overfitting"), (seed, length, words)


@pytest.mark.parametrize("seed", [0, 15])
def test_few_images_overfit_and_many_do_not(seed):
    assert_judged_right(seed)


@pytest.mark.soak
@pytest.mark.parametrize(("every", "held_out"), [(100, 85), (200, 20)])
@pytest.mark.parametrize("seed", range(40))
def test_forty_times_of_forty(seed, every, held_out):
    assert_judged_right(seed, every, held_out)


def test_a_rise_that_training_images_share_is_no_overfitting():
    curve = [(100 * i, loss) for i, loss in enumerate([1.0, 0.3, 0.4, 0.5, 0.6])]
    memorised = [(100 * i, loss) for i, loss in enumerate([1.0, 0.3, 0.25, 0.2, 0.15])]
    assert judge(curve, memorised).words == "overfitting since step 100"
    shared = judge(curve, curve)
    assert shared.rose and shared.words.startswith(
        "converged: the loss rose on training images as well"
    )


def test_a_loss_that_only_rose_is_told_as_that():
    curve = [(100 * i, loss) for i, loss in enumerate([0.3, 0.4, 0.5, 0.6])]
    words = judge(curve).words
    assert words == "overfitting from the start: no step is better than the base model"
