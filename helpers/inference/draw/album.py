"""The pictures in samples/: each is a PNG with its settings inside, and the same settings as .json beside it.

Inside stand two texts: `settings`, JSON for this project, and `parameters`, the line that image programs write and that
most galleries read.
"""

import json
import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.core.errors import RunError
from helpers.core.files import read_json, replacing_file, write_json
from helpers.core.run import Run

Settings = dict[str, Any]
NEEDED = frozenset(
    "prompt seed negative_prompt num_inference_steps guidance_scale model scheduler width_px height_px "
    "strength model_hash".split()
)


class Album:
    """A run's samples/. Nothing in it is ever replaced: other settings under the same name get a number."""

    def __init__(self, run: Run, suffix: str) -> None:
        self.run, self.suffix = run, suffix

    def path(self, settings: Settings) -> Path:
        """Where a picture of these settings lies, or would lie."""
        prompt = settings["prompt"]
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().removesuffix(self.suffix)).strip("-")
        styled = "" if prompt.endswith(self.suffix) else "-plain"
        name = f"{words[:60]}{styled}-{settings['model']}-{settings['seed']}"
        for number in count(1):
            path = self.run.samples / f"{name}{'' if number == 1 else f'-{number}'}.png"
            beside = path.with_suffix(".json")
            if not beside.is_file() or read_json(beside) == settings:
                return path

    def has(self, settings: Settings) -> bool:
        """Whether this very picture, drawn by these weights, is there."""
        path = self.path(settings)
        return path.is_file() and path.with_suffix(".json").is_file()

    def save(self, settings: Settings, image: Image.Image) -> Path:
        """Write the PNG and the .json."""
        path = self.path(settings)
        with replacing_file(path) as beside:
            image.save(beside, pnginfo=_inside(settings))
        write_json(path.with_suffix(".json"), settings)
        return path

    def read(self, path: Path) -> Settings:
        """The settings inside a PNG. Raises RunError if it is none of ours."""
        try:
            with Image.open(path, formats=("PNG",)) as image:
                image.load()
                settings = json.loads(image.info["settings"])
        except (OSError, KeyError, ValueError) as error:
            raise RunError(
                f"{path} has no settings inside ({error}): give a PNG that 05 saved"
            ) from None
        if not isinstance(settings, dict) or not NEEDED <= settings.keys():
            raise RunError(f"{path} has settings of another program: give a PNG that 05 saved")
        return settings

    def newest(self, most: int) -> list[tuple[Path, Settings]]:
        """The last pictures saved and their settings, oldest first; pictures of other programs are passed over."""
        files = sorted(self.run.samples.glob("[!.]*.png"), key=lambda p: p.stat().st_mtime_ns)
        found: list[tuple[Path, Settings]] = []
        for path in reversed(files):
            with suppress(RunError):
                found.append((path, self.read(path)))
            if len(found) == most:
                break
        return found[::-1]


def _inside(settings: Settings) -> PngInfo:
    texts = PngInfo()
    texts.add_text("settings", json.dumps(settings))
    texts.add_text("parameters", parameters(settings))
    return texts


def parameters(settings: Settings) -> str:
    """The settings as one text, in the form that image programs share."""
    without = settings["negative_prompt"]
    return "\n".join(
        [
            settings["prompt"],
            *([f"Negative prompt: {without}"] if without else []),
            f"Steps: {settings['num_inference_steps']}, Sampler: {settings['scheduler']}, "
            f"CFG scale: {settings['guidance_scale']:g}, Seed: {settings['seed']}, "
            f"Size: {settings['width_px']}x{settings['height_px']}, "
            f"Model hash: {settings['model_hash'][:10]}",
        ]
    )
