"""The notebooks' explaining figures: assets/figures/NAME.png, each drawn by the function of its name.

`python -m tools.figures` draws all, `python -m tools.figures 04_lora 04_batch` these. What is shown is computed: by
the demo's painter, the tiny base and the functions that the notebooks call. `FROM_A_RUN` also need a trained demo.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.figures import caption, dataset, inference, scrape, stages, train
from tools.figures.sheet import Sheet

FIGURES_DIR = Path("assets/figures")

FIGURES: dict[str, Callable[[], Sheet]] = {
    "01_stages": partial(stages.stages, 1),
    "01_carousel": scrape.carousel,
    "01_border": scrape.border,
    "01_damaged": scrape.damaged,
    "01_permission": scrape.permission,
    "02_stages": partial(stages.stages, 2),
    "02_caption": caption.good_and_bad,
    "02_tokens": caption.tokens,
    "02_cost": caption.cost,
    "03_stages": partial(stages.stages, 3),
    "03_reasons": dataset.reasons,
    "03_split": dataset.split,
    "03_suffix": dataset.suffix,
    "04_stages": partial(stages.stages, 4),
    "04_noise": train.noise,
    "04_lora": train.lora,
    "04_batch": train.batch,
    "04_curves": train.curves,
    "04_snr": train.snr,
    "05_stages": partial(stages.stages, 5),
    "05_steps": inference.steps,
    "05_guidance": inference.guidance,
    "05_same_seed": inference.same_seed,
    "05_line": inference.line,
}
FROM_A_RUN = ("03_suffix", "05_same_seed", "05_line")
