"""Find a base model's licence and public name, for the cards of models that are trained from it."""

import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from yaml import YAMLError

from helpers.models.families import Family

NAMES = {
    "creativeml-openrail-m": "CreativeML OpenRAIL-M",
    "openrail++": "CreativeML Open RAIL++-M",
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SAFE = re.compile(r"[\w .+/:()#-]{1,200}")  # what is copied from another model's card


@dataclass(frozen=True)
class Licence:
    """A licence as in the Hub's model cards: a licence id, or the id `other` with a name and a link."""

    license: str
    license_name: str | None = None
    license_link: str | None = None

    @property
    def name(self) -> str:
        """The licence's usual name, such as Apache 2.0."""
        return self.license_name or NAMES.get(self.license, self.license)

    @property
    def restricts_use(self) -> bool:
        return "openrail" in self.license

    def fields(self) -> dict[str, str]:
        """Return the licence fields of a model card's header."""
        return {name: value for name, value in asdict(self).items() if value}


def licence_of(base_model: str, family: Family) -> Licence:
    """Return a base model's licence by its model card, or else by its Stable Diffusion version.

    Stable Diffusion 1 is under CreativeML OpenRAIL-M and 2 under Open RAIL++-M; both require that their use-based
    restrictions are passed on. Never raises, since a missing card must not end a training.
    """
    return stated_licence(base_model) or Licence(family.LICENCE)


def stated_licence(model: str) -> Licence | None:
    """Return the licence on a model's card, or None if there is no card, or it says none. Never raises."""
    with suppress(OSError, ValueError, YAMLError, HfHubHTTPError, HFValidationError):
        card = metadata_load(_card(model)) or {}
        if licence := _text(card, "license"):
            return Licence(licence, _text(card, "license_name"), _text(card, "license_link"))
    return None


def _card(base_model: str) -> Path:
    path = Path(base_model).expanduser()
    if path.exists():
        return (path if path.is_dir() else path.parent) / "README.md"
    return Path(hf_hub_download(base_model, "README.md"))


def _text(card: dict[str, Any], name: str) -> str | None:
    value = card.get(name)
    return value if isinstance(value, str) and SAFE.fullmatch(value) else None


def public_name(base_model: str) -> str:
    """Return a base model's hub id, or only the last part of a local path, since a person's folders are private."""
    is_local = Path(base_model).exists() or not HUB_ID.fullmatch(base_model)
    return Path(base_model).name if is_local else base_model
