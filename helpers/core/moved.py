"""Old import paths: a notebook copied to somebody's Drive clones today's helpers, and must not break.

What version 0.2.0's notebooks import, and the commands that people have written down (`python -m helpers.colab`),
are found under their old names; the first use says in a line what to open instead.
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
    "train.promote": "train.sweep.promote",
    "inference.card": "inference.share.model_card",
    "inference.export": "inference.share.one_file",
    "inference.publish": "inference.share.push_model",
    "inference.sample": "inference.draw.sampler",
    "inference.widget": "inference.draw.prompt_box",
}
RENAMED = {  # names that are not where their module has moved to
    "colab.keep": "mirror.sync.sync",
    "colab.restore": "mirror.sync.restore",
    "inference.sample.Studio": "inference.draw.sampler.Sampler",
    "inference.sample.requests_of": "inference.draw.sampler.make_requests",
    "inference.sample.settings_of": "inference.draw.sampler.make_config",
    "train.loop.verify_model": "train.finish.verify_model",
}
TOLD = (
    "this notebook is a copy of an older version, and works on; today's is in notebooks/ of the repository, "
    "with {new} in place of {old}"
)
_told: list[str] = []


class _Moved(ModuleType):
    """Stands under a module's old name, and has what the new one has."""

    __path__: list[str] = []  # so that `python -m` takes it without a warning

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
        if not _told:
            _told.append(self._old)
            print(TOLD.format(old=self.__name__, new=f"helpers.{module}"))
        return found


def register() -> None:
    """Have the old names found; nothing is loaded by it."""
    for old, new in MOVED.items():
        sys.modules.setdefault(f"helpers.{old}", _Moved(old, new))
