"""Grids that go on after a kill, and blind checks: the pictures, the picks, and both in the report."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.figures.pictures import MARK, grid
from helpers.inference.draw.grids import (
    GUIDANCE,
    STEPS,
    guidance_by_steps,
    plan_grids,
    save_grid,
)
from helpers.inference.draw.sampler import Sampler, draw_missing, make_requests
from helpers.inference.judge.blind import (
    ART,
    MODEL,
    comparisons,
    count_picks,
    draw_pair,
    make_pairs,
    read_picks,
    save_pick,
    wilson,
)
from helpers.inference.judge.blind_box import BlindBox
from helpers.inference.page import figures_table
from helpers.inference.report import report, update_report
from tests.conftest import ROOT
from tests.test_inference_draw import strict_checker

GIVEN = {"run": "pictures", "prompts": "a cat\na dog\na house", "num_inference_steps": 2}
GIVEN |= {"judged_samples": 8, "probed_captions": 2, "blind_pairs": 4}
CONFIG = InferenceConfig(**GIVEN)


@pytest.fixture
def run(trained_run):
    return trained_run


@pytest.fixture
def workplace_code():
    """The environment of a process that finds the code from another folder."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def sampler(run):
    return Sampler(run)


def plans(sampler, *names, **given):
    config = InferenceConfig(**GIVEN | given, grids=names)
    return list(plan_grids(config, make_requests(config, sampler), sampler))


def fill(sampler, plan):
    return list(draw_missing(sampler, plan.requests, 8))


def test_checkpoints_by_prompts_have_equal_seeds_and_mark_the_best(sampler):
    sampler.trained.verdict["best_step"] = 2
    (plan,) = plans(sampler, "checkpoints x prompts", num_images=2)
    assert [r.model for r in plan.requests[::3]] == ["base", "step-000002", "tuned"]
    assert [r.seed for r in plan.requests] == [1000, 1002, 1004] * 3
    assert plan.best_row == 1 and plan.rows[1] == "step 2: the lowest validation loss"
    assert plan.rows[2] == "the model, of step 4"
    sampler.trained.verdict["best_step"] = 4
    assert plans(sampler, "checkpoints x prompts")[0].best_row == 2  # the model is that step's
    sampler.trained.verdict["best_step"] = 3  # its checkpoint was deleted
    assert plans(sampler, "checkpoints x prompts")[0].best_row is None


def test_strength_goes_from_the_base_and_guidance_and_steps_are_as_labelled(sampler):
    strength, steps = plans(sampler, "strength x prompts", "guidance x steps")
    assert strength.rows[0] == "strength 0" and strength.requests[0].strength == 0
    assert len(steps.rows) * len(steps.columns) == len(steps.requests) == 30
    for number, request in enumerate(steps.requests):
        assert steps.rows[number // 6] == f"guidance {request.guidance_scale:g}"
        assert steps.columns[number % 6] == f"{request.num_inference_steps} steps"
        assert (request.prompt, request.seed) == (steps.requests[0].prompt, 1000)


def test_an_unknown_grid_is_refused_with_those_there_are():
    with pytest.raises(
        RunError, match=r"grids has 'steps x guidance': there are checkpoints x prompts, guidance"
    ):
        InferenceConfig(**GIVEN, grids=("steps x guidance",))
    assert InferenceConfig(**GIVEN, grids="guidance x steps").grids == ("guidance x steps",)


def test_a_grid_goes_on_after_a_kill_without_drawing_a_picture_twice(run, sampler):
    requests = make_requests(CONFIG, sampler)
    plan = guidance_by_steps(requests, sampler, GUIDANCE, range(1, 1 + len(STEPS)))
    drawing = draw_missing(sampler, plan.requests, 8)
    first = [next(drawing) for _ in range(17)]
    drawing.close()
    kept = {path: path.stat().st_mtime_ns for path in run.samples.glob("*.png")}
    assert len(kept) == 17 == len(set(first))
    again = Sampler(run)  # of another process
    drawn, draw = [], again.draw
    again.draw = lambda requests, *given: drawn.extend(requests) or draw(requests, *given)
    paths = fill(again, plan)
    assert drawn == plan.requests[17:] and paths[:17] == first and len(set(paths)) == 30
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    save_grid(again, plan)
    drawn.clear()
    assert fill(again, plan) == paths and not drawn


DRAW = """
from helpers.config import InferenceConfig
from helpers.core.run import Run
from helpers.inference.draw.grids import GUIDANCE, guidance_by_steps
from helpers.inference.draw.sampler import Sampler, draw_missing, make_requests

sampler = Sampler(Run("pictures"))
requests = make_requests(InferenceConfig(run="pictures", prompts="a cat"), sampler)
for path in draw_missing(sampler, guidance_by_steps(requests, sampler, GUIDANCE, range(1, 7)).requests, 8):
    print(path, flush=True)
"""


def test_a_grid_of_5_x_6_survives_sigkill(run, workplace_code):
    def begin():
        return subprocess.Popen(
            [sys.executable, "-c", DRAW], stdout=subprocess.PIPE, text=True, env=workplace_code
        )

    with begin() as killed:
        told = [killed.stdout.readline().strip() for _ in range(11)]
        killed.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in run.samples.glob("[!.]*.png")}
    whole = {Path(line).name for line in told}
    assert whole <= kept.keys() and len(kept) in (11, 12)  # the kill may have met the next one
    with begin() as again:
        paths = again.stdout.read().split()
    assert again.returncode == 0 and len(set(paths)) == 30 and paths[:11] == told
    left = {path.name: path.stat().st_mtime_ns for path in run.samples.glob("[!.]*.png")}
    assert len(left) == 30 and {name: left[name] for name in whole} == {
        name: kept[name] for name in whole
    }


def test_a_grid_is_one_labelled_picture_of_the_samples(run, sampler):
    (plan,) = plans(sampler, "checkpoints x prompts")
    paths = fill(sampler, plan)
    sheet = save_grid(sampler, plan)
    with Image.open(run.grids / "checkpoints-x-prompts.png") as saved:
        assert np.array_equal(saved, sheet)
    told = json.loads((run.grids / "checkpoints-x-prompts.json").read_text())
    assert told["pictures"] == [path.name for path in paths] and len(set(paths)) == 9
    assert told["columns"] == ["a cat", "a dog", "a house"] and told["model"] == sampler.model_hash


def test_a_marked_row_is_framed_and_no_other():
    cells = [Image.new("RGB", (8, 8), "white")] * 6
    colour = tuple(bytes.fromhex(MARK[1:]))
    plain, marked = (
        np.asarray(grid(cells, 2, row_titles=["a", "b", "c"], cell_px=40, marked_row=row))
        for row in (None, 1)
    )
    is_mark = (marked == colour).all(-1)
    height = len(plain) // 3
    assert not (plain == colour).all(-1).any()
    assert is_mark[height : 2 * height + 8].any() and not is_mark[: height - 8].any()
    assert not is_mark[2 * height + 10 :].any()


# blind checks


def test_the_pairs_are_the_same_each_time_and_the_sides_tell_nothing(sampler):
    assert comparisons(sampler) == [ART, "base", "step-000002"]  # step 4 is the model itself
    many = InferenceConfig(**GIVEN | {"blind_pairs": 60})
    pairs = make_pairs(many, sampler, "base")
    assert pairs == make_pairs(many, sampler, "base") and len({p.id for p in pairs}) == 60
    left = sum(pair.sides[0] == MODEL for pair in pairs)
    assert 15 < left < 45 and all(set(p.sides) == {MODEL, "base"} for p in pairs)
    assert [p.request.seed for p in pairs] != sorted(p.request.seed for p in pairs)


def test_each_held_out_picture_is_in_one_pair_with_the_artists(run, sampler):
    shown = sampler.trained.pictures("validation")
    many = InferenceConfig(**GIVEN | {"blind_pairs": 20})
    pairs = make_pairs(many, sampler, ART)
    assert sorted(pair.art for pair in pairs) == [path for path, _ in shown]
    box = BlindBox(sampler, many, lambda: None)
    box.begin.click()
    assert box.message.value.startswith(f"1 of {len(shown)}. Which one is the artist's own?")
    press(box, *[0] * len(shown))
    found = count_picks(run, sampler.model_hash)[ART]
    assert f"picked in {found['picked']} of {len(shown)}: " in box.message.value
    assert (
        "That is how often you took the model's picture for the artist's; at" in box.message.value
    )


@pytest.mark.parametrize("against", [ART, "base", "step-000002"])
def test_both_sides_are_what_they_are_said_to_be(sampler, against):
    pair = make_pairs(CONFIG, sampler, against)[0]
    shown = dict(zip(pair.sides, draw_pair(sampler, pair), strict=True))
    assert np.array_equal(shown[MODEL], sampler.draw([pair.request])[0])
    assert shown[MODEL].size == shown[against].size
    if against == ART:
        captions = dict(sampler.trained.pictures("validation"))
        assert sampler.styled(captions[pair.art]) == pair.request.prompt


@pytest.mark.parametrize(
    "count, total, low, high",  # Newcombe 1998, table I
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(count, total, low, high):
    found = wilson(count, total)
    assert found.value == count / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def press(box, *sides):
    for side in sides:
        (box.left if side == 0 else box.right).click()


def test_a_person_picks_leaves_and_goes_on_where_it_was_left(run, sampler):
    box = BlindBox(sampler, CONFIG, lambda: None)
    box.against.value = "base"
    box.begin.click()
    assert box.message.value.startswith(
        "1 of 4. Which one is closer to the artist's pictures above?"
    )
    wanted = [pair.sides.index(MODEL) for pair in box.waiting]
    press(box, wanted[0], 1 - wanted[1])
    assert len(run.blind.read_text().splitlines()) == 2
    with run.blind.open("a") as file:
        file.write('{"id": "cut by a ki')
    again = BlindBox(Sampler(run), CONFIG, lambda: None)  # after a restart of the kernel
    again.against.value = "base"
    assert again.message.value == "2 of 4 pairs are done: Begin goes on."
    again.begin.click()
    assert again.message.value.startswith("3 of 4.")
    press(again, *wanted[2:])
    found = count_picks(run, sampler.model_hash)["base"]
    assert (found["picked"], found["pairs"], found["value"]) == (3, 4, 0.75)
    assert (
        "picked in 3 of 4: 75% (30% to 95%)" in again.message.value and not again.pictures.children
    )
    press(again, 0, 1)  # nothing waits
    assert count_picks(run, sampler.model_hash)["base"] == found
    assert count_picks(run, "another model's hash") == {}


@pytest.mark.parametrize(
    "row",
    [
        b"{}",
        b"[1}",
        b"[1]",
        b"\xff\xfe}",
        b'{"id": "\xe9"}',
        b"[" * 100_000,
        b'{"id": "a", "model": "MODEL", "against": "base"}',
        b'{"id": "a", "model": "MODEL", "against": "a neighbour", "picked": "tuned"}',
        b'{"id": ["a"], "model": "MODEL", "against": ["base"], "picked": "tuned"}',
    ],
)
def test_a_line_that_is_no_pick_is_passed_over(run, sampler, row):
    for pair in make_pairs(CONFIG, sampler, "base")[:2]:
        save_pick(sampler, pair, MODEL)
    first, second = run.blind.read_bytes().splitlines(keepends=True)
    run.blind.write_bytes(
        first + row.replace(b"MODEL", sampler.model_hash.encode()) + b"\n" + second
    )
    box = BlindBox(sampler, CONFIG, lambda: None)
    box.against.value = "base"
    assert box.message.value == "2 of 4 pairs are done: Begin goes on."
    found = count_picks(run, sampler.model_hash)
    assert found.keys() == {"base"} and found["base"]["picked"] == 2


def test_pairs_that_the_safety_checker_blocked_are_told_and_not_counted(run):
    strict_checker(run.model)
    sampler = Sampler(run)
    box = BlindBox(sampler, CONFIG, lambda: None)
    box.against.value = "base"
    box.begin.click()
    assert box.message.value.strip() == "The safety checker blocked pictures of 4 pairs."
    assert count_picks(run, sampler.model_hash) == {} and not box.pictures.children
    assert {row["picked"] for row in read_picks(run, sampler.model_hash)} == {"blocked"}


def test_no_word_on_the_page_tells_which_is_which(sampler):
    box = BlindBox(sampler, CONFIG, lambda: None)
    box.against.value = ART
    box.begin.click()
    cells = box.pictures.children[-1].children
    assert [cell.children[1].description for cell in cells] == ["Left", "Right"]
    sizes = {Image.open(io.BytesIO(cell.children[0].value)).size for cell in cells}
    assert sizes == {(256, 256)}


def test_a_picture_that_cannot_be_drawn_is_told_and_no_pick_is_lost(run, sampler, tmp_path):
    sampler.weights.base_model = str(tmp_path / "gone")
    box = BlindBox(sampler, CONFIG, lambda: None)
    box.against.value = "base"
    box.begin.click()
    assert "put back the base model" in box.message.value and not run.blind.exists()


# the report


def test_grids_and_picks_come_into_the_report_without_drawing_it_again(run, sampler):
    assert update_report(run) == {}  # there is none yet
    figures = report(CONFIG, sampler)
    assert figures["grids"] == [] and figures["blind"] == {}
    page = run.report_html.read_text()
    assert "Side by side" not in page and "blindly" not in page
    (plan,) = plans(sampler, "checkpoints x prompts")
    fill(sampler, plan)
    save_grid(sampler, plan)
    for pair in make_pairs(CONFIG, sampler, ART):
        save_pick(sampler, pair, MODEL)
    sampler.draw = None  # nothing is drawn
    figures = report(CONFIG, sampler)
    assert figures == json.loads(run.report_json.read_text()) == update_report(run)
    assert figures["blind"]["art"] | {"low": 0, "high": 0} == {
        "picked": 3,
        "pairs": 3,
        "value": 1.0,
        "low": 0,
        "high": 0,
    }
    assert figures["grids"][0]["rows"] == plan.rows
    changed = run.report_html.read_text()
    assert "3 of 3: 100% (44% to 100%)" in changed and "Checkpoints × prompts" in changed
    assert without(changed) == without(page)
    table = figures_table(figures).to_html()
    assert "blind check against held-out art" in table
    assert re.search(r"#\w+ th {\s*text-align: left", table)
    modified = run.report_html.stat().st_mtime_ns
    update_report(run)
    assert run.report_html.stat().st_mtime_ns == modified


def without(page):
    before, _, rest = page.partition("<!-- side by side -->")
    return before, rest.partition("<!-- end of side by side -->")[2]


def test_another_grid_or_number_of_pairs_does_not_make_the_report_again(run, sampler):
    report(CONFIG, sampler)
    sampler.draw = None
    report(InferenceConfig(**GIVEN | {"blind_pairs": 8}, grids=("guidance x steps",)), sampler)
