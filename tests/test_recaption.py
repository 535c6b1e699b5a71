"""Captions that other settings made are told and made again on request; nothing is lost or paid twice by a rerun."""

import json
import re

import pytest

from helpers.caption.ledger import (
    ask_again,
    caption_images,
    dry_run,
    edit,
    pending,
    price,
    problems,
)
from helpers.caption.review import review
from helpers.caption.stale import find_stale, stale_note
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.records import Caption, Post, append_row, caption_costs, read_rows
from tests.conftest import lines
from tests.loopback_claude import caption_of, numbered_picture
from tests.test_batch_captions import killed_at_polling
from tests.test_claude import answers, caption, config_of, make_run, name_of, rows_of

AGAIN = {"recaption": True}


def words_of(run):
    return {int(name[2:7]): row.caption for name, row in rows_of(run).items()}


# reruns


def test_a_rerun_with_the_same_list_of_images_pays_nothing_and_keeps_what_was_mended(claude):
    """As a cell that is run again: `posts` is what was pending before the first time."""
    run, config = make_run(6), config_of()
    posts = pending(config, run)
    assert (
        len(dry_run(config, run, posts)) == 3 and len(list(caption_images(config, run, posts))) == 3
    )
    edit(run, rows_of(run)[name_of(1)], "my words")
    before = run.captions.read_bytes()
    for _ in range(3):
        assert [row.caption for row in dry_run(config, run, posts)] == [
            caption_of(0), "my words", caption_of(2),
        ]  # fmt: skip
        assert list(caption_images(config, run, posts)) == []
    assert run.captions.read_bytes() == before and len(claude.bill) == 6
    assert price(config, run, posts) == "0 images by claude: $0"


def test_a_text_that_was_mended_stands_when_the_captioning_cell_is_run_again(workplace):
    run, config = make_run(3), CaptionConfig(run="art")
    for number in range(3):
        run.sidecar(name_of(number)).write_text(f"picture {number}")
    posts = pending(config, run)
    list(caption_images(config, run, posts))
    edit(run, rows_of(run)[name_of(0)], "my words")
    assert list(caption_images(config, run, posts)) == [] and words_of(run)[0] == "my words"
    run.sidecar(name_of(0)).write_text("other words beside it")
    assert list(caption_images(config, run, posts)) == [] and words_of(run)[0] == "my words"


def test_a_cell_that_was_stopped_goes_on_with_what_is_missing(claude):
    run, config = make_run(12), config_of(concurrency=1)
    posts = pending(config, run)
    cell = caption_images(config, run, posts)
    for _ in range(5):
        next(cell)
    cell.close()
    assert len(list(caption_images(config, run, posts))) + 5 == 12 == len(claude.bill)
    assert len(lines(run.captions)) == 12


def test_images_and_settings_of_another_run_are_refused_in_a_line(claude):
    run, config = make_run(3), config_of()
    posts = pending(config, run)
    other, others = make_run(3, name="other"), config_of(run="other")
    for call in (
        lambda: pending(config, other),
        lambda: price(config, other, posts),
        lambda: dry_run(config, other, posts),
        lambda: list(caption_images(config, other, posts)),
        lambda: ask_again(config, other, posts[0]),
        lambda: problems(config, other),
        lambda: review(config, other),
        lambda: stale_note(config, other),
    ):
        with pytest.raises(
            RunError, match="settings are of run 'art'.*run the settings' cell again"
        ):
            call()
    numbered_picture(other.image(name_of(9)), 9)
    append_row(other.posts, Post(name_of(0), "p", 1, "", "", "", 64, 64, "another", "own work"))
    for call in (price, dry_run, lambda *given: list(caption_images(*given))):
        with pytest.raises(
            RunError, match="p-00000_1.jpg is not the image that .* lists by that name"
        ):
            call(others, other, posts)
    assert claude.bill == [] and not other.captions.exists()


# stale


CHANGES = {
    "model": {"model": "claude-sonnet-5-5"},
    "style_guide": {"style_guide": "Say what is seen."},
    "vocabulary": {"vocabulary": "Mira: the orange cat"},
    "banned_words": {"banned_words": "cartoon"},
    "max_caption_words": {"max_caption_words": 25},
    "examples": {"examples": (name_of(3),)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_captions_made_with_other_settings_are_told_and_stay_until_recaption(claude, change):
    run = make_run(4)
    caption(run)
    assert stale_note(config_of(), run) == "" and find_stale(config_of(**AGAIN), run) == {}
    new = config_of(**CHANGES[change])
    assert stale_note(new, run) == (
        f"4 captions were made with another {change} (4): they are kept. "
        'more={"recaption": True} replaces them, at a price shown before'
    )
    assert pending(new, run) == [] and caption(run, new) == []
    claude.more_words = " by a barn"
    again = config_of(**CHANGES[change], **AGAIN)
    posts = pending(again, run)
    assert len(posts) == 4 and price(again, run, posts).startswith("4 images by claude-")
    assert len(answers(claude)) == 4  # the price is told before
    caption(run, again)
    assert words_of(run) == {n: caption_of(n) + " by a barn" for n in range(4)}
    rest = caption(run, again)
    if change != "examples":  # the example's own caption is another one now
        assert rest == [] and len(answers(claude)) == 8


def test_the_first_three_are_made_again_after_a_new_guide_and_each_change_is_counted(claude):
    run = make_run(6)
    dry_run(config_of(), run, pending(config_of(), run))
    new = config_of(style_guide="Say what is seen.")
    caption(run, new)
    assert stale_note(new, run).startswith("3 captions were made with another style_guide (3)")
    append_row(run.captions, Caption(name_of(5), "a fox", "ok", "sidecar"))
    assert stale_note(config_of(model="claude-sonnet-5-5"), run).startswith(
        "6 captions were made with another model (5), style_guide (2), captioner (1)"
    )
    claude.more_words = " by a barn"
    caption(run, config_of(style_guide="Say what is seen.", **AGAIN))
    remade = {number for number, words in words_of(run).items() if words.endswith(" by a barn")}
    assert remade == {0, 1, 2, 5} and len(answers(claude)) == 10


def test_a_persons_words_are_never_stale(claude):
    run = make_run(3)
    caption(run)
    edit(run, rows_of(run)[name_of(0)], "my words")
    edit(run, rows_of(run)[name_of(1)], caption_of(1))  # accepted as they are
    again = config_of(style_guide="Another.", **AGAIN)
    assert [post.file_name for post in pending(again, run)] == [name_of(2)]
    caption(run, again)
    assert words_of(run)[0] == "my words" and rows_of(run)[name_of(1)].status == "edited"


@pytest.mark.parametrize("fault", ["refusal", "400", "max_tokens"])
@pytest.mark.parametrize("mode", ["now", "batch"])
def test_words_stay_where_nothing_new_comes(claude, fault, mode):
    run = make_run(3)
    caption(run)
    spent = caption_costs(run.captions)[0]
    claude.fault = lambda number, _: fault if number == 1 else ""
    claude.more_words = " by a barn"
    again = config_of(style_guide="Another.", mode=mode, **AGAIN)
    caption(run, again)
    assert words_of(run)[1] == caption_of(1) and rows_of(run)[name_of(1)].status == "ok"
    assert words_of(run)[0] == caption_of(0) + " by a barn"
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)
    assert claude.billed_usd > spent
    if fault == "refusal":  # it stands: asked again it would be refused, and paid for, again
        bill = len(claude.bill)
        assert caption(run, again) == [] and len(claude.bill) == bill


def test_asking_again_in_vain_leaves_the_words_there_were(claude):
    run = make_run(1)
    caption(run)
    edit(run, rows_of(run)[name_of(0)], "my words")
    claude.fault = lambda *_: "refusal"
    (post,) = read_rows(run.posts, Post)
    assert ask_again(config_of(), run, post).status == "refused"
    assert words_of(run) == {0: "my words"} and rows_of(run)[name_of(0)].status == "edited"
    claude.fault = lambda *_: ""
    ask_again(config_of(), run, post)
    assert words_of(run) == {0: caption_of(0)}


def test_words_mended_while_a_batch_is_out_stand_when_it_comes_back(claude):
    run = make_run(4)
    killed_at_polling(claude, run)
    append_row(run.captions, Caption(name_of(2), "my words", "edited", "person"))
    claude.polls = 1
    caption(run, config_of(mode="batch"))
    assert words_of(run) == {n: caption_of(n) for n in (0, 1, 3)} | {2: "my words"}
    assert len(claude.batches) == 1 and len(claude.bill) == 4
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)


def test_a_batchs_answers_bear_the_settings_and_the_price_of_when_it_was_sent(claude):
    run = make_run(4)
    killed_at_polling(claude, run)
    claude.polls = 1
    other = config_of(model="claude-sonnet-5-5", style_guide="Another.", max_caption_words=4)
    caption(run, other)
    rows = rows_of(run).values()
    assert {row.model for row in rows} == {"claude-haiku-5-5"} and len(claude.bill) == 4
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)
    assert find_stale(config_of(), run) == {}
    assert set(find_stale(other, run)[name_of(0)]) == {"model", "style_guide", "max_caption_words"}


def test_rows_of_older_versions_are_compared_by_captioner_and_model(claude):
    run = make_run(4)
    caption(run)
    rows = [{k: v for k, v in row.items() if k != "made_with"} for row in lines(run.captions)]
    run.captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stale_note(config_of(style_guide="Another."), run) == ""
    assert "another model (4)" in stale_note(config_of(model="claude-sonnet-5-5"), run)
    assert caption(run) == []


def test_an_open_batch_of_an_older_version_is_finished(claude):
    run = make_run(3)
    killed_at_polling(claude, run)
    batches = read_json(run.caption_batches)
    for batch in batches:
        del batch["model"], batch["made_with"]
    write_json(run.caption_batches, batches)
    claude.polls = 1
    assert len(caption(run, config_of(mode="batch"))) == 3 and len(claude.bill) == 3


def test_texts_beside_the_images_take_anothers_place_only_where_they_are(workplace):
    run = make_run(3)
    for number in range(3):
        append_row(
            run.captions, Caption(name_of(number), f"by claude {number}", "ok", "claude", "m")
        )
    run.sidecar(name_of(1)).write_text("beside")
    run.sidecar(name_of(2)).write_text("")
    config = CaptionConfig(run="art")
    assert pending(config, run) == []
    assert stale_note(config, run).startswith("1 captions were made with another captioner (1)")
    caption(run, CaptionConfig(run="art", recaption=True))
    assert words_of(run) == {0: "by claude 0", 1: "beside", 2: "by claude 2"}


def test_what_is_kept_of_the_settings_is_no_text_of_theirs(claude):
    run = make_run(1)
    caption(run, config_of(style_guide="A secret of my own.", vocabulary="Mira"))
    kept = lines(run.captions)[0]["made_with"]
    assert set(kept) == set(CHANGES) - {"model"}
    assert all(re.fullmatch(r"[0-9a-f]{12}|\d+", value) for value in kept.values())
