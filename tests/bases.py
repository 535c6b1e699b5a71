"""Random base models in the shapes that people have: SD 1, SD 2 and SDXL, a first block with and without attention."""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from helpers.demo.pretrain import SCHEDULE
from helpers.demo.tokenizer import make_tokenizer

DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}


def make_base(  # noqa: PLR0913
    folder: Path,
    *,
    is_v2: bool = False,
    attends: tuple[bool, ...] = (True, False),
    prediction_type: str = "epsilon",
    zero_snr: bool = False,
    widths: tuple[int, ...] = (16, 32),
    layers: int = 1,
    heads: int = 2,
    context: int = 16,
    text_layers: int = 2,
    norm_groups: int = 4,
    vae_widths: tuple[int, ...] = (8, 8),
    tokenizer: CLIPTokenizer | None = None,
    seed: int = 0,
) -> Path:
    """A base in diffusers layout; SD 2 has linear projections, heads by level and OpenCLIP's activation."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=context,
        intermediate_size=4 * context,
        projection_dim=context,
        num_hidden_layers=text_layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu" if is_v2 else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=[DOWN[yes] for yes in attends],
        up_block_types=[UP[yes] for yes in attends[::-1]],
        block_out_channels=widths,
        layers_per_block=layers,
        cross_attention_dim=context,
        attention_head_dim=[width * heads // widths[0] for width in widths] if is_v2 else heads,
        use_linear_projection=is_v2,
        norm_num_groups=norm_groups,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(vae_widths),
        up_block_types=["UpDecoderBlock2D"] * len(vae_widths),
        block_out_channels=vae_widths,
        norm_num_groups=norm_groups,
        layers_per_block=layers,
        sample_size=32,
    )
    schedule = SCHEDULE | {"prediction_type": prediction_type}
    scheduler = (
        DDIMScheduler(
            **schedule,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
        if zero_snr
        else PNDMScheduler(**schedule, skip_prk_steps=True)
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class SdxlShape:
    """The sizes of an SDXL: its UNet's by level, its text encoders', its VAE's. As it stands: 1.6 million parameters.

    The encoders' widths differ, and diffusers tells the second by more than 9 layers.
    """

    widths: tuple[int, ...] = (16, 32, 48)
    depths: tuple[int, ...] = (1, 1, 2)  # of transformers; the first level has none
    heads: tuple[int, ...] = (2, 4, 6)
    size_width: int = 8  # of the embedding of each of the six sizes
    text_widths: tuple[int, int] = (24, 40)
    text_layers: tuple[int, int] = (3, 10)
    text_heads: int = 4
    vae_widths: tuple[int, ...] = (8, 16, 16)
    norm_groups: int = 4


def make_sdxl(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    zeros: bool = True,
    shape: SdxlShape = SdxlShape(),  # noqa: B008, it is frozen
    tokenizer: CLIPTokenizer | None = None,
) -> Path:
    """An SDXL in diffusers layout, with two text encoders of different widths and no attention at first."""
    torch.manual_seed(0)
    tokenizers = [copy.deepcopy(tokenizer) if tokenizer else make_tokenizer() for _ in range(2)]
    tokenizers[1].pad_token = "!"  # as SDXL's second

    def text(number: int) -> CLIPTextConfig:
        tokenizer, width = tokenizers[number], shape.text_widths[number]
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=shape.text_layers[number],
            num_attention_heads=shape.text_heads,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=("quick_gelu", "gelu")[number],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=shape.widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=shape.heads,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.size_width,
        transformer_layers_per_block=shape.depths,
        projection_class_embeddings_input_dim=6 * shape.size_width + shape.text_widths[1],
        cross_attention_dim=sum(shape.text_widths),
        norm_num_groups=shape.norm_groups,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(shape.vae_widths),
        up_block_types=["UpDecoderBlock2D"] * len(shape.vae_widths),
        block_out_channels=shape.vae_widths,
        layers_per_block=2,
        norm_num_groups=shape.norm_groups,
        scaling_factor=0.13025,
        force_upcast=True,
        sample_size=64,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        timestep_spacing="trailing" if prediction_type == "v_prediction" else "leading",
        steps_offset=1,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text(0)),
        text_encoder_2=CLIPTextModelWithProjection(text(1)),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


FULL_SDXL = {  # the shapes of SDXL's base, 3.5 billion parameters
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
        "force_upcast": True,
        "sample_size": 1024,
    },
    "text_encoder": {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    "text_encoder_2": {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
}


def full_size_sdxl(folder: Path, tiny: Path) -> Path:
    """SDXL's shapes, of which no weights are needed to count; `tiny` is a `make_sdxl` to take the rest from."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, config in FULL_SDXL.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder
