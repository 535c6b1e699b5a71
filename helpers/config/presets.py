"""The presets of 04_train: named sets of values for the training settings, with reasons."""

SEED_PROMPTS = (
    "blue and yellow cats shopping at plant store",
    "a turtle character dressed as teacher standing next to a chalkboard with equations on it",
    "blue and yellow cats riding bikes together through tropical forest path",
    "raccoon character wearing gold chain driving red sports car down highway",
)
DEMO_PROMPTS = (  # (colour, animal) pairs that no training image of the demo shows
    "a blue cat next to a red car on a green hill",
    "a purple rabbit next to a green tree in the snow",
    "a red bear next to a yellow umbrella on a sandy beach",
    "a pink elephant next to a blue balloon at sunset",
    "a yellow frog next to a purple mushroom at night",
    "an orange turtle next to a blue house on a green hill",
)
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_COLUMNS = (
    "base_model method max_steps learning_rate train_batch_size gradient_accumulation_steps resolution_px lr_scheduler "
    "gradient_checkpointing save_every_steps prompts"
).split()
# fmt: off
_ROWS = {
    #           base              method  steps  rate  batch accum px   schedule    ckpt   save  prompts
    "demo":    ("assets/tiny-sd", "full",   300, 1e-3,     8,  1, 128, "cosine",   False,  100, DEMO_PROMPTS),
    "t4":      (SD15,             "lora",  2000, 1e-4,     2,  2, 512, "cosine",   True,   250, ()),
    "t4-full": (SD15,             "full",  3000, 5e-6,     1,  4, 512, "cosine",   True,   500, ()),
    "t4-xl":   (SDXL,             "lora",  2000, 1e-4,     1,  4, 1024, "cosine",  True,   250, ()),
    "l4":      (SD15,             "lora",  2000, 1e-4,     4,  1, 512, "cosine",   False,  250, ()),
    "l4-xl":   (SDXL,             "lora",  2000, 1e-4,     4,  1, 1024, "cosine",  True,   250, ()),
    "a100":    (SD15,             "full",  4000, 5e-6,     8,  1, 512, "cosine",   False,  500, ()),
    "a100-xl": (SDXL,             "lora",  2000, 1e-4,     2,  2, 1024, "cosine",  False,  250, ()),
    "h100":    (SD15,             "full",  2000, 1e-5,    32,  1, 512, "cosine",   False,  250, ()),
    "seed":    (SD15,             "full",  5000, 1e-5,     1,  4, 512, "constant", True,   500, SEED_PROMPTS),
}
# fmt: on
# Reasons: most trainers settled on learning rates of 1e-4 for LoRA and 5e-6 for full; 1e-5, the seed's, is at the high
# end. The seed's effective batch is 4; 8 halves the gradient's noise where memory allows it. 2,000 steps of 4 are seven
# epochs of 850 images, with 15% of them held out and half as many prior images mixed in. Gradient checkpointing costs a
# third of the speed and saves memory that a T4 does not have. 32 images have twice the rate of 8: the square root.
PRESETS = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _ROWS.items()}
PRESETS["demo"] |= {"noise_offset": 0.3, "validation_pairs": 64}
PRESETS["seed"] |= {  # the original recipe, without later additions
    "snr_gamma": 0.0,
    "caption_dropout": 0.0,
    "prior_share": 0.0,
    "mixed_precision": "fp16",
}
PRESETS["t4-xl"] |= {  # 8 GB on the card, and the whole model in 12.7 GB of main memory
    "mixed_precision": "fp16",
    "rank": 8,
    "lora_targets": "attention",
}
PRESETS["l4-xl"] |= {"lora_targets": "attention_ff"}
PRESETS["a100-xl"] |= {"lora_targets": "attention_ff"}
PRESETS["t4"] |= {"mixed_precision": "fp16"}  # a T4 only emulates bf16
PRESETS["t4-full"] |= {  # 3.4 GB each of weights and gradients; 1.7 of optimizer state, not 6.9
    "mixed_precision": "fp16",
    "optimizer": "adamw8bit",
    "keep_checkpoints": 1,  # of 5 GB; free Google Drive has 15
}
for _name in ("a100", "h100"):
    PRESETS[_name] |= {
        "use_ema": True,  # more stable samples; needs memory
        "keep_checkpoints": 1,  # of 14 GB
    }
for _name in PRESETS.keys() - {"demo"}:
    PRESETS[_name] |= {
        "lr_warmup_steps": 0 if _name == "seed" else 100,
        "validate_every_steps": PRESETS[_name]["save_every_steps"],
        "preview_every_steps": PRESETS[_name]["save_every_steps"],
        "guidance_scale": 7.5,
    }
