"""Caption images by the Message Batches API, at half the price and within a day.

So that no batch is sent twice, each is recorded before it is sent, with a key that is part of every request's id. If
the process dies before it learns the batch's id, the entry has none; the next process then searches the batches
created since for results with our key, and sends the batch again only if there are none.
"""

import json
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import anthropic
from anthropic.types.messages import MessageBatch

from helpers.caption.claude.client import Session
from helpers.caption.stale import restore_caption
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.records import Caption, Post, latest, read_rows
from helpers.core.run import Run
from helpers.mirror.sync import sync

Request = dict[str, Any]
MAX_BYTES = 48_000_000  # of a batch's requests; the API's limit is 256 MB
MAX_CLOCK_DIFFERENCE = timedelta(days=1)  # between this machine and the server


@dataclass
class Batch:
    """A batch of requests, as recorded in the run's batches file."""

    key: str  # prefix of its requests' ids, which end in the image's index in file_names
    file_names: list[str]
    after: str  # id of the newest batch when this one was planned
    planned_at: str  # ISO 8601
    id: str = ""  # until the server has answered
    done: bool = False
    model: str = ""  # of the requests, as the settings below
    made_with: dict[str, str] = field(default_factory=dict)

    def request_id(self, number: int) -> str:
        return f"{self.key}-{number:05d}"


def read_batches(run: Run) -> list[Batch]:
    """Return the recorded batches of a run, oldest first."""
    if not run.caption_batches.is_file():
        return []
    return [Batch(**entry) for entry in read_json(run.caption_batches)]


def _write(run: Run, changed: Batch) -> None:
    batches = {batch.key: batch for batch in read_batches(run)} | {changed.key: changed}
    write_json(run.caption_batches, [asdict(batch) for batch in batches.values()])
    sync(run)


def finish(session: Session) -> Iterator[Caption]:
    """Wait for the run's open batches to end, then save and yield the rows of their images."""
    for batch in [batch for batch in read_batches(session.run) if not batch.done]:
        posts = latest(read_rows(session.run.posts, Post))
        if not batch.id:
            requests = [
                request
                for number, name in enumerate(batch.file_names)
                if name in posts and (request := _request(session, batch, number, posts[name]))
            ]
            _send(session, batch, requests, may_exist=True)
        if batch.done:
            continue
        print(
            f"batch {batch.id} of {len(batch.file_names)} images is in progress: most take less than an hour, none "
            "more than a day. You may stop here; a rerun continues with it",
            flush=True,
        )
        yield from _collect(session, batch, posts)
        batch.done = True
        _write(session.run, batch)


def caption(session: Session, posts: Iterable[Post]) -> Iterator[Caption]:
    """Send images in batches as far as the budget covers them, and yield each image's row."""
    waiting = deque(posts)
    while waiting:
        reserved = 0.0
        while waiting and (plan := _plan(session, waiting)):
            batch, requests, max_cost = plan
            reserved += max_cost
            _write(session.run, batch)
            _send(session, batch, requests)
        if not reserved:
            raise session.over_budget(len(waiting))
        yield from finish(session)
        session.budget.settle(reserved, 0.0)


def _plan(session: Session, waiting: deque[Post]) -> tuple[Batch, list[Request], float] | None:
    """Take images from `waiting` for a batch. Return (batch, requests, maximum cost), or None if over the budget."""
    newest = session.retry(lambda: session.client.messages.batches.list(limit=1)).data
    now = datetime.now(UTC).isoformat(timespec="seconds")
    batch = Batch(secrets.token_hex(8), [], newest[0].id if newest else "", now)
    batch.model, batch.made_with = session.config.model, session.made_with
    requests, size, reserved = [], 0, 0.0
    while waiting and size < MAX_BYTES:
        max_cost = session.max_cost_usd(waiting[0], batch=True)
        if not session.budget.reserve(max_cost):
            break
        post = waiting.popleft()
        batch.file_names.append(post.file_name)
        if request := _request(session, batch, len(batch.file_names) - 1, post):
            requests.append(request)
            size += len(json.dumps(request))
        reserved += max_cost
    return (batch, requests, reserved) if batch.file_names else None


def _request(session: Session, batch: Batch, number: int, post: Post) -> Request | None:
    """Return the batch request for an image, or save a failed row and return None if it cannot be read."""
    request_id = batch.request_id(number)
    try:
        params = session.prompt.request(post)
    except OSError as error:
        session.save(session.row(post, f"failed: cannot be read ({error})", request=request_id))
        return None
    return {"custom_id": request_id, "params": params}


def _send(session: Session, batch: Batch, requests: list[Request], may_exist: bool = False) -> None:
    """Create the batch on the server, unless an earlier attempt did, and save its id. Raises RunError if refused."""
    tries = 0

    def send() -> str:
        nonlocal tries
        if (tries or may_exist) and (there := _find(session, batch, len(requests))):
            return there
        tries += 1
        batch.model, batch.made_with = session.config.model, session.made_with
        return session.client.messages.batches.create(requests=requests).id

    try:
        batch.id = session.retry(send) if requests else ""
        batch.done = not requests
    except RunError as error:
        batch.done = tries == 1 and not may_exist and _is_refusal(error.__cause__)
        raise
    finally:
        _write(session.run, batch)


def _is_refusal(error: BaseException | None) -> bool:
    """Return True if an error means that the server certainly rejected the request."""
    status = getattr(error, "status_code", 0)
    return 400 <= status < 500 and status not in (408, 409)


def _find(session: Session, batch: Batch, count: int) -> str:
    """Search the server for a batch by its key, and return its id, or "" if not found."""
    oldest = datetime.fromisoformat(batch.planned_at) - MAX_CLOCK_DIFFERENCE
    known = {other.id for other in read_batches(session.run)}

    def is_newer(candidate: MessageBatch) -> bool:
        return candidate.id != batch.after and candidate.created_at > oldest

    batches = session.client.messages.batches
    for candidate in session.retry(lambda: [*takewhile(is_newer, batches.list(limit=100))]):
        total = sum(candidate.request_counts.to_dict().values())
        if candidate.id in known or total != count:
            continue
        results = _results(session, candidate.id)
        if any(str(result.get("custom_id")).startswith(batch.key) for result in results):
            return candidate.id
    return ""


def _results(session: Session, batch_id: str) -> list[dict[str, Any]]:
    """Wait for a batch to end, and return its results, or [] if the server no longer has the batch."""
    batches = session.client.messages.batches
    try:
        while session.retry(lambda: batches.retrieve(batch_id)).processing_status != "ended":
            time.sleep(session.config.poll_s)
        return session.retry(lambda: _read_lines(batches, batch_id))
    except RunError as error:
        if not isinstance(error.__cause__, anthropic.NotFoundError):
            raise
    except anthropic.AnthropicError:  # ended, and its results are archived
        pass
    print(f"batch {batch_id} is gone from the server: its images will be sent again")
    return []


def _read_lines(batches: Any, batch_id: str) -> list[dict[str, Any]]:
    """Download and return the results of a batch, a JSON object per line. Other lines are ignored."""
    found = []
    with batches.with_streaming_response.results(batch_id) as response:
        for line in response.iter_lines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


def _collect(session: Session, batch: Batch, posts: dict[str, Post]) -> Iterator[Caption]:
    """Wait for a batch to end, then save and yield its rows. Captions that a person wrote are restored."""
    session = session.with_settings_of(batch.model, batch.made_with)
    results = _results(session, batch.id)
    rows = read_rows(session.run.captions, Caption)
    before, saved = latest(rows), {row.request for row in rows}
    wanted = {
        batch.request_id(number): posts[name]
        for number, name in enumerate(batch.file_names)
        if name in posts
    }
    unrequested = 0
    for result in results:
        request = str(result.get("custom_id"))
        unrequested += request not in wanted
        if request in wanted and request not in saved:
            saved.add(request)
            row = session.save(_row(session, wanted[request], request, result.get("result")))
            restore_caption(session.run, before.get(row.file_name), row)
            session.budget.settle(0.0, row.cost_usd)
            yield row
    for request, post in wanted.items():
        if request not in saved:
            row = session.save(_row(session, post, request, None))
            restore_caption(session.run, before.get(row.file_name), row)
            yield row
    if unrequested:
        print(f"batch {batch.id} had {unrequested} results that were not requested: ignored")


def _row(session: Session, post: Post, request: str, result: Any) -> Caption:
    """Return the captions.jsonl row for one result of a batch. None is a missing result."""
    result = result if isinstance(result, dict) else {}
    status = "failed: no answer in the batch"
    match result.get("type"):
        case "succeeded":
            return session.read_body(post, result.get("message"), request)
        case "expired":
            status = "failed: expired in the batch after a day"
        case "canceled":
            status = "failed: canceled with the batch"
        case "errored":
            said = " ".join(json.dumps(result.get("error")).split())[:200]
            is_refused = "content filter" in said.lower()
            status = "refused" if is_refused else f"failed: error in the batch: {said}"
    return session.row(post, status, request=request)
