"""Write the model card: base model, data, permission, settings, loss curves, results and limits."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Template

from helpers.core.files import read_json, replacing_file, write_text
from helpers.core.run import Run
from helpers.core.suffix import append_suffix
from helpers.figures.pictures import loss_curves, open_rgb
from helpers.inference.share.one_file import MADE_FROM
from helpers.inference.trained import read_trained, summarize_posts
from helpers.models.families import family_of, read_settings
from helpers.models.licence import licence_of, public_name

TEMPLATE = Path(__file__).parent / "card.md.j2"
HYPERPARAMETERS = (
    "method max_steps learning_rate lr_scheduler lr_warmup_steps train_batch_size "
    "gradient_accumulation_steps resolution_px rank snr_gamma noise_offset caption_dropout prior_share "
    "weight_decay mixed_precision seed"
).split()


def write_card(run: Run) -> Path:
    """Write the model card (README.md) and its two pictures into export/. Return the card's path.

    Raises RunError if 05 has not judged the model yet.
    """
    figures = read_json(run.require(run.report_json, "inference"))
    with replacing_file(run.export / "curves.png") as tmp_path:
        loss_curves(read_trained(run).log).save(tmp_path)
    with replacing_file(run.export / "before_and_after.jpg") as tmp_path:
        open_rgb(run.before_and_after).save(tmp_path, quality=92)
    write_text(run.export / "README.md", render_card(run, figures))
    return run.export / "README.md"


def python_lines(run: Run) -> str:
    """Return two lines of Python that draw with the run's model in its style."""
    folder = json.dumps(run.model.as_posix(), ensure_ascii=False)
    prompt = append_suffix("a blue cat at night", read_trained(run).suffix)
    return (
        "from diffusers import DiffusionPipeline\n"
        f"DiffusionPipeline.from_pretrained({folder})({json.dumps(prompt, ensure_ascii=False)})"
        '.images[0].save("cat.png")'
    )


def find_card_files(run: Run) -> dict[str, Path]:
    """Return the model card and its pictures, as {name in the Hub repository: path}. Missing files are omitted."""
    names = ("README.md", "curves.png", "before_and_after.jpg")
    return {name: run.export / name for name in names if (run.export / name).is_file()}


def render_card(run: Run, figures: dict[str, Any]) -> str:
    """Return the model card as Markdown, with a YAML header that the Hugging Face Hub reads."""
    trained = read_trained(run)
    settings = trained.settings
    base = public_name(settings["base_model"])
    licence = licence_of(settings["base_model"], family_of(read_settings(run.model)))
    base_on_hub = base if settings["base_model"] == base else None
    header = ModelCardData(
        **licence.fields(),
        base_model=base_on_hub,
        base_model_relation="finetune" if base_on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "stable-diffusion-diffusers", "annalaura-diffusion"],
    )
    return Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True).render(
        header=header.to_yaml(),
        licence=licence,
        figures=figures,
        base=base,
        suffix=trained.suffix,
        settings={name: settings[name] for name in HYPERPARAMETERS},
        **summarize_posts(run),
        lora=settings["method"] == "lora",
        # before an export the card names what a full one has
        whole=not (run.export / MADE_FROM).is_file()
        or (run.export / f"{run.name}.safetensors").is_file(),
        light=figures.get("light_lora"),  # not in older versions' report.json
    )
