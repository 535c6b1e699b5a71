"""The image sources of 01_scrape and the captioners of 02_caption, by name."""

from typing import NamedTuple


class Source(NamedTuple):
    """An image source of 01_scrape: the module that reads it, and the setting that it needs."""

    module: str  # has `list_items(config, run)`, see helpers/scrape/folder.py
    needs: str = ""  # the setting that must be given
    advice: str = ""  # what to set it to


class Captioner(NamedTuple):
    """A captioner of 02_caption: the module that runs it, and the setting that names its model."""

    module: str  # has `caption_images(config, run, posts)`, see helpers/caption/sidecar.py
    model: str = ""  # the setting that names its model


SOURCES = {
    "demo": Source("helpers.scrape.demo_account"),
    "instagram": Source(
        "helpers.scrape.instagram.source",
        "account",
        "the account's name, or posts to their addresses",
    ),
    "folder": Source("helpers.scrape.folder", "folder", "the path of your images"),
    "export": Source(
        "helpers.scrape.instagram_export", "folder", "the path of the ZIP that Instagram gave you"
    ),
    "hub": Source(
        "helpers.scrape.hub_dataset", "dataset_id", "a hub id such as name/dataset, or a folder"
    ),
}
CAPTIONERS = {
    "sidecar": Captioner("helpers.caption.sidecar"),
    "claude": Captioner("helpers.caption.claude.captioner", model="model"),
    "blip": Captioner("helpers.caption.blip", model="blip_model"),
}
