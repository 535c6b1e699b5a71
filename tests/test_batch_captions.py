import os
import signal
import subprocess
import sys

import pytest

from helpers.caption.ledger import caption_images, pending
from helpers.core.errors import RunError
from helpers.core.files import read_json
from helpers.core.records import caption_costs
from tests.conftest import lines
from tests.loopback_claude import caption_of
from tests.test_claude import (
    assert_each_is_on_its_own_image,
    caption,
    config_of,
    make_run,
    name_of,
    rows_of,
)

BATCH = config_of(mode="batch")


def messages(claude):
    return [body for path, body in claude.log if path == "/v1/messages"]


def test_results_in_any_order_land_on_their_own_images_at_half_the_price(claude):
    run = make_run(40)
    assert len(caption(run, BATCH)) == 40
    assert_each_is_on_its_own_image(run)
    assert len(claude.batches) == 1 and all(charge.batch for charge in claude.bill)
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)
    assert caption(run, BATCH) == [] and len(claude.batches) == 1


def test_a_request_of_a_batch_has_an_id_of_ours_and_one_image(claude):
    run = make_run(3)
    caption(run, BATCH)
    requests = claude.batches["msgbatch_0000"]["requests"]
    assert [request["custom_id"][16:] for request in requests] == ["-00000", "-00001", "-00002"]
    kept = read_json(run.caption_batches)
    assert kept[0]["file_names"] == [name_of(number) for number in range(3)] and kept[0]["done"]


def test_each_outcome_is_a_row_and_what_can_be_mended_is_asked_again(claude):
    outcomes = {1: "errored", 2: "expired", 3: "canceled", 4: "missing", 5: "foreign", 6: "twice"}
    outcomes |= {7: "bad-line", 8: "refusal", 9: "max_tokens", 10: "says {}", 11: "adversarial 2"}
    claude.fault = lambda number, asked: outcomes.get(number, "") if asked == 0 else ""
    run = make_run(14)
    caption(run, BATCH)
    statuses = {number: rows_of(run)[name_of(number)].status for number in range(14)}
    assert statuses[2] == "failed: expired in the batch after a day"
    assert statuses[3] == "failed: canceled with the batch" and statuses[8] == "refused"
    assert {n for n, status in statuses.items() if status == "ok"} == set(range(14)) - {2, 3, 8}
    assert_each_is_on_its_own_image(run)
    assert len(claude.batches) == 1 and len(messages(claude)) == 5
    assert {row.file_name for row in caption(run, BATCH)} == {name_of(2), name_of(3)}
    assert len(claude.batches) == 2


def test_an_open_batch_is_finished_first_whatever_the_mode(claude):
    run = make_run(6)
    posts = pending(BATCH, run)
    killed_at_polling(claude, run)
    assert claude.bill == [] and pending(BATCH, run) == posts
    claude.polls = 1
    rows = caption(run, config_of(mode="now"))
    assert len(rows) == 6 and len(claude.batches) == 1 and messages(claude) == []


CHILD = """
from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig
from helpers.core.run import Run
config = CaptionConfig(
    run="art", captioner="claude", mode="batch", retry_wait_s=0, longest_wait_s=0, poll_s=0.02
)
run = Run("art")
list(caption_images(config, run, pending(config, run)))
"""


def start():
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], env=os.environ, stdout=subprocess.DEVNULL
    )


def killed_at_polling(claude, run):
    """Start a process, let it create its batch and learn the id, and kill it while it waits."""
    claude.polls = 10**9
    child = start()
    while not claude.batches or claude.batches["msgbatch_0000"]["looks"] < 2:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert read_json(run.caption_batches)[0]["id"] == "msgbatch_0000"


def test_a_process_killed_while_it_waits_is_followed_by_one_that_finishes(claude):
    run = make_run(8)
    killed_at_polling(claude, run)
    claude.polls = 1
    assert start().wait() == 0
    assert len(claude.batches) == 1 and len(claude.bill) == 8
    assert_each_is_on_its_own_image(run)
    assert len(lines(run.captions)) == 8


@pytest.mark.parametrize("others", [0, 3])
def test_a_batch_whose_id_was_never_heard_is_found_and_not_made_again(claude, others):
    """The process dies after the server has made the batch and before it has said so."""
    run = make_run(8)
    child = start_and_kill_at_creation(claude)
    assert child.wait() == -signal.SIGKILL
    assert read_json(run.caption_batches)[0]["id"] == "" and len(claude.batches) == 1
    for number in range(others):  # batches of other programs, of as many requests, that came since
        requests = claude.batches["msgbatch_0000"]["requests"]
        theirs = [request | {"custom_id": f"theirs-{i}"} for i, request in enumerate(requests)]
        claude.create({"requests": theirs[: 8 - number % 2]})
    assert start().wait() == 0
    assert len(claude.batches) == 1 + others
    ours = [charge for charge in claude.bill if charge.batch]
    assert len(lines(run.captions)) == 8 and len(ours) <= 8 * (1 + others)
    assert_each_is_on_its_own_image(run)


def start_and_kill_at_creation(claude):
    def kill():
        claude.on_created = lambda: None
        child.send_signal(signal.SIGKILL)

    claude.on_created = kill
    child = start()
    return child


def test_a_process_killed_before_it_sent_anything_is_followed_by_one_that_sends(claude):
    run = make_run(5)
    start_and_kill_at_creation(claude).wait()
    claude.batches.clear()  # as if the request had never arrived
    assert start().wait() == 0
    assert len(claude.batches) == 1 and len(lines(run.captions)) == 5


def test_a_creation_that_was_answered_by_an_error_is_looked_for_before_it_is_repeated(claude):
    def drop():
        claude.on_created = lambda: None
        raise ConnectionResetError

    claude.on_created = drop
    run = make_run(5)
    assert len(caption(run, BATCH)) == 5
    assert len(claude.batches) == 1 and len(claude.bill) == 5


def test_a_kill_among_the_results_leaves_each_image_one_row(claude):
    run = make_run(12)
    rows = caption_images(BATCH, run, pending(BATCH, run))
    for _ in range(5):
        next(rows)
    rows.close()  # as far as the disk can tell, a kill
    assert len(lines(run.captions)) == 5
    caption(run, BATCH)
    assert len(lines(run.captions)) == 12 and len(claude.bill) == 12
    assert_each_is_on_its_own_image(run)


def test_a_batch_that_the_server_has_no_more_is_asked_about_again(claude):
    run = make_run(4)
    killed_at_polling(claude, run)
    claude.batches.clear()
    claude.polls = 1
    caption(run, BATCH)
    assert {row.status for row in rows_of(run).values()} == {"ok"}


def test_an_image_that_cannot_be_read_does_not_spoil_its_batch(claude):
    run = make_run(4)
    run.image(name_of(2)).write_bytes(b"no picture")
    caption(run, BATCH)
    assert rows_of(run)[name_of(2)].status.startswith("failed: cannot be read")
    assert len(claude.bill) == 3 and rows_of(run)[name_of(3)].caption == caption_of(3)


def test_a_batch_that_is_refused_says_why_and_is_not_sent_for_ever(claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "wrong")
    run = make_run(2)
    with pytest.raises(RunError, match="is not accepted"):
        caption(run, BATCH)
    assert not run.caption_batches.exists() or all(
        b["done"] for b in read_json(run.caption_batches)
    )
