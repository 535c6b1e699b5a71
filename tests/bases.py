"""Random base models in the shapes that people have: SD 1 and SD 2, a first block with and without attention."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
