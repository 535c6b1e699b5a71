"""Load a pipeline safely, and set up its sampler."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import safe_open
from torch import nn

from helpers.models.families import family_of, read_settings, weights_file
from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code


def _hide_bars() -> None:
    """Hide progress bars of a moment, of loading and writing. The Hub's, of downloads, stay as they are."""
    shows_downloads = not are_progress_bars_disabled()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # the Hub's as well
    if shows_downloads:
        enable_progress_bars()


_hide_bars()
Model = TypeVar("Model", bound=nn.Module)
# of an image that a VAE decodes whole, and of a tile of a larger one
MAX_WHOLE_PX, TILE_PX = 768, 512


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


def load_model(
    kind: type[Model], folder: Path, part: str, dtype: torch.dtype, device: torch.device
) -> Model:
    """Load a component of a base model onto the CPU, and check the component's weights on `device`.

    Raises ValueError if a weight is NaN, inf or missing; loaders would initialize a missing one at random.
    """
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "subfolder": part}
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (RuntimeError, ValueError) as error:
        what = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(f"{part}/ does not have the weights of its config.json, {what}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(
            f"{part}/ lacks {len(missing)} of the weights that its config.json needs, such as {missing[0]}"
        )
    for name, tensor in model.state_dict().items():
        if not tensor.to(device).isfinite().all():
            raise ValueError(f"{part}/ has NaN or inf in {name}")
    return model


def load_mapped(kind: type[nn.Module], folder: Path, part: str) -> nn.Module:
    """Load a component of a pipeline's folder in its files' own dtype: they are mapped and take no main memory."""
    path = folder / part / weights_file(part)  # or shards; beside it a variant may lie
    dtype = files_dtype(path if path.is_file() else min(path.parent.glob("[!.]*.safetensors")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype for torch_dtype
        return kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype, use_safetensors=True)


def files_dtype(path: Path) -> torch.dtype:
    """Return the dtype of the first tensor in a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def decode_in_tiles(vae: AutoencoderKL, side_px: int) -> None:
    """Make a VAE decode images of sides over MAX_WHOLE_PX in tiles: 0.8 GB in place of 3.2 at 1024 px in float32."""
    if side_px <= MAX_WHOLE_PX:
        vae.disable_tiling()
        return
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // factor
    vae.enable_tiling()


def clamp_steps(asked: int, scheduler: Any) -> int:
    """Limit sampling steps to the maximum that DPM-Solver++ supports. One step more gives IndexError or NaN."""
    return min(asked, scheduler.config.num_train_timesteps - 2)


def sample_fast(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Set a pipeline's sampler to DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), which needs few steps."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
