"""Print versions, the machine and a run's settings for a bug report: `python -m helpers.about [RUN]`.

Settings that could name a person, place or key are left out, and paths are cut to their last part.
"""

import argparse
import platform
import re
import sys
from dataclasses import fields
from pathlib import Path

from helpers.config import CONFIGS
from helpers.core.files import read_json
from helpers.core.process import run_command
from helpers.core.redact import redact
from helpers.core.run import STAGES, Run
from helpers.host.here import HOST
from helpers.host.setup import package_version

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "huggingface_hub"),
    *("pandas", "pillow", "ipywidgets", "papermill", "instaloader", "anthropic", "xformers"),
)
PLAIN = (int, float, bool)  # a text may be an account, a path or a prompt
PATH = re.compile(r"(?<!\w)/.*/")  # to the last / of the line: folder names may contain spaces
SHOWN = ("source", "captioner", "model", "mode", "preset", "method", "mixed_precision", "optimizer")


def about(run: Run | None = None) -> str:
    """Return the text for a bug report: versions, the machine, and a run's settings that differ from the defaults."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    own_version = project.split('version = "', 1)[1].split('"', 1)[0]
    lines = [
        f"annalaura-diffusion {own_version}, Python {platform.python_version()}, {sys.platform}, host {HOST.name}",
        ", ".join(f"{name} {package_version(name) or 'missing'}" for name in PACKAGES),
        _machine(),
    ]
    if run and run.folder.is_dir():
        lines += [_settings(run, stage) for stage in STAGES]
    elif run:
        lines.append("no run of that name is here")
    return redact("\n".join(lines))


def _machine() -> str:
    try:
        from helpers.host.device import pick_device

        return "; ".join(pick_device().reasons)
    except Exception as error:  # if torch does not load, that is what the report is about
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return f"no device: {PATH.sub('', words)}"


def _settings(run: Run, stage: str) -> str:
    path = run.config(stage)
    if not path.is_file():
        return f"{stage}: has not run"
    try:
        settings = read_json(path).items()
    except (OSError, ValueError, AttributeError):
        return f"{stage}: its settings cannot be read ({path.parent.name}/{path.name})"
    defaults = {f.name: f.default for f in fields(CONFIGS[stage])}
    shown = [
        f"{name}={PATH.sub('', str(value))}"
        for name, value in settings
        if value != defaults.get(name) and (type(value) in PLAIN or name in SHOWN)
    ]
    return f"{stage}: {', '.join(shown) or 'defaults'}"


def main() -> None:
    words = "Print what a bug report needs, and nothing that is private."
    parser = argparse.ArgumentParser(prog="python -m helpers.about", description=words)
    parser.add_argument("run", nargs="?", help="the run's name; its folder is runs/RUN")
    name = parser.parse_args().run
    print(about(Run(name) if name else None))


if __name__ == "__main__":
    run_command(main)
