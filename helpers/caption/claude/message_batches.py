"""Message Batches: half the price, done within a day, and the same images never sent twice.

What is about to be sent is written down before it is sent, with a key of ours that is part of every
request's id. A process that dies between sending and learning the batch's id leaves an entry without
one; the next process then looks through the batches that came since, and takes the one whose results
bear our key. Only if there is none does it send again.
"""

import json
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import anthropic
from anthropic.types.messages import MessageBatch

from helpers.caption.claude.client import UNREADABLE, Session
from helpers.caption.stale import standing_words
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.records import Caption, Post, latest, read_rows
from helpers.core.run import Run
from helpers.mirror.sync import sync

MOST_BYTES = 48_000_000  # of a batch's requests; the API takes 256 MB
CLOCKS_DIFFER = timedelta(days=1)  # at most, ours and the server's


@dataclass
class Batch:
    """What a batch was made of. `id` is empty until the server has told it."""

    key: str  # begins each of its requests' ids; the image's place in file_names ends it
    file_names: list[str]
    after: str  # the newest batch there was when this one was planned
    planned_at: str  # ISO 8601
    id: str = ""
    done: bool = False
    model: str = ""  # that was asked, and the settings that shaped what was
    made_with: dict[str, str] = field(default_factory=dict)

    def request_id(self, number: int) -> str:
        return f"{self.key}-{number:05d}"


def read_batches(run: Run) -> list[Batch]:
    """The batches of a run, oldest first."""
    if not run.caption_batches.is_file():
        return []
    return [Batch(**entry) for entry in read_json(run.caption_batches)]


def _write(run: Run, changed: Batch) -> None:
    """Keep a batch's entry, on Drive as well: a lost machine must not lose its id."""
    others = {batch.key: batch for batch in read_batches(run)}
    write_json(
        run.caption_batches, [asdict(batch) for batch in (others | {changed.key: changed}).values()]
    )
    sync(run)


def finish(session: Session) -> Iterator[Caption]:
    """Wait for all batches of the run that are still open, and keep their answers."""
    for batch in read_batches(session.run):
        if not batch.done:
            yield from _finish(session, batch)


def _finish(session: Session, batch: Batch) -> Iterator[Caption]:
    posts = latest(read_rows(session.run.posts, Post))
    if not batch.id:
        requests = [
            request
            for number, name in enumerate(batch.file_names)
            if name in posts and (request := _request(session, batch, number, posts[name]))
        ]
        _send(session, batch, requests, may_be_there=True)
    if batch.done:
        return
    print(
        f"batch {batch.id} of {len(batch.file_names)} images is with Claude: most take less than an hour, none more "
        "than a day. You may stop here; running this again goes on from it",
        flush=True,
    )
    yield from _collect(session, batch, posts)
    batch.done = True
    _write(session.run, batch)


def caption(session: Session, posts: Iterable[Post]) -> Iterator[Caption]:
    """Caption images by batches, as many at once as the budget allows at their dearest, then the next."""
    waiting = deque(posts)
    while waiting:
        reserved = 0.0
        while waiting and (plan := _plan(session, waiting)):
            batch, requests, most = plan
            reserved += most
            _write(session.run, batch)
            _send(session, batch, requests)
        if not reserved:
            raise session.over_budget(len(waiting))
        yield from finish(session)
        session.purse.settle(reserved, 0.0)


def _plan(
    session: Session, waiting: deque[Post]
) -> tuple[Batch, list[dict[str, Any]], float] | None:
    """Take images off `waiting` for a batch: it, its requests and the most it can cost; None if none is affordable."""
    newest = session.patiently(lambda: session.client.messages.batches.list(limit=1)).data
    now = datetime.now(UTC).isoformat(timespec="seconds")
    batch = Batch(secrets.token_hex(8), [], newest[0].id if newest else "", now)
    batch.model, batch.made_with = session.config.model, session.made_with
    requests, size, reserved = [], 0, 0.0
    while waiting and size < MOST_BYTES:
        most = session.most_usd(waiting[0], batch=True)
        if not session.purse.reserve(most):
            break
        post = waiting.popleft()
        batch.file_names.append(post.file_name)
        if request := _request(session, batch, len(batch.file_names) - 1, post):
            requests.append(request)
            size += len(json.dumps(request))
        reserved += most
    return (batch, requests, reserved) if batch.file_names else None


def _request(session: Session, batch: Batch, number: int, post: Post) -> dict[str, Any] | None:
    """A request of a batch, or None for an image that cannot be read, which is then reported."""
    try:
        params = session.prompt.request(post)
    except UNREADABLE as error:
        session.keep(
            session.failed(post, f"cannot be read ({error})", request=batch.request_id(number))
        )
        return None
    return {"custom_id": batch.request_id(number), "params": params}


def _send(
    session: Session, batch: Batch, requests: list[dict[str, Any]], *, may_be_there: bool = False
) -> None:
    """Create a batch, once, and keep its id. Raises RunError if the API refuses it."""
    tries = 0

    def send() -> str:
        nonlocal tries
        if (tries or may_be_there) and (there := _find(session, batch, len(requests))):
            return there
        tries += 1
        batch.model, batch.made_with = session.config.model, session.made_with
        return session.client.messages.batches.create(requests=requests).id

    try:
        batch.id = session.patiently(send) if requests else ""
        batch.done = not requests
    except RunError as error:
        batch.done = tries == 1 and not may_be_there and _is_refusal(error.__cause__)
        raise
    finally:
        _write(session.run, batch)


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the server surely made nothing of a request."""
    status = getattr(error, "status_code", 0)
    return 400 <= status < 500 and status not in (408, 409)


def _find(session: Session, batch: Batch, count: int) -> str:
    """The id of a batch that was created although nobody heard so, or ""."""
    oldest = datetime.fromisoformat(batch.planned_at) - CLOCKS_DIFFER
    known = {other.id for other in read_batches(session.run)}

    def is_newer(candidate: MessageBatch) -> bool:
        return candidate.id != batch.after and candidate.created_at > oldest

    batches = session.client.messages.batches
    for candidate in session.patiently(lambda: [*takewhile(is_newer, batches.list(limit=100))]):
        total = sum(candidate.request_counts.to_dict().values())
        if candidate.id in known or total != count:
            continue
        results = _results(session, candidate.id)
        if any(str(result.get("custom_id")).startswith(batch.key) for result in results):
            return candidate.id
    return ""


def _results(session: Session, batch_id: str) -> list[dict[str, Any]]:
    """All results of a batch, once it has ended; none if the server has it no more."""
    batches = session.client.messages.batches
    try:
        while session.patiently(lambda: batches.retrieve(batch_id)).processing_status != "ended":
            time.sleep(session.config.poll_s)
        return session.patiently(lambda: _read_lines(batches, batch_id))
    except RunError as error:
        if not isinstance(error.__cause__, anthropic.NotFoundError):
            raise
    except anthropic.AnthropicError:  # ended, and its results are archived
        pass
    print(f"batch {batch_id} is gone from the server: its images will be asked about again")
    return []


def _read_lines(batches: Any, batch_id: str) -> list[dict[str, Any]]:
    """The results that are JSON objects; a line that is not is nobody's answer."""
    found = []
    with batches.with_streaming_response.results(batch_id) as response:
        for line in response.iter_lines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found += [value] if isinstance(value, dict) else []
    return found


def _collect(session: Session, batch: Batch, posts: dict[str, Post]) -> Iterator[Caption]:
    """Keep a row for each image of a batch, its answer or why there is none, unless a row was kept before a kill.

    Words that a person wrote meanwhile stand.
    """
    session = session.as_asked(batch.model, batch.made_with)
    results = _results(session, batch.id)
    rows = read_rows(session.run.captions, Caption)
    before, kept = latest(rows), {row.request for row in rows}
    wanted = {
        batch.request_id(number): posts[name]
        for number, name in enumerate(batch.file_names)
        if name in posts
    }
    foreign = 0
    for result in results:
        request = str(result.get("custom_id"))
        foreign += request not in wanted
        if request in wanted and request not in kept:
            kept.add(request)
            row = session.keep(_row(session, wanted[request], request, result.get("result")))
            _keep_standing(session, before, row)
            session.purse.settle(0.0, row.cost_usd)
            yield row
    for request, post in wanted.items():
        if request not in kept:
            row = session.keep(session.failed(post, "no answer in the batch", request=request))
            _keep_standing(session, before, row)
            yield row
    if foreign:
        print(f"batch {batch.id} had {foreign} results that were not asked for: left out")


def _keep_standing(session: Session, before: dict[str, Caption], row: Caption) -> None:
    if words := standing_words(before.get(row.file_name), row):
        session.keep(words)


def _row(session: Session, post: Post, request: str, result: Any) -> Caption:
    """The row of one result: succeeded, errored, canceled or expired."""
    result = result if isinstance(result, dict) else {}
    match result.get("type"):
        case "succeeded":
            return session.read(post, result.get("message"), batch=True, request=request)
        case "expired":
            return session.failed(post, "expired in the batch after a day", request=request)
        case "canceled":
            return session.failed(post, "canceled with the batch", request=request)
        case "errored":
            said = " ".join(json.dumps(result.get("error")).split())[:200]
            row = session.failed(post, f"error in the batch: {said}", request=request)
            return session.refused(post, request) if "content filter" in said.lower() else row
    return session.failed(post, "no answer in the batch", request=request)
