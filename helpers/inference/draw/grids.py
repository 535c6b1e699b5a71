"""Grids of pictures in which one setting changes by row and another by column, all else and the seed being equal."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import replacing_file, write_json
from helpers.figures.pictures import evenly, grid, open_rgb
from helpers.inference.draw.request import Request
from helpers.inference.draw.sampler import Sampler

log = logging.getLogger(__name__)
GUIDANCE = (1.0, 2.5, 4.0, 7.0, 10.0)
STEPS = (4, 8, 12, 16, 24, 32)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MAX_PROMPTS = 6
CELL_PX = 160


@dataclass(frozen=True)
class Grid:
    """What a grid shows: a request for each of its pictures, row by row."""

    name: str
    rows: list[str]
    columns: list[str]
    requests: list[Request]
    best_row: int | None = None  # that of the checkpoint with the lowest validation loss


def plan_grids(
    config: InferenceConfig, requests: Sequence[Request], sampler: Sampler
) -> Iterator[Grid]:
    """Yield the grids that the config asks for. Prompts and seeds are those of `requests`, one of each prompt."""
    firsts = list({request.prompt: request for request in reversed(requests)}.values())[::-1]
    firsts = evenly(firsts, MAX_PROMPTS)
    for name in config.grids:
        yield PLANS[name](firsts, sampler)


def checkpoints_by_prompts(prompts: Sequence[Request], sampler: Sampler) -> Grid:
    """Return a grid of the base, every checkpoint and the model, whose best checkpoint is marked."""
    verdict, exported = sampler.trained.verdict, sampler.trained.exported_step
    steps = {int(name[5:]): name for name in sampler.weights.steps() if _is_whole(sampler, name)}
    steps.pop(exported, None)  # it would be drawn twice
    rows = ["base model", *(f"step {step}" for step in steps), f"the model, of step {exported}"]
    at = [*steps, exported]
    best_row = 1 + at.index(best) if (best := verdict["best_step"]) in at else None
    if best_row is not None:
        rows[best_row] += ": the lowest validation loss"
    changes = [{"model": name} for name in ("base", *steps.values(), "tuned")]
    return _by_prompts("checkpoints x prompts", rows, changes, prompts, best_row)


def _is_whole(sampler: Sampler, name: str) -> bool:
    try:
        sampler.weights.hash_of(name)
    except RunError as error:
        log.warning("a grid leaves %s out: %s", name, error)
        return False
    return True


def strength_by_prompts(
    prompts: Sequence[Request], sampler: Sampler, strengths: Sequence[float] = STRENGTHS
) -> Grid:
    """Return a grid of how far the weights go from the base's (0) to the model's (1); of a LoRA, its scale."""
    kind = "LoRA strength" if sampler.method == "lora" else "strength"
    rows = [f"{kind} {strength:g}" for strength in strengths]
    changes = [{"strength": strength} for strength in strengths]
    return _by_prompts("strength x prompts", rows, changes, prompts)


def guidance_by_steps(
    prompts: Sequence[Request],
    _sampler: Sampler,
    guidance: Sequence[float] = GUIDANCE,
    steps: Sequence[int] = STEPS,
) -> Grid:
    """Return a grid of the first prompt at each guidance scale and number of steps."""
    first = prompts[0]
    requests = [
        replace(first, guidance_scale=scale, num_inference_steps=count)
        for scale in guidance
        for count in steps
    ]
    rows, columns = [f"guidance {g:g}" for g in guidance], [f"{s} steps" for s in steps]
    return Grid("guidance x steps", rows, columns, requests)


PLANS = {
    "checkpoints x prompts": checkpoints_by_prompts,
    "guidance x steps": guidance_by_steps,
    "strength x prompts": strength_by_prompts,
}


def _by_prompts(
    name: str,
    rows: list[str],
    changes: list[dict[str, object]],
    prompts: Sequence[Request],
    best_row: int | None = None,
) -> Grid:
    requests = [replace(request, **change) for change in changes for request in prompts]
    return Grid(name, rows, [request.prompt for request in prompts], requests, best_row)


def save_grid(sampler: Sampler, plan: Grid) -> Image.Image:
    """Return a grid as one labelled picture, whose pictures are in samples/, and save it in grids/ for the report."""
    album, suffix = sampler.album, sampler.suffix
    paths = [album.path(sampler.settings(request)) for request in plan.requests]
    columns = [column.removesuffix(suffix) for column in plan.columns]
    images = [open_rgb(path) for path in paths]
    sheet = grid(images, len(columns), columns, plan.rows, CELL_PX, marked_row=plan.best_row)
    path = sampler.run.grids / f"{plan.name.replace(' ', '-')}.png"
    with replacing_file(path) as tmp_path:
        sheet.save(tmp_path)
    told = {k: v for k, v in asdict(plan).items() if k != "requests"} | {"columns": columns}
    told |= {"model": sampler.model_hash, "seeds": [request.seed for request in plan.requests]}
    write_json(path.with_suffix(".json"), told | {"pictures": [path.name for path in paths]})
    return sheet
