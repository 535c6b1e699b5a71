"""What an issue needs: `python -m helpers.about [RUN]` prints versions, the machine and a run's settings.

Nothing in it names a person, a place or a key: settings that could are left out, and home folders are shortened.
"""

import importlib.metadata
import platform
import sys
from dataclasses import fields
from pathlib import Path

from helpers.config import CONFIGS
from helpers.errors import RunError
from helpers.run import STAGES, Run
from helpers.store import read_json

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "huggingface_hub"),
    *("pandas", "pillow", "ipywidgets", "papermill", "instaloader", "anthropic", "xformers"),
)
PLAIN = (int, float, bool)  # a text may be an account, a path or a prompt
TOLD = ("source", "captioner", "model", "mode", "preset", "method", "mixed_precision", "optimizer")


def about(run: Run | None = None) -> str:
    """Versions, machine and, of a run, the settings that are not the default."""
    lines = [
        f"annalaura-diffusion {_own_version()}, Python {platform.python_version()}, {sys.platform}",
        ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        _machine(),
    ]
    return "\n".join(lines + ([_settings(run, stage) for stage in STAGES] if run else []))


def _own_version() -> str:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    return text.split('version = "', 1)[1].split('"', 1)[0]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _machine() -> str:
    try:
        from helpers.device import pick_device

        return "; ".join(pick_device().reasons)
    except Exception as error:  # whatever keeps torch from loading is what the issue is about
        words = f"{type(error).__name__}: {error}".replace(str(Path.home()), "~")
        return "no device: " + " ".join(words.split())


def _settings(run: Run, stage: str) -> str:
    path = run.config(stage)
    if not path.is_file():
        return f"{stage}: has not run"
    defaults = {f.name: f.default for f in fields(CONFIGS[stage])}
    changed = {
        name: value
        for name, value in read_json(path).items()
        if value != defaults.get(name) and (type(value) in PLAIN or name in TOLD)
    }
    return (
        f"{stage}: {', '.join(f'{name}={value}' for name, value in changed.items()) or 'defaults'}"
    )


if __name__ == "__main__":
    try:
        print(about(Run(sys.argv[1]) if len(sys.argv) > 1 else None))
    except RunError as error:
        sys.exit(str(error))
