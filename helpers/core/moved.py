"""Alias the import paths and commands of version 0.2.0 to today's modules, so that saved notebooks keep working.

The first use prints a line that says what to open instead.
"""

import sys
from importlib import import_module
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

HELPERS = Path(__file__).parent.parent
MOVED = {
    "about": "host.about",
    "colab": "host.repository",
    "device": "host.device",
    "pictures": "figures.pictures",
    "records": "core.records",
    "run": "core.run",
    "setup": "host.setup",
    "store": "core.files",
    "suffix": "core.suffix",
    "trials": "figures.trials",
    "scrape.intake": "scrape.ingest",
    "scrape.login": "scrape.instagram.login",
    "dataset.card": "dataset.dataset_card",
    "dataset.publish": "dataset.push_dataset",
    "train.loop": "train.trainer",
    "train.plan": "train.resources",
    "train.promote": "train.sweep.promote",
    "inference.card": "inference.share.model_card",
    "inference.export": "inference.share.one_file",
    "inference.publish": "inference.share.push_model",
    "inference.sample": "inference.draw.sampler",
    "inference.widget": "inference.draw.prompt_box",
}
RENAMED = {  # names that did not move with their module
    "colab.keep": "mirror.sync.sync",
    "colab.restore": "mirror.sync.restore",
    "scrape.intake.find": "scrape.ingest.list_items",
    "scrape.intake.take": "scrape.ingest.ingest",
    "inference.sample.Studio": "inference.draw.sampler.Sampler",
    "inference.sample.requests_of": "inference.draw.sampler.make_requests",
    "inference.sample.settings_of": "inference.draw.sampler.make_config",
    "train.loop.verify_model": "train.finish.verify_model",
    "train.plan.plan": "train.resources.estimate_resources",
}
NOTICE = (
    "this notebook is a copy of an older version, and still works; today's is in notebooks/ of the repository, "
    "with {new} in place of {old}"
)
_reported: list[str] = []


class _Moved(ModuleType):
    """A module under an old name, which forwards each attribute to the module under the new name."""

    __path__: list[str] = []  # or `python -m` warns

    def __init__(self, old: str, new: str) -> None:
        super().__init__(f"helpers.{old}", f"Moved to helpers.{new}.")
        self.__spec__ = spec_from_file_location(
            self.__name__, HELPERS / f"{new.replace('.', '/')}.py"
        )
        self._old, self._new = old, new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        place = RENAMED.get(f"{self._old}.{name}", f"{self._new}.{name}")
        module, _, attribute = place.rpartition(".")
        found = getattr(import_module(f"helpers.{module}"), attribute)
        if not _reported:
            _reported.append(self._old)
            print(NOTICE.format(old=self.__name__, new=f"helpers.{module}"))
        return found


def register() -> None:
    """Register the old module names in sys.modules, without loading any module."""
    for old, new in MOVED.items():
        sys.modules.setdefault(f"helpers.{old}", _Moved(old, new))
