"""Captioner: Claude, asked about one image a request, now or in batches.

An answer is kept before the thread that got it asks again, so a kill loses what is in flight and no
more. What an answer cost is in its row, also where it was of no use.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import anthropic

from helpers.caption.claude import message_batches
from helpers.caption.claude.client import UNREADABLE, Session, was_sent, why
from helpers.caption.claude.estimate import estimate
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post
from helpers.core.run import Run

MOST_FAILURES_IN_A_ROW = 10  # of images, after all retries: then the fault is no image's
AGAIN_LATER = ("failed: expired", "failed: canceled")  # not at the full price


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption images, each row kept before it is yielded. Batches that are still open are finished first.

    Raises RunError if the budget has not got the next request, or the API cannot be used at all; what
    was answered until then is kept.
    """
    if not posts and all(batch.done for batch in message_batches.read_batches(run)):
        return
    session = Session(config, run)
    asked = {post.file_name for post in posts}
    done: dict[str, Caption] = {}
    for row in message_batches.finish(session):
        if row.file_name in asked and not row.status.startswith(AGAIN_LATER):
            done[row.file_name] = row
            yield row
    if config.mode == "batch":
        for row in message_batches.caption(
            session, [post for post in posts if post.file_name not in done]
        ):
            done[row.file_name] = row
            yield row
    answered = {name for name, row in done.items() if not _is_worth_another(row)}
    yield from caption_now(session, [post for post in posts if post.file_name not in answered])


def price(config: CaptionConfig, run: Run, posts: list[Post]) -> str:
    """What captioning these images would cost, in a few lines; asks only for token counts, which are free."""
    return str(estimate(config, run, posts))


def _is_worth_another(row: Caption) -> bool:
    return row.status.startswith("failed") and not row.status.startswith(AGAIN_LATER)


def _is_no_answer(row: Caption) -> bool:
    """Whether it was not the image, and not what the model said, that failed."""
    of_the_image = ("failed: answer", "failed: cannot be read")
    return row.status.startswith("failed") and not row.status.startswith(of_the_image)


def caption_now(session: Session, posts: Iterable[Post]) -> Iterator[Caption]:
    """Caption images by Messages, as many at once as the session's pace allows."""
    waiting, flying, in_a_row = deque(posts), set[Future[Caption]](), 0
    with ThreadPoolExecutor(session.config.concurrency) as pool:
        while waiting or flying:
            while waiting and len(flying) < session.pace.width:
                if not (flight := _take_off(session, waiting[0], pool)):
                    break
                flying.add(flight)
                waiting.popleft()
            if not flying:
                raise session.over_budget(len(waiting))
            landed, flying = wait(flying, return_when=FIRST_COMPLETED)
            for flight in landed:
                row = flight.result()
                in_a_row = in_a_row + 1 if _is_no_answer(row) else 0
                yield row
            if in_a_row >= MOST_FAILURES_IN_A_ROW:
                raise RunError(
                    f"{in_a_row} images in a row failed, the last one so: {row.status}. "
                    "Mend that and run this again; what was answered is kept"
                )


def _take_off(session: Session, post: Post, pool: ThreadPoolExecutor) -> Future[Caption] | None:
    """Send an image's first request, if the budget has it."""
    most = session.most_usd(post)
    return pool.submit(_caption, session, post, most) if session.purse.reserve(most) else None


def _caption(session: Session, post: Post, reserved_usd: float) -> Caption:
    """Ask about an image until an answer is to the form, `most_asks` times at most; every answer is kept."""
    for ask in range(session.config.most_asks):
        if ask and not session.purse.reserve(reserved_usd):
            break
        row = session.failed(post, "stopped")
        try:
            row = _ask(session, post, reserved_usd)
        finally:
            session.purse.settle(reserved_usd, row.cost_usd)
        session.keep(row)
        if not row.status.startswith(("failed: answer", "failed: no answer")):
            break
    return row


def _ask(session: Session, post: Post, reserved_usd: float) -> Caption:
    """The row of one request, whatever becomes of it."""
    try:
        request = session.prompt.request(post)
    except UNREADABLE as error:
        return session.failed(post, f"cannot be read ({error})")
    send = session.client.messages.with_raw_response.create
    try:
        response = session.patiently(lambda: send(**request), paid=True)
        body = response.http_response.json()
    except (anthropic.APIError, ValueError) as error:
        if was_sent(error):
            return session.failed(post, f"no answer came back ({why(error)})", reserved_usd)
        if "content filter" in str(error).lower():
            return session.refused(post)
        return session.failed(post, why(error))
    tokens = session.tokens_of(post) + session.shared_tokens
    session.pace.answered(response.headers, tokens)
    return session.read(post, body)
