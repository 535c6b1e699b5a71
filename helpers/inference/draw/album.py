"""Save and read the pictures in samples/. Each PNG embeds its settings, and a .json file repeats the settings.

Each PNG has two text chunks: `settings` is JSON, which this project reads; `parameters` is the text that other image
programs and most galleries read. Pictures that others were drawn from are in samples/inputs/.
"""

import io
import json
import os
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
from helpers.inference.draw.request import Request

Settings = dict[str, Any]


class Album:
    """The pictures in a run's samples/. Pictures with different settings never overwrite each other."""

    def __init__(self, run: Run, suffix: str) -> None:
        self.run, self.suffix = run, suffix

    def path(self, settings: Settings) -> Path:
        """Return the path where a picture with these settings is or would be saved.

        No file lies there that is not this picture's own, whole or damaged.
        """
        prompt = settings["prompt"]
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().removesuffix(self.suffix)).strip("-")
        styled = "" if prompt.endswith(self.suffix) else "-plain"
        name = f"{words[:60]}{styled}-{settings['model']}-{settings['seed']}"
        for number in count(1):
            path = self.run.samples / f"{name}{'' if number == 1 else f'-{number}'}.png"
            if self._is_free_for(settings, path):
                return path

    def _is_free_for(self, settings: Settings, path: Path) -> bool:
        files = path.with_suffix(".json"), path
        if not any(map(os.path.lexists, files)):
            return True
        is_own = False
        for file in files:
            found = _read_settings(file)
            if found not in (None, settings):
                return False
            is_own |= found == settings
        return is_own

    def has(self, settings: Settings) -> bool:
        """Return True if samples/ has a picture with exactly these settings, including the weights' hash.

        Both its files must be whole and agree.
        """
        path = self.path(settings)
        with suppress(RunError):
            return _read_settings(path.with_suffix(".json")) == settings == self.read(path)
        return False

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
        name = sha256(content := buffer.getvalue()).hexdigest()
        path = self.input_path(name)
        if not path.is_file() or path.read_bytes() != content:
            write_bytes(path, content)
        return name

    def read_input(self, name: str) -> Image.Image:
        """Return a picture of samples/inputs/. Raises RunError if it is missing or has changed."""
        path = self.input_path(name)
        is_name = re.fullmatch("[0-9a-f]{64}", name)  # and no path of others
        content = path.read_bytes() if is_name and path.is_file() else b""
        if sha256(content).hexdigest() != name:
            what = "has changed" if content else "is missing"
            raise RunError(f"{path} {what}, and a picture was drawn from it: put it back")
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
        return image

    def input_path(self, name: str) -> Path:
        return self.run.sample_inputs / f"{name}.png"

    def read(self, path: Path) -> Settings:
        """Return the settings embedded in a PNG. Raises RunError if it is damaged, or was not saved by `save`."""
        try:
            with Image.open(path, formats=("PNG",)) as image:
                image.verify()  # checksums to its end, which take less time than its pixels
                settings = json.loads(image.info["settings"])
        except Exception as error:  # Pillow raises all kinds for a damaged file
            raise RunError(
                f"{path} is damaged or has no settings inside ({error}): give a PNG that 05 saved"
            ) from None
        try:
            Request.read(settings)
        except (RunError, ValueError) as error:
            raise RunError(
                f"{path} has settings of another program ({error}): give a PNG that 05 saved"
            ) from None
        return settings

    def newest(self, max_count: int) -> list[tuple[Path, Settings]]:
        """Return the most recent `max_count` pictures as (path, settings), in chronological order.

        Damaged files and those of others are left out.
        """
        files = filter(Path.is_file, self.run.samples.glob("[!.]*.png"))
        found: list[tuple[Path, Settings]] = []
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            with suppress(RunError):
                found.append((path, self.read(path)))
            if len(found) == max_count:
                break
        return found[::-1]


def _read_settings(file: Path) -> Any:
    """Return the settings in a .json file or a PNG, {} if a PNG has none, or None if it is missing or damaged."""
    with suppress(Exception):  # Pillow raises all kinds for a damaged file
        if file.suffix == ".json":
            return read_json(file)
        with Image.open(file, formats=("PNG",)) as image:
            return json.loads(image.info.get("settings", "{}"))


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
