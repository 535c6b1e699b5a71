"""The samplers of the prompt box, made so that each works at any number of steps."""

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
    "PNDM": ("PNDMScheduler", {}),
}


def make_scheduler(name: str, config: dict[str, Any], steps: int) -> SchedulerMixin:
    """A scheduler by its name in SCHEDULERS, on the noise schedule of `config`.

    Beyond half of the schedule's timesteps, "leading" spacing leaves the noisiest ones out, and at all of them it
    asks for one too many: "trailing" takes its place (Lin et al. 2023, arXiv:2305.08891, table 2).
    """
    kind, options = SCHEDULERS[name]
    if 2 * steps > config.get("num_train_timesteps", 1000):
        options = options | {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, kind).from_config(config, **options)
    return _begin_at_first(scheduler) if hasattr(scheduler, "set_begin_index") else scheduler


def _begin_at_first(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Have a scheduler begin at its first timestep.

    It looks for its place by the timestep otherwise, and Karras's sigmas round to the same timestep more than once:
    it takes the second, and runs past its end.
    """
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def set_and_begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_and_begin
    return scheduler
