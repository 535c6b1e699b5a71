"""The settings of the five notebooks: a frozen dataclass each, checked when it is made.

A notebook calls `configure(TrainConfig, more, run=run, ...)`; None means the default, or the preset's value.
"""

import ast
import re
import textwrap
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import date
from typing import Any, TypeVar

from helpers.errors import RunError
from helpers.redact import looks_secret
from helpers.run import RUN_NAME

Config = TypeVar("Config")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


TRACKERS = ("wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")


def number(default: float | None, low: float, high: float) -> Any:
    """A field that holds a number from `low` to `high`, whole where the default is."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(*options: str) -> Any:
    """A field that holds one of `options`, the first by default."""
    return field(default=options[0], metadata={"options": options})


def lines(default: str | tuple[str, ...]) -> Any:
    """A field of texts, one a line or one an item: given as either, it is kept as what `default` is."""
    return field(default=default, metadata={"lines": True})


class Unset:
    """Stands for settings and their run until they are found good: whatever asks for one is told so in a line."""

    def __getattr__(self, name: str) -> Any:
        raise RunError("the settings above are not in force: mend them and run their cell again")


UNSET = Unset()


class Checked:
    """Settings that are checked when they are made."""

    def __post_init__(self) -> None:
        check(self)

    def _ipython_display_(self) -> None:
        """Print all settings, with lines broken between two, never within one."""
        words = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)]
        whole = ", ".join(word.replace(" ", "\xa0") for word in words)
        lines = textwrap.fill(whole, 100, break_long_words=False, break_on_hyphens=False)
        print(lines.replace("\xa0", " "))


@dataclass(frozen=True, kw_only=True)
class ScrapeConfig(Checked):
    """01_scrape: where the images come from."""

    run: str = "demo"
    source: str = choice("demo", "instagram", "folder", "export", "hub")
    account: str = ""  # whose art it is; source=instagram walks it
    posts: str = ""  # of source=instagram: these alone; shortcodes or addresses, comma-separated
    # your images with .txt captions beside them; of source=export: Instagram's ZIP
    folder: str = ""
    dataset_id: str = ""  # of source=hub: a hub id, or a folder in imagefolder layout
    since: str = ""  # 2024-01-31, the first day that counts (UTC)
    until: str = ""  # the last day that counts
    max_posts: int = number(0, 0, 1_000_000)  # 0 takes all
    permission: str = choice("private study", "own work", "permission of the artist")
    # of several captions of an image: first, last, longest, shortest, joined, or an ending's or a column's name
    caption_choice: str = "first"
    image_column: str = ""  # of source=hub, where it has several; empty takes the likeliest
    demo_posts: int = number(100, 4, 5000)  # of source=demo, beside its flawed ones
    max_image_mpx: int = number(80, 1, 1000)  # larger files are refused before they are decoded
    max_image_mb: int = number(50, 1, 1000)  # of a download, or a file in a ZIP
    max_image_s: float = number(60.0, 0.1, 3600.0)  # of a download
    max_minutes: float = number(90.0, 0.0, 100_000.0)  # of one walk on Instagram; 0 sets no limit
    pauses: bool = True  # instaloader's short random pauses before each question to Instagram
    video_covers: bool = False  # take the cover picture of a video
    # others' posts in the account's timeline, always for private study alone
    coauthored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name, what = _NEEDED.get(self.source, ("run", ""))
        if not getattr(self, name) and not (self.source == "instagram" and self.posts):
            raise RunError(f"source is {self.source!r} but {name} is empty: set {name} to {what}")
        for name in ("since", "until"):
            _check_day(name, getattr(self, name))
        if self.since and self.until and self.since > self.until:
            raise RunError(f"since {self.since} is after until {self.until}: swap them")
        if self.source == "instagram":
            assert self.username is not None and self.shortcodes is not None  # each raises RunError

    @property
    def username(self) -> str:
        """The account's name without `@` or address, empty if none is given. Raises RunError if it is no name."""
        match = _ACCOUNT.fullmatch(self.account.strip())
        if self.account.strip() and not match:
            raise RunError(f"account is {self.account!r}: give its name alone, as in some.artist")
        return match[1].lower() if match else ""

    @property
    def shortcodes(self) -> list[str]:
        """The shortcodes in `posts`, each once, in order. Raises RunError for what is neither one nor an address."""
        parts = [part for part in re.split(r"[,\s]+", self.posts) if part]
        matches = [_POST.fullmatch(part) for part in parts]
        for part, match in zip(parts, matches, strict=True):
            if not match:
                raise RunError(
                    f"posts has {part!r}: give shortcodes, or addresses such as "
                    "https://www.instagram.com/p/C1a2B3c4D5e/"
                )
        return list(dict.fromkeys(match[1] for match in matches))

    def covers(self, taken_at: str) -> bool:
        """Whether an ISO time lies from `since` to `until`, both days counted; one that nobody knows does."""
        day = taken_at[:10]
        return not day or (self.since or day) <= day <= (self.until or day)


_NEEDED = {
    "instagram": ("account", "the account's name, or posts to their addresses"),
    "folder": ("folder", "the path of your images"),
    "export": ("folder", "the path of the ZIP that Instagram gave you"),
    "hub": ("dataset_id", "a hub id such as name/dataset, or a folder"),
}
_ADDRESS = r"(?:https?://)?(?:www\.|m\.)?instagram\.com/"
_ACCOUNT = re.compile(rf"(?:{_ADDRESS}|@)?([A-Za-z0-9._]{{1,30}})/?(?:\?.*)?", re.ASCII)
_POST = re.compile(
    rf"(?:{_ADDRESS}(?:[A-Za-z0-9._]+/)?(?:p|reels?|tv)/)?([A-Za-z0-9_-]{{5,64}})/?(?:[?#].*)?"
)


def _check_day(name: str, value: str) -> None:
    try:
        is_day = not value or date.fromisoformat(value).isoformat() == value
    except ValueError:
        is_day = False
    if not is_day:
        raise RunError(f"{name} is {value!r}: give a day as in 2024-01-31, or leave it empty")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Checked):
    """02_caption: who says what each image shows."""

    run: str = "demo"
    captioner: str = choice("sidecar", "claude", "blip")
    model: str = "claude-haiku-5-5"  # of captioner=claude
    mode: str = choice("now", "batch")  # a batch takes up to a day, mostly under an hour
    budget_usd: float = number(5.0, 0.0, 10_000.0)  # for all captions of the run, reruns included
    banned_words: str = ""  # comma-separated; a caption with one of them is reported
    review: bool = True  # show the table to read and mend captions, where a person is there
    recaption: bool = False  # make captions again that another model, guide or such made
    style_guide: str = ""  # what a caption names and leaves out; empty takes prompt.STYLE_GUIDE
    vocabulary: str = ""  # recurring characters: "Mira: the orange cat with a red scarf; ..."
    examples: tuple[str, ...] = ()  # captioned images of the run, or paths of images with a .txt
    max_caption_words: int = number(30, 4, 60)
    image_side_px: int = number(756, 112, 1568)  # as sent; 27 patches of 28 px
    price_usd: tuple[float, ...] = ()  # (input, output) per million tokens of an unlisted model
    concurrency: int = number(8, 1, 64)  # requests in flight at most
    most_asks: int = number(3, 1, 10)  # of an image whose answers are not to the form
    most_retries: int = number(8, 0, 100)  # of a request that met a full or faltering server
    retry_wait_s: float = number(1.0, 0.0, 60.0)  # before the first retry; doubles
    longest_wait_s: float = number(300.0, 0.0, 3600.0)  # longer ones end the run
    timeout_s: float = number(120.0, 0.05, 600.0)
    poll_s: float = number(30.0, 0.0, 3600.0)  # between looks at a batch
    blip_model: str = "Salesforce/blip-image-captioning-large"  # a hub id or a folder
    # whose tokens are counted, a hub id or folder; empty takes the base model's
    clip_tokenizer: str = ""
    suffix: str = ""  # as in 03, to count its tokens; empty takes what 03 has or will have

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.price_usd
            and [type(price) in (int, float) for price in self.price_usd] != [True] * 2
        ):
            raise RunError(
                f"price_usd is {self.price_usd}: give (input, output) in USD per million tokens"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Checked):
    """03_dataset: what is trained on, and what is held out."""

    run: str = "demo"
    suffix: str = " in a mira watercolor style"  # ends every caption; the words that call the style
    validation_share: float = number(0.15, 0.02, 0.5)
    min_side_px: int = number(64, 16, 4096)  # smaller images are left out
    seed: int = number(0, 0, 2**31)
    max_aspect: float = number(3.0, 1.0, 100.0)  # longer side over shorter
    min_brightness: float = number(24.0, 0.0, 255.0)  # mean grey
    min_sharpness: float = number(0.02, 0.0, 1.0)  # as a share of the set's median
    max_text_share: float = number(0.25, 0.0, 1.0)  # of the height, covered by lines of text
    max_oddness: float = number(10.0, 1.0, 1e6)  # spreads away from the other posts' pictures
    max_hash_bits: int = number(28, 0, 64)  # of 256; more apart are not the same picture
    min_likeness: float = number(0.78, 0.5, 1.0)  # of an edited copy's edges; 1 looks for none
    # names of pictures that share a scene, as in ("cats*", "beach-*"): held out together, as one post
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
    """04_train: the fine-tune. Fields of PRESETS have the preset's value unless one is given."""

    run: str = "demo"
    preset: str = choice("demo", "t4", "t4-full", "l4", "a100", "seed")
    base_model: str = "assets/tiny-sd"  # a hub id, a folder in diffusers layout, one .safetensors
    method: str = choice("full", "lora")
    max_steps: int = number(300, 1, 1_000_000)  # optimizer steps
    learning_rate: float = number(1e-3, 1e-8, 1.0)
    train_batch_size: int = number(8, 1, 512)
    gradient_accumulation_steps: int = number(1, 1, 512)
    resolution_px: int = number(128, 32, 2048)
    rank: int = number(16, 1, 512)  # of a LoRA
    lora_alpha: int = number(0, 0, 1024)  # 0 takes the rank, so that a new rank needs no new rate
    lora_targets: str = choice("attention_ff_conv", "attention_ff", "attention")
    train_text_encoder: bool = False  # a style needs it not, and it forgets words soon
    text_encoder_lr: float = number(5e-6, 1e-9, 1.0)
    seed: int = number(0, 0, 2**31)
    mixed_precision: str = choice("auto", "no", "fp16", "bf16")
    lr_scheduler: str = choice("cosine", "constant", "constant_with_warmup", "linear")
    lr_warmup_steps: int = number(20, 0, 100_000)
    optimizer: str = choice("adamw", "adamw8bit")  # the second by bitsandbytes, for a GPU's memory
    weight_decay: float = number(1e-2, 0.0, 1.0)
    max_grad_norm: float = number(1.0, 0.0, 1000.0)  # 0 clips nothing
    snr_gamma: float = number(5.0, 0.0, 100.0)  # 0 weighs all timesteps alike
    noise_offset: float = number(0.0, 0.0, 1.0)
    caption_dropout: float = number(0.1, 0.0, 1.0)  # for classifier-free guidance
    # the base's own samples, as a share of the training images
    prior_share: float = number(0.5, 0.0, 4.0)
    # a mirrored variant of each image; lettering and signatures forbid it
    random_flip: bool = False
    # variants along the side that is cut; 1 takes the middle
    crops_per_image: int = number(1, 1, 16)
    # whole images at resolution_px squared pixels, not their squares
    aspect_ratio_buckets: bool = False
    use_ema: bool = False  # measure, draw and export the weights' moving average
    ema_decay: float = number(0.9999, 0.0, 0.999999)
    offload_ema: bool = False  # keep it in the CPU's memory
    gradient_checkpointing: bool = False
    # the attention blocks; costs a minute at the first step, and on a CPU gains nothing
    torch_compile: bool = False
    attention: str = choice("auto", "sdpa", "xformers")
    # on a GPU: a step's kernels recorded once and replayed, several times as fast with the same losses
    capture: str = choice("auto", "off")
    save_every_steps: int = number(100, 1, 1_000_000)
    # as well, whatever a step takes; 0: never
    save_every_minutes: float = number(15.0, 0.0, 10_000.0)
    validate_every_steps: int = number(50, 1, 1_000_000)
    # (image, timestep) pairs in a measurement, half as many of training images: with fewer, noise outweighs the rest
    validation_pairs: int = number(256, 2, 65_536)
    preview_every_steps: int = number(100, 1, 1_000_000)
    keep_checkpoints: int = number(2, 1, 1000)  # and the best one beside them
    early_stopping_patience: int = number(0, 0, 1000)  # measurements without a new best; 0 goes on
    # train_log.jsonl is always kept; the others are what accelerate knows
    tracker: str = choice("tensorboard", "none", *TRACKERS)
    # of the previews, without the suffix; empty takes held-out captions
    prompts: tuple[str, ...] = lines(())
    preview_seed: int = number(1000, 0, 2**31)
    guidance_scale: float = number(4.0, 1.0, 30.0)
    num_inference_steps: int = number(16, 1, 1000)
    allow_slow: bool = False  # train a full-size model without a GPU all the same
    # what to try: {"learning_rate": "1e-5..1e-3"}
    sweep: dict = field(default_factory=dict, hash=False)
    sweep_trials: int = number(8, 1, 1000)  # fewer where a sweep's lists have fewer combinations
    # empty: the run's folder; `postgresql`, or its address, for many machines
    sweep_storage: str = ""
    # of this machine, so that a sweep says its price
    usd_per_hour: float = number(0.0, 0.0, 1000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution_px % 8:
            raise RunError(f"resolution_px is {self.resolution_px}: use a multiple of 8, as in 512")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Checked):
    """05_inference: what is drawn, and how the model is judged."""

    run: str = "demo"
    prompts: str = lines("")  # one a line; empty draws the prompts of the previews
    negative_prompt: str = ""
    num_inference_steps: int = number(16, 1, 1000)
    guidance_scale: float = number(4.0, 1.0, 30.0)
    seed: int = number(1000, 0, 2**31)
    num_images: int = number(1, 1, 64)  # of each prompt
    export: bool = True  # write one-file weights for ComfyUI and its like
    push_to: str = ""  # a model repository on the hub, as in you/your-model; empty pushes nothing
    private: bool = True
    add_suffix: bool = True  # end each prompt with the dataset's suffix
    batch_size: int = number(8, 1, 64)
    judged_samples: int = number(24, 8, 4096)  # in each group that the verdict compares
    # training captions that are drawn to look for copies
    probed_captions: int = number(16, 0, 4096)
    encoder: str = ""  # a hub id or folder of a CLIP or DINOv2, to judge the style by as well
    clip_model: str = ""  # a hub id or folder of a CLIP, to measure how well prompts are kept to
    safety_checker: bool = True  # where the model has one

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_hub_id(self.push_to, "a model's, as in you/your-model")


def _check_hub_id(push_to: str, what: str) -> None:
    if push_to and not HUB_ID.fullmatch(push_to):
        raise RunError(f"push_to is {push_to!r}: give your hub name and {what}")


SEED_PROMPTS = (
    "blue and yellow cats shopping at plant store",
    "a turtle character dressed as teacher standing next to a chalkboard with equations on it",
    "blue and yellow cats riding bikes together through tropical forest path",
    "raccoon character wearing gold chain driving red sports car down highway",
)
DEMO_PROMPTS = (  # (colour, animal) pairs that no drawn training picture holds
    "a blue cat next to a red car on a green hill",
    "a purple rabbit next to a green tree in the snow",
    "a red bear next to a yellow umbrella on a sandy beach",
    "a pink elephant next to a blue balloon at sunset",
    "a yellow frog next to a purple mushroom at night",
    "an orange turtle next to a blue house on a green hill",
)
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_COLUMNS = (
    "base_model",
    "method",
    "max_steps",
    "learning_rate",
    "train_batch_size",
    "gradient_accumulation_steps",
    "resolution_px",
    "lr_scheduler",
    "gradient_checkpointing",
    "save_every_steps",
    "prompts",
)
# fmt: off
_ROWS = {
    #           base              method  steps  rate  batch accum px   schedule    ckpt   save  prompts
    "demo":    ("assets/tiny-sd", "full",   300, 1e-3,     8,  1, 128, "cosine",   False,  100, DEMO_PROMPTS),
    "t4":      (SD15,             "lora",  2000, 1e-4,     2,  2, 512, "cosine",   True,   250, ()),
    "t4-full": (SD15,             "full",  3000, 5e-6,     1,  4, 512, "cosine",   True,   500, ()),
    "l4":      (SD15,             "lora",  2000, 1e-4,     4,  1, 512, "cosine",   False,  250, ()),
    "a100":    (SD15,             "full",  4000, 5e-6,     8,  1, 512, "cosine",   False,  500, ()),
    "seed":    (SD15,             "full",  5000, 1e-5,     1,  4, 512, "constant", True,   500, SEED_PROMPTS),
}
# fmt: on
# Why these: LoRA at 1e-4 and full at 5e-6 are what most trainers settled on; 1e-5, the seed's, is at the high end.
# An effective batch of 4 is the seed's; 8 halves the steps' noise where memory allows it. 2,000 steps of 4 go seven
# times through 850 images, with 15% of them held out and half as many of the base's own mixed in. Checkpointing costs a
# third of the speed and spares what a T4 has not.
PRESETS = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _ROWS.items()}
PRESETS["demo"] |= {"noise_offset": 0.3, "validation_pairs": 64}
PRESETS["seed"] |= {  # the recipe as it was: nothing that came after it
    "snr_gamma": 0.0,
    "caption_dropout": 0.0,
    "prior_share": 0.0,
    "mixed_precision": "fp16",
}
PRESETS["t4"] |= {"mixed_precision": "fp16"}  # a T4 only emulates bf16
PRESETS["t4-full"] |= {  # 3.4 GB each of weights and gradients, and 1.7 of moments, not 6.9
    "mixed_precision": "fp16",
    "optimizer": "adamw8bit",
    "keep_checkpoints": 1,  # of 5 GB; free Google Drive has 15
}
PRESETS["a100"] |= {
    "use_ema": True,  # steadier pictures, where memory is plenty
    "keep_checkpoints": 1,  # of 14 GB
}
for _name in ("t4", "t4-full", "l4", "a100", "seed"):
    PRESETS[_name] |= {
        "lr_warmup_steps": 0 if _name == "seed" else 100,
        "validate_every_steps": PRESETS[_name]["save_every_steps"],
        "preview_every_steps": PRESETS[_name]["save_every_steps"],
        "guidance_scale": 7.5,
    }

CONFIGS = {
    "scrape": ScrapeConfig,
    "caption": CaptionConfig,
    "dataset": DatasetConfig,
    "train": TrainConfig,
    "inference": InferenceConfig,
}


def configure(kind: type[Config], more: dict[str, Any] | None = None, **values: Any) -> Config:
    """Make a config from a notebook's parameters and its `more`, None meaning the default or the preset's value.

    Raises RunError for a name that the config does not have, or a value out of its bounds.
    """
    refuse_secrets(values | (more or {}))
    known = {f.name for f in fields(kind)}
    for name in more or {}:
        if name not in known:
            raise RunError(
                f"more has {name!r}, which {kind.__name__} does not know: it knows {_names(known)}"
            )
    given = {name: value for name, value in (values | (more or {})).items() if value is not None}
    if kind is TrainConfig:
        given = PRESETS.get(given.get("preset", "demo"), {}) | given
    return kind(**given)


def read_settings(kind: type[Config], kept: dict[str, Any]) -> Config:
    """Settings as some version of this project kept them: what is no setting in this one is left out."""
    return kind(**{f.name: kept[f.name] for f in fields(kind) if f.name in kept})


def refuse_secrets(given: dict[str, Any]) -> None:
    """Raises RunError for a setting that holds a key, a password or cookies: settings are written down."""
    for name, value in given.items():
        if secret := looks_secret(name, value):
            raise RunError(
                f"{name if name != secret else 'a parameter'} holds a secret ({secret}), and settings are written "
                f"down: put it under Colab's Secrets or in the environment as {secret}, not into a parameter; "
                "a notebook that was executed with it holds it too"
            )


def from_text(kind: type, name: str, text: str) -> Any:
    """A value typed on a command line, in the type of the field `name`. Raises RunError if it is none."""
    known = {f.name: f for f in fields(kind)}
    if name not in known:
        raise RunError(f"{kind.__name__} does not know {name!r}: it knows {_names(set(known))}")
    wanted = _default_type(known[name])
    if known[name].metadata.get("lines"):
        with suppress(ValueError, TypeError, SyntaxError):  # words are no list, and stay words
            if isinstance(listed := ast.literal_eval(text), list | tuple):
                return listed
    if text == "None" or wanted is str:
        return None if text == "None" else text
    try:
        value = ast.literal_eval(text.capitalize() if wanted is bool else text)
    except (ValueError, SyntaxError):
        raise RunError(f"{name} is {text!r}: give {_KINDS[wanted]}") from None
    return value


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def check(config: Any) -> None:
    """Check each field's type and bounds. Raises RunError naming the field, its value and its bounds."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("lines"):
            object.__setattr__(config, f.name, _lines(f, value))
        elif isinstance(value, int) and _default_type(f) is float:
            object.__setattr__(config, f.name, float(value))
        elif isinstance(value, list) and _default_type(f) is tuple:
            object.__setattr__(config, f.name, tuple(value))
        elif type(value) is not _default_type(f):
            raise RunError(f"{f.name} is {value!r}: give {_KINDS[_default_type(f)]}")
        _check_bounds(f, getattr(config, f.name))
    if not RUN_NAME.fullmatch(config.run):
        raise RunError(
            f"run is {config.run!r}: use 1 to 64 letters, digits, - and _, as in my-art-1"
        )


def _lines(f: Field, value: Any) -> str | tuple[str, ...]:
    """Texts as the field keeps them."""
    texts = value.splitlines() if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{f.name} is {value!r}: give a text in quotes, or a list of them")
    if _default_type(f) is tuple:
        return tuple(text for text in texts if text.strip())
    return value if isinstance(value, str) else "\n".join(texts)


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    tuple: "a list",
    dict: "a dict such as {'name': value}",
}


def _default_type(f: Field) -> type:
    assert f.default is not MISSING or f.default_factory is not MISSING
    return type(f.default) if f.default is not MISSING else type(f.default_factory())


def _check_bounds(f: Field, value: Any) -> None:
    if "options" in f.metadata and value not in f.metadata["options"]:
        raise RunError(f"{f.name} is {value!r}: choose one of {', '.join(f.metadata['options'])}")
    if "low" in f.metadata and not f.metadata["low"] <= value <= f.metadata["high"]:
        raise RunError(
            f"{f.name} is {value}: give a number from {f.metadata['low']} to {f.metadata['high']}"
        )
