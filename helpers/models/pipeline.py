"""Load a Stable Diffusion pipeline safely, and set up its sampler."""

import warnings
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code


def load_pipeline(model: str, dtype: torch.dtype, **parts: Any) -> StableDiffusionPipeline:
    """Load a Stable Diffusion pipeline from a path or hub id, with `parts` in place of its own components.

    Raises RunError for a model that is missing, pickled, or holds code.
    """
    advice = "give one in diffusers layout with safetensors weights"
    with open_model("the pipeline", model, advice) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype for torch_dtype
        refuse_code(folder)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **parts
        )
        fit_tokenizer(pipeline.tokenizer, pipeline.text_encoder)
        return pipeline


def clamp_steps(asked: int, scheduler: Any) -> int:
    """Limit sampling steps to the maximum that DPM-Solver++ supports. One step more gives IndexError or NaN."""
    return min(asked, scheduler.config.num_train_timesteps - 2)


def sample_fast(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Set a pipeline's sampler to DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), which needs few steps."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
