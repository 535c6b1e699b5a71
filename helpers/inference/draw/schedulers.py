"""The diffusers schedulers that the prompt box offers, set up to work at any number of steps."""

from functools import wraps
from typing import Any

import diffusers
from diffusers import SchedulerMixin

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
}
SPEED_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # with a speed LoRA alone
    "TCD": ("TCDScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
MAX_SPEED_STEPS = 50  # what both were distilled for
TCD_ETA = 0.3  # as in TCD's paper; the pipelines' own is 0


def make_scheduler(name: str, config: dict[str, Any], steps: int) -> SchedulerMixin:
    """Return the scheduler called `name`, with the noise schedule from a model's scheduler config.

    With more steps than half of the training timesteps, "leading" spacing skips the noisiest timesteps, and with all
    of them it asks for one that does not exist; so "trailing" is used there (Lin et al. 2023, arXiv:2305.08891,
    table 2).
    """
    kind, options = (SCHEDULERS | SPEED_SCHEDULERS)[name]
    if 2 * steps > config.get("num_train_timesteps", 1000):
        options = options | {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, kind).from_config(config, **options)
    return _start_at_index_0(scheduler) if hasattr(scheduler, "set_begin_index") else scheduler


def _start_at_index_0(scheduler: SchedulerMixin) -> SchedulerMixin:
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def set_and_start(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        # else it finds its index by the timestep's value: Karras sigmas can round to one timestep twice,
        # so that it takes the second index, and runs past the end of its sigmas
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_and_start
    return scheduler
