"""Metadata for exported files: modelspec fields, and the `ss_` fields of kohya's sd-scripts for LoRA files.

Loaders and model sites read them. They hold no path, no caption and not the suffix.
https://github.com/Stability-AI/ModelSpec
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from helpers.core.run import Run
from helpers.inference.trained import read_trained
from helpers.models.families import Family, Settings, family_of, read_settings
from helpers.models.licence import licence_of, public_name
from helpers.models.lora import UP, Lora

IN_BOTH = (  # settings of 04 that sd-scripts names alike
    "gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps mixed_precision optimizer seed"
).split()


@dataclass(frozen=True)
class Variant:
    """What kind of model lies in a pipeline's folder: its family and its settings."""

    family: Family
    settings: Settings

    @classmethod
    def read(cls, model: Path) -> "Variant":
        """Read the settings in a pipeline's folder."""
        settings = read_settings(model)
        return cls(family_of(settings), settings)

    @property
    def predicts_velocity(self) -> bool:
        """Whether the model predicts v (Salimans and Ho 2022, arXiv:2202.00512) and not noise."""
        return self.settings["scheduler"].get("prediction_type") == "v_prediction"

    @property
    def has_zero_snr(self) -> bool:
        """Whether the noise schedule has a zero terminal SNR (Lin et al. 2023, arXiv:2305.08891)."""
        return bool(self.settings["scheduler"].get("rescale_betas_zero_snr"))

    @property
    def names(self) -> tuple[str, str]:
        """The names of modelspec and of sd-scripts, such as `stable-diffusion-v1` and `sd_v1`."""
        return self.family.architecture(self.settings["scheduler"])


def model_metadata(run: Run, variant: Variant, kind: str = "") -> dict[str, str]:
    """Return the modelspec fields of a run's model. With kind="/lora", the fields are those of the run's LoRA."""
    trained = read_trained(run).settings
    side = trained["resolution_px"]
    fields = {
        "sai_model_spec": "1.0.0",
        "architecture": variant.names[0] + kind,
        "implementation": "https://github.com/Stability-AI/generative-models",  # as in sd-scripts
        "title": run.name,
        "date": _end_of_training(run).isoformat(timespec="seconds"),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if variant.predicts_velocity else "epsilon",
        "license": licence_of(trained["base_model"], variant.family).name,
    }
    return {f"modelspec.{name}": value for name, value in fields.items()}


def lora_metadata(run: Run, variant: Variant, lora: Lora) -> dict[str, str]:
    """Return the metadata of a run's LoRA file: modelspec fields, and the `ss_` fields of sd-scripts."""
    training = read_trained(run)
    trained = training.settings
    first = next(iter(lora.alpha))
    rank, alpha = lora.tensors[first + UP].shape[1], lora.alpha[first]
    convolutions = {"conv_dim": rank, "conv_alpha": alpha}
    has_convolutions = any(tensor.ndim == 4 for tensor in lora.tensors.values())
    fields = {name: trained[name] for name in IN_BOTH} | {
        "output_name": run.name,
        "sd_model_name": public_name(trained["base_model"]),
        "base_model_version": variant.names[1],
        "v2": variant.names[1].startswith("sd_v2"),
        "network_module": "networks.lora",
        "network_dim": rank,
        "network_alpha": alpha,
        "network_args": json.dumps(convolutions if has_convolutions else {}),
        "steps": training.exported_step,
        "max_train_steps": trained["max_steps"],
        "unet_lr": trained["learning_rate"],
        "text_encoder_lr": trained["text_encoder_lr"] if trained["train_text_encoder"] else None,
        "resolution": f"({trained['resolution_px']}, {trained['resolution_px']})",
        "total_batch_size": trained["train_batch_size"] * trained["gradient_accumulation_steps"],
        "num_train_images": len(training.images) or None,
        "min_snr_gamma": trained["snr_gamma"] or None,
        "noise_offset": trained["noise_offset"] or None,
        "caption_dropout_rate": trained["caption_dropout"],
        "zero_terminal_snr": variant.has_zero_snr,
        "clip_skip": None,
        "training_finished_at": _end_of_training(run).timestamp(),
    }
    ss_fields = {f"ss_{name}": str(value) for name, value in fields.items()}
    return model_metadata(run, variant, "/lora") | ss_fields


def _end_of_training(run: Run) -> datetime:
    return datetime.fromtimestamp(run.verdict.stat().st_mtime, UTC)


def original_config(variant: Variant) -> str:
    """Return the .yaml config of a v-prediction model, in the format of the original Stable Diffusion code."""
    unet, vae, schedule = (variant.settings[part] for part in ("unet", "vae", "scheduler"))
    params = {
        "parameterization": "v",
        "linear_start": schedule["beta_start"],
        "linear_end": schedule["beta_end"],
        "num_timesteps_cond": 1,
        "timesteps": schedule["num_train_timesteps"],
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": unet["in_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": vae.get("scaling_factor", 0.18215),
        "use_ema": False,
        "unet_config": _unet_config(unet),
        "first_stage_config": _vae_config(vae),
        "cond_stage_config": variant.family.ORIGINAL_TEXT,
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return yaml.safe_dump({"model": {"target": target, "params": params}}, sort_keys=False)


def _unet_config(unet: dict[str, Any]) -> dict[str, Any]:
    widths = unet["block_out_channels"]
    attends = [kind.startswith("CrossAttn") for kind in unet["down_block_types"]]
    heads = unet["attention_head_dim"]  # the number of heads, in spite of diffusers' name
    heads = heads if isinstance(heads, int) else heads[0]
    is_linear = bool(unet.get("use_linear_projection"))
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "use_checkpoint": True,
            "image_size": 32,
            "in_channels": unet["in_channels"],
            "out_channels": unet["out_channels"],
            "model_channels": widths[0],
            "attention_resolutions": [2**i for i, yes in enumerate(attends) if yes][::-1],
            "num_res_blocks": unet["layers_per_block"],
            "channel_mult": [width // widths[0] for width in widths],
            **({"num_head_channels": widths[0] // heads} if is_linear else {"num_heads": heads}),
            "use_spatial_transformer": True,
            "use_linear_in_transformer": is_linear,
            "transformer_depth": 1,
            "context_dim": unet["cross_attention_dim"],
            "legacy": False,
        },
    }


def _vae_config(vae: dict[str, Any]) -> dict[str, Any]:
    widths = vae["block_out_channels"]
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": vae["latent_channels"],
            "ddconfig": {
                "double_z": True,
                "z_channels": vae["latent_channels"],
                "resolution": 256,
                "in_channels": vae["in_channels"],
                "out_ch": vae["out_channels"],
                "ch": widths[0],
                "ch_mult": [width // widths[0] for width in widths],
                "num_res_blocks": vae["layers_per_block"],
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    }
