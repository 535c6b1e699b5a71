"""A place to work in: a copy of the repository's layout with runs of its own, and a model small enough to train."""

import json
import os
import shutil
import threading
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the Hugging Face libraries when they are imported

from helpers.core.process import prepare_process

prepare_process()

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.core.process import prepare_process
from helpers.core.run import Run
from helpers.demo.pretrain import SCHEDULE
from helpers.demo.tokenizer import make_tokenizer
from tests.bases import make_sdxl

ROOT = Path(__file__).parent.parent
ORIENTATION = 0x0112

tqdm.set_lock(threading.RLock())  # its own outlives a killed process that held it
prepare_process()
torch.set_num_threads(1)  # equal bits are promised at one thread count


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with the repository's code linked in; runs/ is made inside it."""
    for name in ("helpers", "notebooks", "assets", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture(scope="session")
def tiny_base(request, tmp_path_factory):
    """A random Stable Diffusion v1 of 0.1 M parameters, as a folder in diffusers layout; or, if asked, an SDXL."""
    if getattr(request, "param", "SD 1") == "SDXL":
        return make_sdxl(tmp_path_factory.mktemp("base") / "sdxl")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("base") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def full_size(tmp_path_factory, tiny_base):
    """Stable Diffusion v1-5's shapes, of which no weights are needed to count."""
    folder = tmp_path_factory.mktemp("sd") / "sd"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    unet = {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "sample_size": 64,
    }
    parts = {
        "unet": unet,
        "vae": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
        },
        "text_encoder": {"model_type": "clip_text_model", "hidden_size": 768},
    }
    for name, config in parts.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def photograph(
    path: Path, seed: int, size=(120, 90), orientation: int = 1, mode: str = "RGB"
) -> Path:
    """A real JPEG, PNG or WEBP of soft shapes, with the EXIF orientation that a camera writes."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, 5, 4, generator=generator).mul(255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return path


@pytest.fixture
def pictures(tmp_path):
    """A folder of twelve captioned photographs, as a person has them."""
    folder = tmp_path / "my pictures"
    for i in range(12):
        path = photograph(folder / f"Holiday {i:02d}.JPG", i, orientation=6 if i % 3 == 0 else 1)
        path.with_suffix(".txt").write_text(f"a picture of place number {i}\n")
    return folder


# a test with this mark is run on a base of each of these
ON_EACH_FAMILY = pytest.mark.parametrize("tiny_base", ["SD 1", "SDXL"], indirect=True)
SMALL_TRAINING = {
    "max_steps": 4,
    "train_batch_size": 2,
    "resolution_px": 32,
    "num_inference_steps": 2,
    "save_every_steps": 2,
    "validate_every_steps": 2,
    "validation_pairs": 16,
    "preview_every_steps": 4,
}


@pytest.fixture
def dataset(workplace, pictures):
    """A run of those photographs that has come as far as 03."""
    return make_dataset("pictures", pictures)


def make_dataset(name: str, pictures: Path) -> Run:
    from helpers.caption.ledger import caption_images, pending
    from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
    from helpers.dataset.build import build
    from helpers.dataset.curate import curate
    from helpers.dataset.split import split
    from helpers.scrape.ingest import ingest, list_items

    run = Run(name)
    scrape = ScrapeConfig(run=name, source="folder", folder=str(pictures))
    list(ingest(scrape, run, list_items(scrape, run)))
    caption = CaptionConfig(run=name)
    list(caption_images(caption, run, pending(caption, run)))
    config = DatasetConfig(run=name, min_side_px=32)
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.25, 0)), left_out)
    return run


def train_until(config, run: Run, step: int) -> None:
    """Train and be left, as by a cell that is interrupted, once that step is done."""
    from helpers.train.trainer import train

    steps = train(config, run)
    while next(steps).step < step:
        pass
    steps.close()


def typed(given: dict) -> list[str]:
    """Settings as a shell has them."""
    return [word for name, value in given.items() for word in ("-p", name, str(value))]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def serve(workplace, monkeypatch):
    """Start an Instagram on loopback, and lead this process and those it starts to it."""
    from tests.loopback_instagram import Instagram, make_posts

    opened = []

    def start(posts=6, kind=Instagram, **more):
        site = kind(workplace, make_posts(posts) if isinstance(posts, int) else posts, **more)
        opened.append(site.__enter__())
        for name, value in site.environment().items():
            monkeypatch.setenv(name, value)
        return site

    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.delenv("INSTAGRAM_COOKIES", raising=False)
    yield start
    for site in opened:
        site.__exit__()


@pytest.fixture
def logged_in(monkeypatch):
    from tests.loopback_instagram import COOKIES

    monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)


def make_trained(folder: Path, base: Path, **given) -> Path:
    """A workplace with a run, `pictures`, that has come as far as 04."""
    from helpers.config import TrainConfig, configure
    from helpers.train.trainer import train

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i in range(12):
            path = photograph(folder / f"in/{i}.jpg", i)
            path.with_suffix(".txt").write_text(f"<b>thing</b> number {i}")
        run = make_dataset("pictures", folder / "in")
        given = {"run": "pictures", "base_model": str(base), **SMALL_TRAINING, **given}
        list(train(configure(TrainConfig, given), run))
    return folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory, tiny_base):
    return make_trained(tmp_path_factory.mktemp("trained"), tiny_base)


@pytest.fixture
def trained_run(trained_folder, tmp_path, monkeypatch):
    """A copy of that run, in a workplace of its own."""
    return copy_run(trained_folder, tmp_path, monkeypatch)


@pytest.fixture
def lora_run(lora_folder, tmp_path, monkeypatch):
    return copy_run(lora_folder, tmp_path, monkeypatch)


def copy_run(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Run("pictures")


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory, tiny_base):
    return make_trained(
        tmp_path_factory.mktemp("lora"), tiny_base, method="lora", rank=4, learning_rate=0.05
    )


@pytest.fixture
def claude(workplace, monkeypatch):
    """An Anthropic API on loopback, to which the real SDK is led."""
    from tests.loopback_claude import LoopbackClaude

    server = LoopbackClaude()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    yield server
    server.close()
