"""The model's card, from the run itself: base, data, permission, settings, curves, figures and limits."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader

from helpers.core.files import read_json, replacing_file, write_text
from helpers.core.records import Post, latest, read_rows
from helpers.core.run import Run
from helpers.figures.pictures import loss_curves, open_rgb
from helpers.inference.share.modelspec import Family
from helpers.inference.trained import read_trained
from helpers.models.licence import Licence, licence_of, public_name

TEMPLATE = "card.md.j2"
HYPERPARAMETERS = (
    "method max_steps learning_rate lr_scheduler lr_warmup_steps train_batch_size "
    "gradient_accumulation_steps resolution_px rank snr_gamma noise_offset caption_dropout prior_share "
    "weight_decay mixed_precision seed"
).split()


def write_card(run: Run) -> Path:
    """Write the card and its two pictures into export/; return the card's path.

    Raises RunError where 05 has not judged the model yet.
    """
    figures = read_json(run.require(run.report_json, "inference"))
    with replacing_file(run.export / "curves.png") as beside:
        loss_curves(read_trained(run).log).save(beside)
    with replacing_file(run.export / "before_and_after.jpg") as beside:
        open_rgb(run.before_and_after).save(beside, quality=92)
    write_text(run.export / "README.md", card(run, figures))
    return run.export / "README.md"


def card_files(run: Run) -> dict[str, Path]:
    """The card's files by their names in a model repository, where they were written."""
    names = ("README.md", "curves.png", "before_and_after.jpg")
    return {name: run.export / name for name in names if (run.export / name).is_file()}


def card(run: Run, figures: dict[str, Any]) -> str:
    """Markdown with a YAML header that the Hugging Face hub reads."""
    kept = read_trained(run)
    trained = kept.settings
    base = public_name(trained["base_model"])
    licence = licence_of(trained["base_model"], Family.of(run.model).is_v2)
    posts = list(latest(read_rows(run.posts, Post)).values())
    loader = FileSystemLoader(Path(__file__).parent)
    return (
        Environment(loader=loader, trim_blocks=True)
        .get_template(TEMPLATE)
        .render(
            header=_header(base if trained["base_model"] == base else None, licence),
            licence=licence,
            figures=figures,
            base=base,
            suffix=kept.suffix,
            settings={name: trained[name] for name in HYPERPARAMETERS},
            posts=len({post.shortcode for post in posts}),
            accounts=", ".join(sorted({p.account for p in posts} - {""})) or "not recorded",
            permissions=", ".join(sorted({post.permission for post in posts})),
            lora=trained["method"] == "lora",
        )
    )


def _header(base_on_hub: str | None, licence: Licence) -> str:
    """What the hub reads of a card; a base that lies in a folder has no address to give."""
    data = ModelCardData(
        **licence.fields(),
        base_model=base_on_hub,
        base_model_relation="finetune" if base_on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "stable-diffusion-diffusers", "annalaura-diffusion"],
    )
    return data.to_yaml()
