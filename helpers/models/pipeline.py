"""A Stable Diffusion pipeline, loaded with care, and how it samples."""

import warnings
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code


def load_pipeline(model: str, dtype: torch.dtype, **parts: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline from whatever untrusted.model_folder takes, `parts` in place of its own; quietly.

    Raises RunError if it is not there, or not of safetensors and JSON alone.
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
    """The sampling steps asked for, or as many as DPM-Solver++ can make of a noise schedule, where that is fewer.

    With one more it leaves the schedule's end: IndexError, or NaN.
    """
    return min(asked, scheduler.config.num_train_timesteps - 2)


def sample_fast(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Have a pipeline sample by DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), which needs few steps, quietly."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
