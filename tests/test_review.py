import html

import papermill
import pytest

from helpers.caption.ledger import caption_images, edit, pending, problems
from helpers.caption.review import EVERY, TO_READ, ReviewTable, is_interactive, review
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, append_row, latest, read_rows
from tests.conftest import lines
from tests.loopback_claude import LoopbackClaude
from tests.test_claude import config_of, make_run, name_of

CONFIG = CaptionConfig(run="art", banned_words="cartoon")
MARKUP = "<img src=x onerror=alert(1)> a cat & a dog"


@pytest.fixture
def run(workplace):
    run = make_run(20)
    for number in range(20):
        words = (
            f"a cartoon cat with {number} hats" if number < 3 else f"a cat with {number} red hats"
        )
        row = Caption(name_of(number), words, "ok", "claude", "claude-haiku-5-5")
        append_row(run.captions, row)
    return run


def row_of(table, number):
    """(note, words, accept, ask again) of a row that is shown."""
    note, words, buttons = table.table.children[number].children[1].children
    return note, words, *buttons.children


def caption_in(run, number):
    return latest(read_rows(run.captions, Caption))[name_of(number)]


def test_it_opens_on_what_wants_a_look_and_shows_all_on_request(run):
    table = ReviewTable(CONFIG, run)
    assert table.filter.options[0] == table.filter.value == TO_READ
    assert {"banned word", EVERY} <= set(table.filter.options)
    assert len(table.table.children) == 3
    assert "banned word" in row_of(table, 0)[0].value
    table.filter.value = EVERY
    assert len(table.table.children) == 8 and table.where.value == "20 captions, page 1 of 3"
    table.forward.click()
    table.forward.click()
    assert len(table.table.children) == 4 and table.forward.disabled


def test_next_shows_what_follows_though_the_page_before_was_mended(run):
    for number in range(20):
        append_row(run.captions, Caption(name_of(number), "", "failed: no words", "sidecar"))
    table = ReviewTable(CONFIG, run)
    seen = []
    for page in range(3):
        for row in range(len(table.table.children)):
            seen.append(row_of(table, row)[0].value)
            row_of(table, row)[1].value = f"a cat with {len(seen)} small hats"
        assert table.forward.disabled == (page == 2)
        table.forward.click()
    assert len(set(seen)) == 20 and table.where.value == "0 captions, page 3 of 3"
    table.back.click()
    assert row_of(table, 0)[1].value == "a cat with 9 small hats"


def test_an_edit_is_a_row_beside_the_models_words_and_survives_a_rerun(run):
    table = ReviewTable(CONFIG, run)
    row_of(table, 1)[1].value = "  a cat with   one hat "
    kept = caption_in(run, 1)
    assert (kept.caption, kept.status, kept.captioner) == ("a cat with one hat", "edited", "person")
    assert [row["caption"] for row in lines(run.captions) if row["file_name"] == name_of(1)] == [
        "a cartoon cat with 1 hats",
        "a cat with one hat",
    ]
    config = CaptionConfig(run="art")
    list(caption_images(config, run, pending(config, run)))
    assert caption_in(run, 1) == kept
    again = ReviewTable(CONFIG, run)
    assert name_of(1) not in again.names(TO_READ)
    again.filter.value = EVERY
    assert row_of(again, 1)[1].value == "a cat with one hat"


def test_accepting_keeps_the_words_and_the_captioners_name(run):
    table = ReviewTable(CONFIG, run)
    row_of(table, 0)[2].click()
    kept = caption_in(run, 0)
    assert (kept.caption, kept.status, kept.captioner) == (
        "a cartoon cat with 0 hats",
        "edited",
        "claude",
    )
    assert kept.cost_usd == 0 and name_of(0) not in ReviewTable(CONFIG, run).names(TO_READ)


def test_an_empty_caption_is_not_kept(run):
    before = lines(run.captions)
    table = ReviewTable(CONFIG, run)
    row_of(table, 0)[1].value = "   "
    assert "is empty: write what the image shows" in table.message.value
    assert lines(run.captions) == before
    with pytest.raises(RunError):
        edit(run, caption_in(run, 0), "")


def test_an_empty_field_says_what_to_type(run):
    append_row(run.captions, Caption(name_of(4), "", "failed: no caption came with it", "sidecar"))
    table = ReviewTable(CONFIG, run)
    table.filter.value = "no caption"
    words = row_of(table, 0)[1]
    assert words.placeholder == "no caption yet: type what the picture shows"


def test_asking_again_takes_the_new_words_and_does_not_make_them_a_persons(run, monkeypatch):
    claude = LoopbackClaude()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    table = ReviewTable(config_of(banned_words="cartoon"), run)
    row_of(table, 2)[3].click()
    assert caption_in(run, 2).status == "ok" and "2 apples" in row_of(table, 2)[1].value
    claude.fault = lambda *_: "401"
    row_of(table, 2)[3].click()
    assert "is not accepted" in table.message.value and not row_of(table, 2)[3].disabled
    claude.close()


def test_captions_and_statuses_are_text_wherever_html_is_shown(run):
    append_row(run.captions, Caption(name_of(4), MARKUP, "ok", "claude"))
    append_row(run.captions, Caption(name_of(5), "", f"failed: {MARKUP}", MARKUP))
    table = ReviewTable(CONFIG, run)
    table.filter.value = EVERY
    assert row_of(table, 4)[1].value == MARKUP
    for number in (4, 5):
        note = row_of(table, number)[0].value
        assert "<img" not in note
    assert html.escape(MARKUP) in row_of(table, 5)[0].value
    row_of(table, 5)[1].value = MARKUP
    assert "<img" not in table.message.value


def test_an_image_that_cannot_be_read_can_still_be_captioned(run):
    run.image(name_of(0)).write_bytes(b"no picture")
    table = ReviewTable(CONFIG, run)
    row_of(table, 0)[1].value = "a cat"
    assert caption_in(run, 0).caption == "a cat"


def test_headless_it_says_what_it_would_have_asked(run, capsys):
    assert not is_interactive() and review(CONFIG, run) is None
    assert "review skipped; it would have shown 3 captions (" in capsys.readouterr().out
    assert len(problems(CONFIG, run)["banned word"]) == 3


def test_the_notebook_runs_headlessly_with_claude_and_tells_price_cost_and_review(
    workplace, monkeypatch
):
    claude = LoopbackClaude()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    run = make_run(9)
    claude.fault = lambda number, _: "refusal" if number == 7 else ""
    given = {"run": "art", "captioner": "claude", "mode": "batch", "more": {"poll_s": 0.1}}
    done = papermill.execute_notebook("notebooks/02_caption.ipynb", None, given, progress_bar=False)
    told = "".join(
        o.text
        for c in done.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "stream"
    )
    for words in (
        "9 images by claude-haiku-5-5",
        "mode=batch  $0.00",
        "no caption: 1",
        "review skipped; it would have shown",
        "8 captions in runs/art/captions.jsonl, 1 images without one, for $0.0",
    ):
        assert words in told, words
    assert "Traceback" not in told and len(lines(run.captions)) == 9 and len(claude.batches) == 1
    claude.close()
