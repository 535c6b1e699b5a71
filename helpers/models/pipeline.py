"""Load a pipeline safely, and set up its sampler."""

import warnings
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

from helpers.models.families import family_of, read_settings
from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code


def load_pipeline(
    model: str, dtype: torch.dtype, *, safety_checker: bool = True, **parts: Any
) -> DiffusionPipeline:
    """Load a pipeline of a known family from a path or hub id, with `parts` in place of its own components.

    Raises RunError for a model that is missing, pickled, of no known family, or holds code.
    """
    advice = "give one in diffusers layout with safetensors weights"
    with open_model("the pipeline", model, advice) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype for torch_dtype
        refuse_code(folder)
        family = family_of(read_settings(folder))
        options = family.PIPELINE_OPTIONS | ({} if safety_checker else family.NO_SAFETY_CHECKER)
        pipeline = family.PIPELINE.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **options | parts
        )
        for tokenizer, encoder in zip(family.TOKENIZERS, family.TEXT_ENCODERS, strict=True):
            fit_tokenizer(getattr(pipeline, tokenizer), getattr(pipeline, encoder))
        return pipeline


def clamp_steps(asked: int, scheduler: Any) -> int:
    """Limit sampling steps to the maximum that DPM-Solver++ supports. One step more gives IndexError or NaN."""
    return min(asked, scheduler.config.num_train_timesteps - 2)


def sample_fast(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Set a pipeline's sampler to DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), which needs few steps."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
