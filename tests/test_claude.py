import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from helpers.caption.claude.budget import ConcurrencyLimiter
from helpers.caption.claude.estimate import estimate
from helpers.caption.claude.prompt import example_pairs
from helpers.caption.ledger import (
    ask_again,
    caption_images,
    dry_run,
    pending,
    price,
    verify_captions,
)
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, append_row, caption_costs, latest, read_rows
from helpers.core.run import Run
from tests.conftest import ROOT, lines
from tests.loopback_claude import ADVERSARIAL, caption_of, numbered_picture

QUICK = {"retry_wait_s": 0.0, "longest_wait_s": 0.0, "poll_s": 0.0, "timeout_s": 10.0}


def config_of(**given):
    return CaptionConfig(**{"run": "art", "captioner": "claude", **QUICK, **given})


def name_of(number):
    return f"p-{number:05d}_1.jpg"


def make_run(count, size=(64, 64), name="art"):
    """A run as 01 leaves it, of pictures that say their own number."""
    run = Run(name)
    rows = []
    for number in range(count):
        numbered_picture(run.image(name_of(number)), number, size)
        rows.append(Post(name_of(number), f"p-{number:05d}", 1, "", "", "", *size, "", "own work"))
    run.posts.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return run


def caption(run, config=None):
    config = config or config_of()
    return list(caption_images(config, run, pending(config, run)))


def rows_of(run):
    return latest(read_rows(run.captions, Caption))


def assert_each_is_on_its_own_image(run):
    for name, row in rows_of(run).items():
        if row.is_usable:
            assert row.caption == caption_of(int(name[2:7])), name


def answers(claude):
    return [body for path, body in claude.log if path == "/v1/messages"]


def test_every_image_gets_its_own_caption_and_a_rerun_asks_nothing(claude):
    run = make_run(12)
    rows = caption(run)
    assert len(rows) == 12 and {row.status for row in rows} == {"ok"}
    assert_each_is_on_its_own_image(run)
    asked = len(claude.log)
    assert caption(run) == [] and len(answers(claude)) == 12
    assert len(claude.log) == asked
    assert "12 captions" in verify_captions(run) and "for $0.00" in verify_captions(run)


def test_the_rows_cost_what_the_server_bills(claude):
    claude.fault = lambda number, asked: "says nonsense" if number == 3 and not asked else ""
    run = make_run(10)
    caption(run)
    assert len(claude.bill) == 11
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)
    row = rows_of(run)[name_of(5)]
    assert row.input_tokens and row.output_tokens and row.cache_read_tokens


def test_a_request_has_one_image_no_name_and_nothing_that_present_models_refuse(claude):
    run = make_run(2)
    caption(run)
    for body in answers(claude):
        assert "p-0000" not in json.dumps(body["messages"])
        assert body["thinking"] == {"type": "disabled"} and "tools" not in body
        assert not {"temperature", "top_p", "tool_choice"} & body.keys()


def test_examples_guide_words_and_vocabulary_are_one_cached_prefix(claude, tmp_path):
    run = make_run(6)
    append_row(run.captions, Caption(name_of(0), "two blue owls in a tree", "edited", "person"))
    numbered_picture(tmp_path / "pairs/one.png", 900).with_suffix(".txt").write_text("a red fox\n")
    config = config_of(
        examples=(name_of(0), str(tmp_path / "pairs")),
        vocabulary="Mira: the orange cat",
        banned_words="cartoon, ink",
    )
    assert len(caption(run, config)) == 5
    first, *others = answers(claude)
    assert "Mira: the orange cat" in first["system"][0]["text"]
    assert "Never use these words: cartoon, ink." in first["system"][0]["text"]
    said = [m["content"][0]["text"] for m in first["messages"] if m["role"] == "assistant"]
    assert said == ['{"caption": "two blue owls in a tree"}', '{"caption": "a red fox"}']
    assert first["messages"][-2]["content"][0]["cache_control"] == {
        "type": "ephemeral",
        "ttl": "1h",
    }
    for body in others:
        assert body["system"] == first["system"] and body["messages"][:-1] == first["messages"][:-1]
    usages = [charge.usage for charge in claude.bill]
    assert [bool(usage["cache_creation_input_tokens"]) for usage in usages] == [True] + [False] * 4


def test_examples_are_of_every_kind_that_a_run_holds(workplace, tmp_path):
    for suffix in ("tif", "tiff", "gif", "avif"):
        path = tmp_path / f"pairs/{suffix}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), "red").save(path)
        path.with_suffix(".txt").write_text(f"a fox {suffix}")
    config = config_of(examples=(str(tmp_path / "pairs"),))
    found = example_pairs(config, make_run(1))
    assert [words for _, words in found] == ["a fox avif", "a fox gif", "a fox tif", "a fox tiff"]


def test_an_example_that_is_not_there_is_named(claude):
    with pytest.raises(RunError, match="example 'nowhere.jpg' is not a captioned image of art"):
        caption(make_run(1), config_of(examples=("nowhere.jpg",)))


@pytest.mark.parametrize(("side_px", "patches"), [(756, 22 * 27), (280, 8 * 10)])
def test_images_are_sent_upright_and_no_larger_than_asked(claude, side_px, patches):
    run = make_run(1, size=(1080, 1350))
    caption(run, config_of(image_side_px=side_px))
    text = claude.bill[0].usage["input_tokens"]  # what is not of the cached prompt
    assert patches <= text <= patches + 10  # 605 x 756 and 224 x 280 px in patches of 28


def test_a_style_guide_of_ones_own_takes_the_place_of_ours_and_words_are_counted(claude):
    run = make_run(3)
    most = len(caption_of(1).split())
    caption(run, config_of(style_guide="Say what it is.", max_caption_words=most))
    assert answers(claude)[0]["system"][0]["text"] == (
        f"Say what it is.\n\nUse at most {most} words."
    )
    assert_each_is_on_its_own_image(run)
    short = ask_again(config_of(max_caption_words=most - 1), run, read_rows(run.posts, Post)[1])
    assert short.status.startswith(f"failed: answer has {most} words")


PASSING = ["429", "429 after", "500", "529", "drop", "timeout", "cut", "bad-json", "max_tokens"]
PASSING += ["no-message", "says {}", 'says {"caption": ""}', "adversarial 2", "408"]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(claude, fault):
    claude.fault = lambda number, asked: fault if number == 2 and asked == 0 else ""
    run = make_run(5)
    caption(run, config_of(timeout_s=0.5 if fault == "timeout" else 10.0))
    assert {row.status for row in rows_of(run).values()} == {"ok"}
    assert_each_is_on_its_own_image(run)
    assert len(claude.bill) <= 6


@pytest.mark.parametrize(
    ("fault", "status", "asks"),
    [
        ("refusal", "refused", 1),
        ("filter", "refused", 1),
        ("400", "failed: 400 invalid_request_error: no", 1),
        ("413", "failed: 413 request_too_large: no", 1),
        ("max_tokens", "failed: answer stopped at max_tokens", 3),
        ("says hello", "failed: answer is no JSON", 3),
        ("529", "failed: 529 overloaded_error: no", 3),
        ("cut", "failed: no answer came back", 3),
    ],
)
def test_what_does_not_pass_is_reported_after_a_bounded_number_of_asks(claude, fault, status, asks):
    claude.fault = lambda number, asked: fault if number == 1 else ""
    run = make_run(3)
    caption(run, config_of(most_retries=2))
    rows = rows_of(run)
    assert rows[name_of(1)].status.startswith(status) and claude.asked[1] == asks
    assert rows[name_of(0)].status == rows[name_of(2)].status == "ok"


def test_a_refusal_stands_and_a_failure_is_asked_again_by_a_rerun(claude):
    claude.fault = lambda number, _: {1: "refusal", 2: "400"}.get(number, "")
    run = make_run(4)
    caption(run)
    claude.fault = lambda *_: ""
    assert [row.file_name for row in caption(run)] == [name_of(2)]
    assert ask_again(config_of(), run, read_rows(run.posts, Post)[1]).caption == caption_of(1)


def test_an_image_that_cannot_be_read_is_a_row_and_costs_nothing(claude):
    run = make_run(3)
    run.image(name_of(1)).write_bytes(b"no picture")
    caption(run)
    assert rows_of(run)[name_of(1)].status.startswith("failed: cannot be read")
    assert len(claude.bill) == 2


def test_thinking_before_the_answer_is_not_the_answer(claude):
    claude.fault = lambda *_: "thinking"
    run = make_run(2)
    caption(run, config_of(model="claude-sonnet-5-5"))
    assert answers(claude)[0]["thinking"] == {"type": "between_tools"}
    assert answers(claude)[0]["output_config"]["effort"] == "low"
    assert_each_is_on_its_own_image(run)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_no_image_can_help_stops_everything_in_a_line(claude, status):
    claude.fault = lambda *_: str(status)
    run = make_run(30)
    with pytest.raises(RunError, match=f"Claude: .* \\({status} "):
        caption(run)
    assert len(claude.log) <= 3 and not run.captions.exists()


def test_a_wrong_key_and_no_key_are_told_apart(claude, monkeypatch):
    run = make_run(1)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "wrong")
    with pytest.raises(RunError, match="the key in ANTHROPIC_API_KEY is not accepted"):
        caption(run)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(
        RunError, match="ANTHROPIC_API_KEY is not set: set the environment.* or set captioner to 's"
    ):
        caption(run)


def test_a_server_that_fails_for_all_is_not_asked_for_all(claude):
    claude.fault = lambda *_: "529"
    run = make_run(40)
    with pytest.raises(RunError, match="10 images in a row failed, the last with: failed: 529"):
        caption(run, config_of(most_retries=1))
    assert len(answers(claude)) <= 24


def test_a_counting_endpoint_that_stays_away_is_said_in_a_line(claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="failed to answer .* run this again later"):
        caption(make_run(1), config_of(most_retries=1))


def test_a_captioned_run_needs_no_key(claude, monkeypatch):
    run = make_run(2)
    caption(run)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert caption(run) == [] and price(config_of(), run, []) == "0 images by claude: $0"


def test_asking_claude_loads_no_torch():
    code = "import sys, helpers.caption.claude.captioner, helpers.caption.review; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_many_bad_answers_or_images_in_a_row_are_reported_and_stop_nothing(claude):
    claude.fault = lambda number, _: "says no" if number < 15 else ""
    run = make_run(40)
    for number in range(15, 30):
        run.image(name_of(number)).write_bytes(b"no picture")
    caption(run, config_of(most_asks=1))
    assert Counter(row.status == "ok" for row in rows_of(run).values()) == {False: 30, True: 10}


def test_a_wait_of_an_hour_is_not_slept_through(claude):
    claude.fault, claude.retry_after = (lambda *_: "429 after"), "3600"
    with pytest.raises(RunError, match="asks to wait 60 minutes: run this again then"):
        caption(make_run(2))


def test_more_are_in_flight_the_more_are_answered_and_never_more_than_the_headers_leave(claude):
    claude.slow_s = 0.05
    caption(make_run(55), config_of())
    assert claude.most_flying == 2
    claude.most_flying, claude.requests_left = 0, 1
    caption(make_run(50, name="two"), config_of(run="two"))
    assert claude.most_flying == 1


def test_a_429_halves_what_is_in_flight(claude):
    limiter = ConcurrencyLimiter(8)
    for _ in range(300):
        limiter.on_answer({}, 1)
    assert limiter.allowed == 8
    limiter.on_rate_limit()
    assert limiter.allowed == 4
    limiter.on_answer({"anthropic-ratelimit-input-tokens-remaining": "2500"}, 1000)
    assert limiter.allowed == 2


@pytest.mark.parametrize(
    "more_words", ["", " with a small bridge over a stream and two tall trees behind"]
)
@pytest.mark.parametrize("mode", ["now", "batch"])
def test_the_estimate_is_within_a_tenth_of_the_bill(claude, mode, more_words):
    claude.more_words = more_words
    run = make_run(100, size=(600, 750))
    config = config_of(mode=mode, concurrency=4)
    told = estimate(config, run, pending(config, run))
    assert claude.bill == []
    list(caption_images(config, run, pending(config, run)))
    expected = told.now_usd if mode == "now" else told.batch_usd
    print(f"{mode}: told ${expected:.6f}, billed ${claude.billed_usd:.6f}")
    assert expected == pytest.approx(claude.billed_usd, rel=0.10)
    assert "100 images by claude-haiku-5-5" in str(told) and "mode=batch" in str(told)


def test_after_a_dry_run_the_estimate_knows_how_long_answers_are(claude):
    claude.more_words = " with a small bridge" * 3
    run, config = make_run(60, size=(300, 420)), config_of()
    dry_run(config, run, pending(config, run))
    before = claude.billed_usd
    told = estimate(config, run, pending(config, run))
    caption(run)
    assert told.now_usd == pytest.approx(claude.billed_usd - before, rel=0.10)
    assert told.spent_usd == pytest.approx(before)


@pytest.mark.parametrize("mode", ["now", "batch"])
def test_the_budget_is_never_passed_and_what_is_left_goes_on_later(claude, mode):
    run = make_run(60, size=(300, 420))
    told = estimate(config_of(), run, pending(config_of(), run))
    budget = told.now_usd / 2 if mode == "now" else told.batch_usd / 2
    with pytest.raises(RunError, match="the next request could exceed budget_usd="):
        caption(run, config_of(mode=mode, budget_usd=budget))
    assert 0.6 * budget < claude.billed_usd <= budget
    with pytest.raises(RunError):
        caption(run, config_of(mode=mode, budget_usd=budget))
    assert claude.billed_usd <= budget
    caption(run, config_of(mode=mode))
    assert len(rows_of(run)) == 60 and max(claude.asked.values()) == 1


def test_lost_answers_count_against_the_budget(claude):
    claude.fault = lambda *_: "cut"
    run = make_run(9)
    with pytest.raises(RunError):
        caption(run, config_of(budget_usd=0.002))
    assert claude.billed_usd <= 0.002


def test_a_dry_run_captions_three_and_all_of_them_goes_on_from_there(claude):
    run, config = make_run(8), config_of(mode="batch")
    assert [row.caption for row in dry_run(config, run, pending(config, run))] == [
        caption_of(number) for number in range(3)
    ]
    assert len(caption(run, config)) == 5 and len(claude.batches) == 1


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("claude-3-5-sonnet-20240620", "was retired on 28 October 2025: set model to claude-haiku"),
        ("claude-9-dream", "has no price here .*price_usd"),
    ],
)
def test_a_retired_or_unknown_model_is_refused_before_anything_is_sent(claude, model, says):
    with pytest.raises(RunError, match=says):
        caption(make_run(1), config_of(model=model))
    assert claude.log == []


def test_a_deprecated_model_is_warned_of_and_a_new_one_takes_the_price_given():
    from datetime import date

    from helpers.caption.claude.prices import find_model

    config = config_of(model="claude-sonnet-4-5-20250929")
    assert "its last day is 30 November 2026" in find_model(config, date(2026, 11, 1))[1]
    with pytest.raises(RunError, match="was retired on 30 November 2026"):
        find_model(config, date(2026, 12, 1))
    model, line = find_model(config_of(model="claude-9-dream", price_usd=(3, 15)))
    assert (model.input, model.output) == (3.0, 15.0) and "at the price given" in line


def test_fifty_adversarial_answers_are_all_reported_and_none_lands_on_another_image(claude):
    claude.fault = lambda number, _: f"adversarial {number}" if number % 2 else ""
    run = make_run(100)
    config = config_of(most_asks=1)
    caption(run, config)
    rows = rows_of(run)
    assert len(ADVERSARIAL) >= 30 and len(rows) == 100
    assert_each_is_on_its_own_image(run)
    for number in range(100):
        status = rows[name_of(number)].status
        assert status == "ok" if number % 2 == 0 else status.startswith("failed: answer"), number


KILLED = """
import sys
from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig
from helpers.core.run import Run
config = CaptionConfig(run="art", captioner="claude", retry_wait_s=0, longest_wait_s=0, timeout_s=2)
run = Run("art")
list(caption_images(config, run, pending(config, run)))
"""
KINDS = ["429", "429 after", "500", "529", "cut", "bad-json", "refusal", "max_tokens"]
KINDS += ["says {}", "adversarial 2", "adversarial 10", "drop", "filter", "timeout"]


def fault_in_thirty_percent(number, asked):
    chance = random.Random(1000 * number + asked)
    return chance.choice(KINDS) if chance.random() < 0.3 else ""


def kill_while_captioning(claude, count, kills):
    """Caption `count` images with faults in 30% of the answers and a SIGKILL after each `count / kills` answers."""
    run = make_run(count)
    claude.fault, claude.hang_s = fault_in_thirty_percent, 2.5
    child, every = None, count // (kills + 1)

    def kill_at(billed):
        if billed % every == 0 and billed // every <= kills:
            child.send_signal(signal.SIGKILL)

    claude.on_answer = kill_at
    codes = []
    while len(codes) < kills + 3 and (not codes or codes[-1] != 0):
        child = subprocess.Popen([sys.executable, "-c", KILLED], env=os.environ)
        codes.append(child.wait(timeout=300))
    assert codes.count(-signal.SIGKILL) == kills and codes[-1] == 0
    return run


@pytest.mark.parametrize(
    ("count", "kills"), [(60, 2), pytest.param(1000, 20, marks=pytest.mark.soak)]
)
def test_kills_and_faults_lose_no_image_and_pay_for_hardly_any_twice(claude, count, kills):
    run = kill_while_captioning(claude, count, kills)
    every, rows = lines(run.captions), rows_of(run)
    assert len(rows) == count
    usable = Counter(row["file_name"] for row in every if row["status"] == "ok")
    assert set(usable.values()) == {1}
    assert_each_is_on_its_own_image(run)
    in_order = [charge for charge in claude.bill if not charge.fault]
    needed = sum(row.status == "ok" for row in rows.values())
    print(
        f"{count} images, {kills} kills: {needed} captioned, {count - needed} reported, "
        f"{len(in_order)} paid for in order ({len(in_order) / needed:.3f} of those needed)"
    )
    assert len(in_order) <= 1.05 * needed
