"""The captioner "claude": one image per request, by the Messages API or in batches.

Each answer is saved before its thread sends another request, so a kill loses only the requests in flight. The cost of
an answer is in its row, even if the answer is unusable.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import anthropic

from helpers.caption.claude import message_batches
from helpers.caption.claude.client import Session, error_line, may_be_billed
from helpers.caption.claude.estimate import estimate
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post
from helpers.core.run import Run

MAX_FAILURES_IN_A_ROW = 10  # after all retries: then the cause is not an image
RETRIED_LATER = ("failed: expired", "failed: canceled")  # not in full-price requests


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption images with Claude, those of open batches first, and yield each row after saving it.

    Raises RunError if the next request could exceed the budget, or the API is unusable; answers so far are saved.
    """
    if not posts and all(batch.done for batch in message_batches.read_batches(run)):
        return
    session = Session(config, run)
    asked = {post.file_name for post in posts}
    done: dict[str, Caption] = {}
    for row in message_batches.finish(session):
        if row.file_name in asked and not row.status.startswith(RETRIED_LATER):
            done[row.file_name] = row
            yield row
    if config.mode == "batch":
        unasked = [post for post in posts if post.file_name not in done]
        for row in message_batches.caption(session, unasked):
            done[row.file_name] = row
            yield row
    final = ("ok", "refused", *RETRIED_LATER)
    answered = {name for name, row in done.items() if row.status.startswith(final)}
    yield from caption_now(session, [post for post in posts if post.file_name not in answered])


def price(config: CaptionConfig, run: Run, posts: list[Post]) -> str:
    """Return an estimate, in a few lines, of what captioning `posts` costs. Only free requests are sent."""
    return str(estimate(config, run, posts))


def _is_api_failure(row: Caption) -> bool:
    of_the_image = ("failed: answer", "failed: cannot be read")
    return row.status.startswith("failed") and not row.status.startswith(of_the_image)


def caption_now(session: Session, posts: Iterable[Post]) -> Iterator[Caption]:
    """Yield each image's caption from the Messages API, with as many concurrent requests as the limiter allows."""
    waiting, in_flight, failures = deque(posts), set[Future[Caption]](), 0
    with ThreadPoolExecutor(session.config.concurrency) as pool:
        while waiting or in_flight:
            while waiting and len(in_flight) < session.limiter.allowed:
                cost = session.max_cost_usd(waiting[0])
                if not session.budget.reserve(cost):
                    break
                in_flight.add(pool.submit(_caption, session, waiting.popleft(), cost))
            if not in_flight:
                raise session.over_budget(len(waiting))
            completed, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in completed:
                row = future.result()
                failures = failures + 1 if _is_api_failure(row) else 0
                yield row
            if failures >= MAX_FAILURES_IN_A_ROW:
                raise RunError(
                    f"{failures} images in a row failed, the last with: {row.status}. "
                    "Fix that and run this again; answers so far are saved"
                )


def _caption(session: Session, post: Post, reserved_usd: float) -> Caption:
    """Ask up to `most_asks` times for a valid caption, save each answer's row, and return the last one."""
    for ask in range(session.config.most_asks):
        if ask and not session.budget.reserve(reserved_usd):
            break
        row = session.row(post, "failed: stopped")
        try:
            row = _ask(session, post, reserved_usd)
        finally:
            session.budget.settle(reserved_usd, row.cost_usd)
        session.save(row)
        if not row.status.startswith(("failed: answer", "failed: no answer")):
            break
    return row


def _ask(session: Session, post: Post, reserved_usd: float) -> Caption:
    try:
        request = session.prompt.request(post)
    except OSError as error:
        return session.row(post, f"failed: cannot be read ({error})")
    send = session.client.messages.with_raw_response.create
    try:
        response = session.retry(lambda: send(**request), paid=True)
        body = response.http_response.json()
    except (anthropic.APIError, ValueError) as error:
        if may_be_billed(error):
            why = f"failed: no answer came back ({error_line(error)})"
            return session.row(post, why, cost_usd=reserved_usd)
        if "content filter" in str(error).lower():
            return session.row(post, "refused")
        return session.row(post, f"failed: {error_line(error)}")
    tokens = session.tokens_of(post) + session.shared_tokens
    session.limiter.on_answer(response.headers, tokens)
    return session.read_body(post, body)
