"""Save and read the pictures in samples/. Each PNG embeds its settings, and a .json file repeats the settings.

Each PNG has two text chunks: `settings` is JSON, which this project reads; `parameters` is the text that other image
programs and most galleries read. Pictures that others were drawn from are in samples/inputs/.
"""

import io
import json
import re
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.core.errors import RunError
from helpers.core.files import read_json, replacing_file, write_bytes, write_json
from helpers.core.run import Run

Settings = dict[str, Any]
REQUIRED = frozenset(
    "prompt seed negative_prompt num_inference_steps guidance_scale model scheduler width_px height_px "
    "strength model_hash".split()
)


class Album:
    """The pictures in a run's samples/. Pictures with different settings never overwrite each other."""

    def __init__(self, run: Run, suffix: str) -> None:
        self.run, self.suffix = run, suffix

    def path(self, settings: Settings) -> Path:
        """Return the path where a picture with these settings is or would be saved."""
        prompt = settings["prompt"]
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().removesuffix(self.suffix)).strip("-")
        styled = "" if prompt.endswith(self.suffix) else "-plain"
        name = f"{words[:60]}{styled}-{settings['model']}-{settings['seed']}"
        for number in count(1):
            path = self.run.samples / f"{name}{'' if number == 1 else f'-{number}'}.png"
            settings_path = path.with_suffix(".json")
            if not settings_path.is_file() or read_json(settings_path) == settings:
                return path

    def has(self, settings: Settings) -> bool:
        """Return True if samples/ has a picture with exactly these settings, including the weights' hash."""
        path = self.path(settings)
        return path.is_file() and path.with_suffix(".json").is_file()

    def save(self, settings: Settings, image: Image.Image) -> Path:
        """Save a picture as PNG, and its settings as .json. Return the PNG's path."""
        path, chunks = self.path(settings), PngInfo()
        chunks.add_text("settings", json.dumps(settings))
        chunks.add_text("parameters", _format_parameters(settings))
        with replacing_file(path) as tmp_path:
            image.save(tmp_path, pnginfo=chunks)
        write_json(path.with_suffix(".json"), settings)
        return path

    def keep_input(self, image: Image.Image) -> str:
        """Save a picture to draw from, or a mask, in samples/inputs/. Return its name there, the file's SHA-256."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        name = sha256(buffer.getvalue()).hexdigest()
        if not (path := self.input_path(name)).is_file():
            write_bytes(path, buffer.getvalue())
        return name

    def read_input(self, name: str) -> Image.Image:
        """Return a picture of samples/inputs/. Raises RunError if it is missing or has changed."""
        path = self.input_path(name)
        content = path.read_bytes() if path.is_file() else b""
        if sha256(content).hexdigest() != name:
            what = "has changed" if content else "is missing"
            raise RunError(f"{path} {what}, and a picture was drawn from it: put it back")
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
        return image

    def input_path(self, name: str) -> Path:
        return self.run.sample_inputs / f"{name}.png"

    def read(self, path: Path) -> Settings:
        """Return the settings embedded in a PNG. Raises RunError if the PNG was not saved by `save`."""
        try:
            with Image.open(path, formats=("PNG",)) as image:
                image.load()
                settings = json.loads(image.info["settings"])
        except (OSError, KeyError, ValueError) as error:
            raise RunError(
                f"{path} has no settings inside ({error}): give a PNG that 05 saved"
            ) from None
        if not isinstance(settings, dict) or not REQUIRED <= settings.keys():
            raise RunError(f"{path} has settings of another program: give a PNG that 05 saved")
        return settings

    def newest(self, max_count: int) -> list[tuple[Path, Settings]]:
        """Return the most recent `max_count` pictures as (path, settings), in chronological order."""
        files = self.run.samples.glob("[!.]*.png")
        found: list[tuple[Path, Settings]] = []
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            with suppress(RunError):
                found.append((path, self.read(path)))
            if len(found) == max_count:
                break
        return found[::-1]


def _format_parameters(settings: Settings) -> str:
    negative, start = settings["negative_prompt"], settings.get("from_picture")
    has_strength = start and not start["controlnet"]
    # as other image programs read it
    return (
        settings["prompt"]
        + (f"\nNegative prompt: {negative}" if negative else "")
        + f"\nSteps: {settings['num_inference_steps']}, Sampler: {settings['scheduler']}, "
        f"CFG scale: {settings['guidance_scale']:g}, Seed: {settings['seed']}, "
        f"Size: {settings['width_px']}x{settings['height_px']}, "
        f"Model hash: {settings['model_hash'][:10]}"
        + (f", Denoising strength: {start['denoising_strength']:g}" if has_strength else "")
    )
