"""The settings of the five notebooks, with one dataclass per notebook. Notebooks create them by `configure`."""

import re
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Any, TypeVar

from helpers.config.choices import CAPTIONERS, SOURCES
from helpers.config.fields import Checked, choice, lines, names_like, number, plain, refuse_secrets
from helpers.config.presets import PRESETS
from helpers.core.errors import RunError

Config = TypeVar("Config")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
GRIDS = ("checkpoints x prompts", "guidance x steps", "strength x prompts")  # 05 compares by them
TRACKERS = ("wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")


@dataclass(frozen=True, kw_only=True)
class ScrapeConfig(Checked):
    """Settings of 01_scrape: where the images come from."""

    run: str = "demo"
    source: str = choice(*SOURCES)
    account: str = ""  # the artist's; source=instagram takes its posts
    posts: str = ""  # of source=instagram: only these; shortcodes or addresses, comma-separated
    # your images with .txt captions beside them; of source=export: Instagram's ZIP
    folder: str = ""
    dataset_id: str = ""  # of source=hub: a hub id, or a folder in imagefolder layout
    since: str = ""  # 2024-01-31, the first day that counts (UTC)
    until: str = ""  # the last day that counts
    max_posts: int = number(0, 0, 1_000_000)  # 0 takes all
    permission: str = choice("private study", "own work", "permission of the artist")
    # of several captions of an image: first, last, longest, shortest, joined, or an ending's or a column's name
    caption_choice: str = "first"
    image_column: str = ""  # of source=hub, if it has several; empty takes the most likely
    demo_posts: int = number(100, 4, 5000)  # of source=demo, beside its flawed ones
    max_image_mpx: int = number(80, 1, 1000)  # larger files are refused before they are decoded
    max_image_mb: int = number(50, 1, 1000)  # of a download, or a file in a ZIP
    max_image_s: float = number(60.0, 0.1, 3600.0)  # of a download
    max_minutes: float = number(90.0, 0.0, 100_000.0)  # of one visit to Instagram; 0 sets no limit
    pauses: bool = True  # instaloader's short random pauses before each request to Instagram
    video_covers: bool = False  # take the cover image of a video
    coauthored: bool = False  # take others' posts in the timeline, for private study only

    def __post_init__(self) -> None:
        super().__post_init__()
        _, needs, advice = SOURCES[self.source]
        if needs and not getattr(self, needs) and not (self.source == "instagram" and self.posts):
            raise RunError(
                f"source is {self.source!r} but {needs} is empty: set {needs} to {advice}"
            )
        _check_day("since", self.since)
        _check_day("until", self.until)
        if self.since and self.until and self.since > self.until:
            raise RunError(f"since {self.since} is after until {self.until}: swap them")
        if self.source == "instagram":
            assert self.username is not None and self.shortcodes is not None  # each raises RunError

    @property
    def username(self) -> str:
        """The account's name without `@` or URL around it, or "" if not given. Raises RunError for an invalid name."""
        match = _ACCOUNT.fullmatch(self.account.strip())
        if self.account.strip() and not match:
            raise RunError(f"account is {self.account!r}: give its name alone, as in some.artist")
        return match[1].lower() if match else ""

    @property
    def shortcodes(self) -> list[str]:
        """The shortcodes in `posts`, in order, without duplicates. Raises RunError for an invalid shortcode or URL."""
        found = {part: _POST.fullmatch(part) for part in re.split(r"[,\s]+", self.posts) if part}
        for part, match in found.items():
            if not match:
                raise RunError(
                    f"posts has {part!r}: give shortcodes, or addresses such as "
                    "https://www.instagram.com/p/C1a2B3c4D5e/"
                )
        return list(dict.fromkeys(match[1] for match in found.values()))

    def covers(self, taken_at: str) -> bool:
        """Return True if a post's day is between `since` and `until` (inclusive), or if its day is unknown."""
        day = taken_at[:10]
        return not day or (self.since or day) <= day <= (self.until or day)


_ADDRESS = r"(?:https?://)?(?:www\.|m\.)?instagram\.com/"
_ACCOUNT = re.compile(rf"(?:{_ADDRESS}|@)?([A-Za-z0-9._]{{1,30}})/?(?:\?.*)?", re.ASCII)
_POST = re.compile(
    rf"(?:{_ADDRESS}(?:[A-Za-z0-9._]+/)?(?:p|reels?|tv)/)?([A-Za-z0-9_-]{{5,64}})/?(?:[?#].*)?"
)


def _check_day(name: str, value: str) -> None:
    with suppress(ValueError):
        if not value or date.fromisoformat(value).isoformat() == value:
            return
    raise RunError(f"{name} is {value!r}: give a day as in 2024-01-31, or leave it empty")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Checked):
    """Settings of 02_caption: which captioner describes the images, and how."""

    run: str = "demo"
    captioner: str = choice(*CAPTIONERS)
    model: str = "claude-haiku-5-5"  # of captioner=claude
    mode: str = choice("now", "batch")  # a batch takes up to a day, usually less than an hour
    budget_usd: float = number(5.0, 0.0, 10_000.0)  # for all captions of the run, reruns included
    banned_words: str = ""  # comma-separated; a caption with one of them is reported
    review: bool = True  # show the table to read and edit captions, if a person is there
    recaption: bool = False  # caption again what another model, style guide etc. captioned
    style_guide: str = ""  # what a caption names and leaves out; empty takes prompt.STYLE_GUIDE
    vocabulary: str = ""  # recurring characters: "Mira: the orange cat with a red scarf; ..."
    examples: tuple[str, ...] = ()  # captioned images of the run, or paths of images with .txt
    max_caption_words: int = number(30, 4, 60)
    image_side_px: int = number(756, 112, 1568)  # as sent; 27 patches of 28 px
    price_usd: tuple[float, ...] = ()  # (input, output) per million tokens of an unlisted model
    concurrency: int = number(8, 1, 64)  # requests in flight, at most
    most_asks: int = number(3, 1, 10)  # for an image whose answers do not fit the schema, at most
    most_retries: int = number(8, 0, 100)  # of a request that met a busy or failing server, at most
    retry_wait_s: float = number(1.0, 0.0, 60.0)  # before the first retry; doubles
    longest_wait_s: float = number(300.0, 0.0, 3600.0)  # a longer wait ends the run
    timeout_s: float = number(120.0, 0.05, 600.0)
    poll_s: float = number(30.0, 0.0, 3600.0)  # between two status requests for a batch
    blip_model: str = "Salesforce/blip-image-captioning-large"  # a hub id or a folder
    clip_tokenizer: str = ""  # a hub id or a folder, to count tokens; empty: the base model's
    suffix: str = ""  # as in 03, to count its tokens; empty takes 03's setting or default

    def __post_init__(self) -> None:
        super().__post_init__()
        are_numbers = [type(price) in (int, float) for price in self.price_usd]
        if self.price_usd and are_numbers != [True, True]:
            raise RunError(
                f"price_usd is {self.price_usd}: give (input, output) in USD per million tokens"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Checked):
    """Settings of 03_dataset: which images are trained on, and which are held out for validation."""

    run: str = "demo"
    suffix: str = " in a mira watercolor style"  # ends every caption; the words that call the style
    validation_share: float = number(0.15, 0.02, 0.5)
    min_side_px: int = number(64, 16, 4096)  # smaller images are left out
    seed: int = number(0, 0, 2**31)
    max_aspect: float = number(3.0, 1.0, 100.0)  # longer side over shorter
    min_brightness: float = number(24.0, 0.0, 255.0)  # mean grey
    min_sharpness: float = number(0.02, 0.0, 1.0)  # as a share of the set's median
    max_text_share: float = number(0.25, 0.0, 1.0)  # of the height, covered by lines of text
    max_oddness: float = number(10.0, 1.0, 1e6)  # outlier score, in spreads of the other images
    max_hash_bits: int = number(28, 0, 64)  # of 256 that copies may differ by
    min_likeness: float = number(0.78, 0.5, 1.0)  # of an edited copy's edges; 1 finds none
    # name patterns of images that share a scene, as in ("cats*", "beach-*"): held out together, as one post
    series: tuple[str, ...] = ()
    push_to: str = ""  # a hub id such as you/your-dataset; empty publishes nothing
    private: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_hub_id(self.push_to, "a dataset's, as in you/your-dataset")
        if self.suffix[:1].isalnum():
            raise RunError(
                f"suffix is {self.suffix!r}: begin it with a space or it joins the caption's last word"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """Settings of 04_train, which fine-tunes the model. The preset's values replace the general defaults.

    A `resumable` field may differ when a training is resumed, since it changes length, watching, memory or time alone.
    Every other field changes what a step learns.
    """

    run: str = plain("demo", resumable=True)
    preset: str = choice(*PRESETS, resumable=True)
    base_model: str = "assets/tiny-sd"  # a hub id, a folder in diffusers layout, one .safetensors
    # an autoencoder in place of the base's: a hub id such as madebyollin/sdxl-vae-fp16-fix, or a folder
    vae: str = ""
    method: str = choice("full", "lora")
    max_steps: int = number(300, 1, 1_000_000, resumable=True)  # optimizer steps
    learning_rate: float = number(1e-3, 1e-8, 1.0)
    train_batch_size: int = number(8, 1, 512, resumable=True)
    gradient_accumulation_steps: int = number(1, 1, 512, resumable=True)
    resolution_px: int = number(128, 32, 2048)
    rank: int = number(16, 1, 512)  # of a LoRA
    lora_alpha: int = number(0, 0, 1024)  # 0 takes the rank, so that the learning rate still fits
    lora_targets: str = choice("attention_ff_conv", "attention_ff", "attention")
    train_text_encoder: bool = False  # not needed for a style; overfits and forgets words quickly
    text_encoder_lr: float = number(5e-6, 1e-9, 1.0)
    seed: int = number(0, 0, 2**31)
    mixed_precision: str = choice("auto", "no", "fp16", "bf16")
    lr_scheduler: str = choice("cosine", "constant", "constant_with_warmup", "linear")
    lr_warmup_steps: int = number(20, 0, 100_000)
    optimizer: str = choice("adamw", "adamw8bit")  # the second by bitsandbytes, for a GPU's memory
    # step each weight in the backward pass and free its gradient: a gradient's memory less, and no accumulation
    optimizer_in_backward: bool = False
    # bf16 halves the weights' memory, with stochastic rounding; needs a GPU with bf16 and optimizer_in_backward
    weights_dtype: str = choice("float32", "bf16")
    weight_decay: float = number(1e-2, 0.0, 1.0)
    max_grad_norm: float = number(1.0, 0.0, 1000.0)  # 0: no gradient clipping
    snr_gamma: float = number(5.0, 0.0, 100.0)  # of min-SNR weighting; 0 weights timesteps equally
    noise_offset: float = number(0.0, 0.0, 1.0)
    caption_dropout: float = number(0.1, 0.0, 1.0)  # for classifier-free guidance
    # prior preservation: samples of the base model, as a share of the training images
    prior_share: float = number(0.5, 0.0, 4.0)
    random_flip: bool = False  # adds each image mirrored; not for lettering or signatures
    crops_per_image: int = number(1, 1, 16)  # along the longer side; 1 takes the middle
    # images in their own aspect ratio at resolution_px squared pixels, instead of square crops
    aspect_ratio_buckets: bool = False
    use_ema: bool = False  # validate, sample and export the weights' moving average
    ema_decay: float = number(0.9999, 0.0, 0.999999)
    offload_ema: bool = plain(False, resumable=True)  # keep it in the CPU's memory
    gradient_checkpointing: bool = plain(False, resumable=True)
    # compiles the attention blocks: a minute at the first step, no gain on a CPU
    torch_compile: bool = plain(False, resumable=True)
    attention: str = choice("auto", "sdpa", "xformers", resumable=True)
    # CUDA graphs: a step's kernels are recorded once and replayed, several times as fast with the same losses
    capture: str = choice("auto", "off", resumable=True)
    save_every_steps: int = number(100, 1, 1_000_000, resumable=True)
    save_every_minutes: float = number(15.0, 0.0, 10_000.0, resumable=True)  # as well; 0: never
    validate_every_steps: int = number(50, 1, 1_000_000, resumable=True)
    # (image, timestep) pairs of a validation loss, and half as many of training images; fewer are too noisy
    validation_pairs: int = number(256, 2, 65_536)
    preview_every_steps: int = number(100, 1, 1_000_000, resumable=True)
    keep_checkpoints: int = number(2, 1, 1000, resumable=True)  # and the best one beside them
    early_stopping_patience: int = number(0, 0, 1000, resumable=True)  # in validations; 0: never
    # beside train_log.jsonl, which is always written; the names are accelerate's
    tracker: str = choice("tensorboard", "none", *TRACKERS, resumable=True)
    # of the previews, without the suffix; empty takes held-out captions
    prompts: tuple[str, ...] = lines((), resumable=True)
    preview_seed: int = number(1000, 0, 2**31, resumable=True)
    guidance_scale: float = number(4.0, 1.0, 30.0)
    num_inference_steps: int = number(16, 1, 1000)
    # train anew where settings or dataset changed; the checkpoints of before go to sweep/before-N
    begin_again: bool = plain(False, resumable=True)
    allow_slow: bool = plain(False, resumable=True)  # train a full-size model without a GPU
    # values to try, as in {"learning_rate": "1e-5..1e-3"}
    sweep: dict = field(default_factory=dict, hash=False, metadata={"resumable": True})
    # or all combinations of its lists, if they are fewer
    sweep_trials: int = number(8, 1, 1000, resumable=True)
    # empty: the run folder; `postgresql`, or its address, for several machines
    sweep_storage: str = plain("", resumable=True)
    usd_per_hour: float = number(0.0, 0.0, 1000.0, resumable=True)  # this machine's price

    def defaults(self) -> dict[str, Any]:
        """Return every setting's default. If the preset has a value for a setting, that value is the default."""
        return super().defaults() | PRESETS[self.preset]

    @property
    def effective_batch_size(self) -> int:
        """The number of images per optimizer step in each process."""
        return self.train_batch_size * self.gradient_accumulation_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution_px % 8:
            raise RunError(f"resolution_px is {self.resolution_px}: use a multiple of 8, as in 512")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Checked):
    """Settings of 05_inference: what is drawn, and how the model is judged."""

    run: str = "demo"
    prompts: str = lines("")  # one a line; empty draws the prompts of the previews
    negative_prompt: str = ""
    num_inference_steps: int = number(16, 1, 1000)
    guidance_scale: float = number(4.0, 1.0, 30.0)
    seed: int = number(1000, 0, 2**31)
    num_images: int = number(1, 1, 64)  # of each prompt
    export: bool = True  # write weights for ComfyUI and similar programs
    # of those, the whole model as one file; auto leaves it out for a LoRA whose model is larger than 5 GB
    one_file: str = choice("auto", "yes", "no")
    push_to: str = ""  # a model repository on the hub, as in you/your-model; empty pushes nothing
    private: bool = True
    add_suffix: bool = True  # end each prompt with the dataset's suffix
    batch_size: int = number(8, 1, 64)
    judged_samples: int = number(24, 8, 4096)  # in each group that the verdict compares
    probed_captions: int = number(16, 0, 4096)  # training captions drawn, to find copies
    encoder: str = ""  # a hub id or folder of a CLIP or DINOv2, to measure the style as well
    clip_model: str = ""  # a hub id or folder of a CLIP, to measure prompt adherence
    safety_checker: bool = True  # if the model has one
    # drawn and compared, at the same seeds; there are those of GRIDS
    grids: tuple[str, ...] = lines(GRIDS[:1])
    # that a person compares, at most: each picture of held-out art comes once
    blind_pairs: int = number(20, 4, 500)
    controlnet: str = ""  # a hub id or folder of a ControlNet for scribbles, to draw by sketches
    # a TCD or LCM LoRA, by hub id or path: the prompt box gets a switch that draws in a few steps. The report measures
    # what it costs in style: the demo's, assets/tiny-sd-lcm, keeps 97% of the style gain in 25% of the time
    speed_lora: str = ""
    speed_scheduler: str = choice("auto", "TCD", "LCM")  # auto: LCM if its name says so
    speed_weight: float = number(1.0, 0.05, 2.0)  # at which it is merged
    speed_steps: int = number(4, 1, 50)
    speed_guidance: float = number(1.0, 0.0, 8.0)  # to 1: none, so a negative prompt does nothing
    # a light LoRA in export/, of what the training changed, by SVD: its rank, or the share of the squared change
    lora_rank: int = number(0, 0, 512)
    lora_share: float = number(0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.grids if name not in GRIDS]:
            raise RunError(f"grids has {unknown[0]!r}: {names_like(unknown[0], GRIDS)}")
        _check_hub_id(self.push_to, "a model's, as in you/your-model")
        if self.lora_rank and self.lora_share:
            raise RunError("lora_rank and lora_share both say how large the LoRA is: give one")

    @property
    def has_light_lora(self) -> bool:
        """Whether a light LoRA is asked for."""
        return bool(self.lora_rank or self.lora_share)


def _check_hub_id(push_to: str, what: str) -> None:
    if push_to and not HUB_ID.fullmatch(push_to):
        raise RunError(f"push_to is {push_to!r}: give your hub name and {what}")


RESUMABLE = frozenset(f.name for f in fields(TrainConfig) if f.metadata.get("resumable"))
CONFIGS = {
    "scrape": ScrapeConfig,
    "caption": CaptionConfig,
    "dataset": DatasetConfig,
    "train": TrainConfig,
    "inference": InferenceConfig,
}


def configure(kind: type[Config], more: dict[str, Any] | None = None, **values: Any) -> Config:
    """Create a config from a notebook's parameters and the dict `more`. None stands for the preset or default value.

    Raises RunError for an unknown name, or a value out of its bounds.
    """
    more = more or {}
    if not isinstance(more, dict):
        raise RunError("more is no dict: write it as in more = {'save_every_steps': 5}")
    refuse_secrets(values | more)
    known = {f.name for f in fields(kind)}
    if unknown := [name for name in more if name not in known]:
        hint = names_like(unknown[0], known)
        raise RunError(f"more has {unknown[0]!r}, which {kind.__name__} does not know: {hint}")
    given = {name: value for name, value in (values | more).items() if value is not None}
    if kind is TrainConfig:
        given = PRESETS.get(given.get("preset", "demo"), {}) | given
    return kind(**given)


def read_settings(kind: type[Config], kept: dict[str, Any]) -> Config:
    """Create a config from settings that any version of this project saved. Names unknown today are ignored."""
    return kind(**{f.name: kept[f.name] for f in fields(kind) if f.name in kept})
