"""The five notebooks on a small SDXL by hand, as it were: `python -m tests.browser.sdxl`.

A folder of photographs with captions, `t4-xl` on a random SDXL of a million parameters, and 05's prompt box. Fails on a
cell or a console with an error; leaves pictures of every notebook in build/browser/.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from helpers.core.run import STAGES, Run, notebook_name
from tests.bases import make_sdxl
from tests.browser.walk import draw_in_the_prompt_box, jupyterlab, picture_of, run_notebook
from tests.conftest import photograph

RUN = "sdxl-by-hand"


def typed(folder: Path, base: Path) -> dict[str, str]:
    """What an artist would type in, by what stands there."""
    return {
        'run = \\"demo\\"': f'run = \\"{RUN}\\"',
        'source = \\"demo\\"': 'source = \\"folder\\"',
        'folder = \\"\\"': f'folder = \\"{folder}\\"',
        'preset = \\"demo\\"': 'preset = \\"t4-xl\\"',
        "base_model = None": f'base_model = \\"{base}\\"',
        "max_steps = None": "max_steps = 4",
        "resolution_px = None": "resolution_px = 64",
        "num_inference_steps = None": "num_inference_steps = 2",
    }


MORE = {  # settings that leave a small model's walk short
    "train": '{\\"num_inference_steps\\": 2, \\"validation_pairs\\": 8}',
    "inference": '{\\"judged_samples\\": 8, \\"probed_captions\\": 0}',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--limit-s", type=float, default=900)
    args = parser.parse_args()
    shutil.rmtree(Run(RUN).folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        base = make_sdxl(Path(work) / "sdxl")
        for i in range(16):
            path = photograph(Path(work) / f"pictures/{i:02d}.jpg", i, size=(160, 120))
            path.with_suffix(".txt").write_text(f"a picture of place number {i}")
        words, copies = typed(path.parent, base), []
        try:
            with jupyterlab(args.chromium, {"width": 1280, "height": 1000}) as (page, tree):
                for stage in STAGES:
                    text = Path(f"notebooks/{notebook_name(stage)}.ipynb").read_text("utf-8")
                    more = {"more = {}": f"more = {MORE[stage]}"} if stage in MORE else {}
                    for before, after in (words | more).items():
                        text = text.replace(before, after, 1)
                    copies.append(copy := Path(f"notebooks/{RUN}-{stage}.ipynb"))
                    copy.write_text(text, encoding="utf-8")
                    run_notebook(page, f"{tree}/notebooks/{copy.name}?reset", args.limit_s)
                    if stage == "inference":
                        draw_in_the_prompt_box(page)
                    picture_of(page, copy.stem)
                    print(f"{copy.stem}: ran without an error", flush=True)
        finally:
            for copy in copies:
                copy.unlink()


if __name__ == "__main__":
    main()
