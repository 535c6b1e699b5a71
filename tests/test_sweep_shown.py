"""A sweep's table and plots, as they are read."""

import random

import pytest

from helpers.core.files import write_json
from helpers.figures.trials import (
    MAX_LABELS,
    TrialRow,
    plot_trials,
    read_trials,
    spread_labels,
    stack_previews,
    views,
)
from tests.conftest import photograph

REASON = "its training diverged at step 12 of 300, after the warm-up had ended: lower learning_rate"


def rows_of(count, params=5):
    names = ("learning_rate", "rank", "gradient_accumulation_steps", "lora_targets", "seed")[
        :params
    ]
    return [
        TrialRow(
            i,
            "complete" if i else "pruned",
            {name: 1e-4 + i * 1e-7 for name in names},
            0.12 + i * 1e-6,
            [(0, 0.2), (100, 0.12 + i * 1e-6)],
            *(100, 800, 60.0, 0.0),
            "" if i else REASON,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 8, MAX_LABELS, 40])
def test_labels_stand_apart_in_order_and_near_their_place(count):
    source = random.Random(count)
    for heights in (
        [0.5] * count,
        [1.0] * count,
        [0.0] * count,
        sorted(source.random() for _ in range(count)),
    ):
        placed = spread_labels(heights)
        gaps = [b - a for a, b in zip(placed, placed[1:], strict=False)]
        room = 1 / max(count - 1, 1)
        assert min(gaps, default=1) > min(0.06, room) - 1e-9
        assert placed[0] > -1e-9 and placed[-1] < 1 + 1e-9
        assert max(abs(a - b) for a, b in zip(heights, placed, strict=True)) <= 0.06 * count
    assert spread_labels([0.1, 0.5, 0.9]) == [0.1, 0.5, 0.9]


def test_a_reason_is_shown_to_its_end_where_the_setting_is_named(dataset):
    write_json(dataset.sweep_table, [vars(row) for row in rows_of(3)])
    table, plots = views(dataset)[:2]
    assert REASON in table.to_html() and plots.size == plot_trials(read_trials(dataset)).size


def test_the_title_of_a_trial_is_not_cut_at_its_pictures_edge(dataset):
    rows = rows_of(1)
    photograph(dataset.trial(0).preview(4), 1, size=(300, 100))
    narrow = stack_previews(dataset, rows_of(1, params=1))
    assert stack_previews(dataset, rows).height > narrow.height and narrow.width == 300
