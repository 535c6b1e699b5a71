"""A Claude API on loopback that the real SDK talks to, with its own price list, its own bill, and faults on demand.

It reads the number that is drawn into each picture and captions it by that, so a caption on the wrong
image shows whatever the files are called. Written from the public API reference (version 2026-10-21).
"""

import base64
import hashlib
import io
import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

CELLS = 4  # a picture is CELLS x CELLS squares, black for 0 and white for 1
PRICES = {"claude-haiku-5-5": (0.10, 0.50), "claude-sonnet-5-5": (2.0, 10.0)}  # USD per MTok
READ = {"claude-haiku-5-5": 0.01, "claude-sonnet-5-5": 0.10}
SMALLEST_CACHE = 512
REFUSED_PARAMETERS = ("temperature", "top_p", "top_k")
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
ADVERSARIAL = [
    '{"captions": ["one", "two"]}',
    '[{"caption": "a cat"}, {"caption": "a dog"}]',
    '{"caption": "a cat", "file_name": "p-00001_1.jpg"}',
    '{"caption": "a cat", "custom_id": "0000-00001"}',
    '{"id": "p-00002_1.jpg", "caption": "a cat"}',
    '{"caption": "p-00003_1.jpg: a cat"}',
    '{"caption": "<script>alert(1)</script> a cat"}',
    '{"caption": "a cat <img src=x onerror=alert(1)>"}',
    '{"caption": "a cat from https://example.com/x"}',
    '{"caption": "see www.example.com"}',
    '{"caption": "%s"}' % ("meow " * 2000),
    '{"caption": "%s"}' % ("m" * 10_000),
    '{"caption": ""}',
    '{"caption": "   "}',
    '{"caption": null}',
    '{"caption": 7}',
    '{"caption": ["a cat"]}',
    '{"caption": {"text": "a cat"}}',
    '{"Caption": "a cat"}',
    '"a cat"',
    "null",
    "a cat",
    "",
    '{"caption": "a cat"',
    '{"caption": "a cat"} {"caption": "a dog"}',
    '```json\n{"caption": "a cat"}\n```',
    '{"caption": "=HYPERLINK(\\"x\\")"}',
    '{"caption": "+1 cat"}',
    '{"caption": "@SUM(A1)"}',
    '{"caption": "-2 cats"}',
    '{"caption": "a cat\\u0000"}',
    '{"caption": "a \\u202ecat"}',
    '{"caption": "{\\"caption\\": \\"a cat\\"}"}',
    '{"caption": "[1] a cat [2] a dog"}',
    '{"caption": "a cat | a dog"}',
    '{"caption": "${jndi:ldap://x}"}',
    '{"caption": "../../etc/passwd.txt"}',
    "[" * 5000,
    '{"a":' * 3000,
]


def numbered_picture(path: Path, number: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A picture that says its number, below 65,536, in a way that survives JPEG and scaling."""
    bits = [255 * (number >> i & 1) for i in range(CELLS * CELLS)]
    small = Image.frombytes("L", (CELLS, CELLS), bytes(bits))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.NEAREST).convert("RGB").save(path)
    return path


def read_number(image: Image.Image) -> int:
    small = image.convert("L").resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
    return sum((value > 127) << i for i, value in enumerate(small))


def caption_of(number: int) -> str:
    """What the server says that a picture shows."""
    colours, animals = ["red", "blue", "green", "yellow", "pink"], ["cat", "fox", "owl", "bear"]
    return f"a {colours[number % 5]} {animals[number % 4]} with {number} apples in a quiet garden at noon"


@dataclass
class Charge:
    """A line of the bill."""

    number: int
    usage: dict
    usd: float
    batch: bool
    fault: str  # empty for an answer in order


@dataclass
class LoopbackClaude:
    """The server. `fault(number, times asked before)` names what goes wrong with an answer, or is empty."""

    fault: Callable[[int, int], str] = lambda _number, _asked: ""
    requests_left: int | None = None  # as the rate-limit headers say
    retry_after: str = "0"
    slow_s: float = 0.0
    hang_s: float = 1.0  # of the fault `timeout`
    more_words: str = ""  # at the end of each caption
    polls: int = 1  # looks at a batch before it has ended
    on_answer: Callable[[int], None] = lambda _count: (
        None
    )  # after an answer is billed, before it is sent
    on_created: Callable[[], None] = lambda: None  # likewise after a batch is made
    bill: list[Charge] = field(default_factory=list)
    log: list[tuple[str, dict]] = field(default_factory=list)  # (path, body) of each POST
    batches: dict[str, dict] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    caches: set[str] = field(default_factory=set)
    flying: int = 0
    most_flying: int = 0

    def __post_init__(self):
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self})
        )
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients are killed here, and say no goodbye
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def billed_usd(self) -> float:
        return sum(charge.usd for charge in self.bill)

    def paid(self, number: int | None = None) -> list[Charge]:
        return [charge for charge in self.bill if number in (None, charge.number)]

    # what the API refuses

    def complaint(self, body: dict, *, counting: bool = False) -> str:
        thinking = (body.get("thinking") or {}).get("type")
        final = body["messages"][-1]
        images = [block for block in final["content"] if block["type"] == "image"]
        if found := [name for name in REFUSED_PARAMETERS if name in body]:
            return f"{found[0]} is not supported"
        if (body.get("tool_choice") or {}).get("type") in ("tool", "any"):
            return "tool_choice forces tool use"
        if counting == ("max_tokens" in body):
            return "max_tokens: extra or missing"
        if body["model"] == "claude-sonnet-5-5" and thinking not in (
            None,
            "adaptive",
            "between_tools",
        ):
            return f"thinking.type {thinking} is not supported by this model"
        if final["role"] != "user":
            return "this model does not support prefill"
        if len(images) != 1:
            return f"TEST: {len(images)} images to caption in one request"
        if body.get("output_config", {}).get("format", {}).get("type") != "json_schema":
            return "TEST: no structured output"
        return ""

    # tokens and money

    def tokens(self, block: dict) -> int:
        if block["type"] == "text":
            return math.ceil(len(block["text"]) / 4)
        with Image.open(io.BytesIO(base64.b64decode(block["source"]["data"]))) as image:
            return math.ceil(image.width / 28) * math.ceil(image.height / 28)

    def count(self, body: dict) -> tuple[int, int, str]:
        """(all input tokens, those of the cached prefix, its key)."""
        schema = math.ceil(len(json.dumps(body.get("output_config", {}))) / 4)
        blocks = list(body.get("system", []))
        for message in body["messages"]:
            blocks += message["content"]
        total, prefix, digest, key = schema, 0, hashlib.sha256(body["model"].encode()), ""
        for block in blocks:
            total += self.tokens(block) + 3
            digest.update(json.dumps(block, sort_keys=True).encode())
            if "cache_control" in block:
                prefix, key = total, digest.hexdigest()
        return (total, prefix, key) if prefix >= SMALLEST_CACHE else (total, 0, "")

    def charge(self, body: dict, number: int, text: str, fault: str, *, batch: bool) -> dict:
        total, prefix, key = self.count(body)
        with self.lock:
            hit = key in self.caches
            self.caches.add(key)
        usage = {
            "input_tokens": total - prefix,
            "output_tokens": math.ceil(len(text) / 4),
            "cache_read_input_tokens": prefix if hit else 0,
            "cache_creation_input_tokens": 0 if hit else prefix,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 0,
                "ephemeral_1h_input_tokens": 0 if hit else prefix,
            },
        }
        price_in, price_out = PRICES[body["model"]]
        usd = (
            (
                usage["input_tokens"] * price_in
                + usage["output_tokens"] * price_out
                + usage["cache_read_input_tokens"] * READ[body["model"]]
                + usage["cache_creation_input_tokens"] * 2 * price_in
            )
            * (0.5 if batch else 1)
            / 1e6
        )
        with self.lock:
            self.bill.append(Charge(number, usage, usd, batch, fault))
            count = len(self.bill)
        if not batch:
            self.on_answer(count)
        return usage

    # answers

    def number_in(self, body: dict) -> int:
        block = next(b for b in body["messages"][-1]["content"] if b["type"] == "image")
        with Image.open(io.BytesIO(base64.b64decode(block["source"]["data"]))) as image:
            return read_number(image)

    def next_fault(self, number: int) -> str:
        with self.lock:
            asked = self.asked[number]
            self.asked[number] += 1
        return self.fault(number, asked)

    def message(self, body: dict, number: int, fault: str, *, batch: bool) -> dict:
        text = json.dumps({"caption": caption_of(number) + self.more_words})
        reason = "end_turn"
        if fault == "refusal":
            text, reason = "", "refusal"
        elif fault == "max_tokens":
            text, reason = text[:20], "max_tokens"
        elif fault.startswith("says "):
            text = fault.removeprefix("says ")
        elif fault.startswith("adversarial"):
            text = ADVERSARIAL[int(fault.split()[1]) % len(ADVERSARIAL)]
        content = [{"type": "text", "text": text}] if text else []
        if fault == "thinking":
            content.insert(0, {"type": "thinking", "thinking": "hm", "signature": "x"})
        return {
            "id": f"msg_{random.randrange(10**12)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self.charge(body, number, text, fault, batch=batch),
        }

    # batches

    def create(self, body: dict) -> dict:
        with self.lock:
            number = len(self.batches)
            made = {"requests": body["requests"], "looks": 0, "number": number, "lines": None}
            batch_id = f"msgbatch_{number:04d}"
            self.batches[batch_id] = made
        self.on_created()
        return self.show(batch_id)

    def show(self, batch_id: str) -> dict:
        made = self.batches[batch_id]
        ended = made["looks"] > self.polls
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        counts["succeeded" if ended else "processing"] = len(made["requests"])
        now = datetime.now(UTC).isoformat()
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": now,
            "expires_at": now,
            "ended_at": now if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch_id}/results" if ended else None,
        }

    def results(self, batch_id: str) -> list[str]:
        made = self.batches[batch_id]
        with self.lock:
            if made["lines"] is None:
                made["lines"] = [line for r in made["requests"] for line in self.lines_of(r)]
                random.Random(made["number"]).shuffle(made["lines"])
        return made["lines"]

    def lines_of(self, request: dict) -> list[str]:
        custom_id, body = request["custom_id"], request["params"]
        number = self.number_in(body)
        fault = self.next_fault(number)
        if fault == "missing":
            return []
        if fault in ("expired", "canceled"):
            result = {"type": fault}
        elif fault == "errored" or fault.isdigit():
            error = {
                "type": ERRORS[int(fault)] if fault.isdigit() else "api_error",
                "message": "no",
            }
            result = {"type": "errored", "error": {"type": "error", "error": error}}
        else:
            message = self.message(body, number, fault, batch=True)
            result = {"type": "succeeded", "message": message}
        line = json.dumps({"custom_id": custom_id, "result": result})
        if fault == "foreign":
            return [line, json.dumps({"custom_id": f"other-{number:05d}", "result": result})]
        if fault == "twice":
            return [line, line]
        return [line, "{oops"] if fault == "bad-line" else [line]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: LoopbackClaude

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not (key := self.headers.get("authorization", "")).startswith("Bearer test-key"):
            return self.error(401, f"invalid key {key.removeprefix('Bearer ')}")
        with self.api.lock:
            self.api.log.append((self.path, body))
            self.api.flying += 1
            self.api.most_flying = max(self.api.most_flying, self.api.flying)
        try:
            self.post(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.api.lock:
                self.api.flying -= 1

    def post(self, body):
        if self.path == "/v1/messages/batches":
            complaints = [c for r in body["requests"] if (c := self.api.complaint(r["params"]))]
            ids = [r["custom_id"] for r in body["requests"]]
            if not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids) or len(ids) != len(
                set(ids)
            ):
                complaints.append("custom_id")
            return (
                self.error(400, complaints[0]) if complaints else self.reply(self.api.create(body))
            )
        counting = self.path == "/v1/messages/count_tokens"
        if body["model"] not in PRICES:
            return self.error(404, f"model: {body['model']}")
        if complaint := self.api.complaint(body, counting=counting):
            return self.error(400, complaint)
        if counting:
            return self.reply({"input_tokens": self.api.count(body)[0]})
        return self.answer(body)

    def answer(self, body):
        number = self.api.number_in(body)
        fault = self.api.next_fault(number)
        if fault == "drop":
            self.close_connection = True
            return None
        if fault == "filter":
            return self.error(400, "Output blocked by content filtering policy")
        if fault.removesuffix(" after").isdigit():
            return self.error(int(fault.split()[0]), "no", after=fault.endswith("after"))
        if self.api.slow_s:
            time.sleep(self.api.slow_s)
        message = self.api.message(body, number, fault, batch=False)
        if fault == "timeout":
            time.sleep(self.api.hang_s)
        if fault == "bad-json":
            return self.reply(b'{"id": "msg_1", oops')
        if fault == "no-message":
            return self.reply([1, 2, 3])
        return self.reply(message, cut=fault == "cut")

    def do_GET(self):
        path, _, query = self.path.partition("?")
        parts = path.removeprefix("/v1/messages/batches").strip("/").split("/")
        if parts == [""]:
            return self.page(dict(pair.split("=") for pair in query.split("&") if pair))
        if parts[0] not in self.api.batches:
            return self.error(404, "no such batch")
        if parts[1:] == ["results"]:
            lines = "\n".join(self.api.results(parts[0])) + "\n"
            return self.reply(lines.encode(), kind="application/x-jsonl")
        with self.api.lock:
            self.api.batches[parts[0]]["looks"] += 1
        return self.reply(self.api.show(parts[0]))

    def page(self, query):
        """Newest first, at most two a page, so that pages are turned."""
        ids = sorted(self.api.batches, reverse=True)
        if "after_id" in query:
            ids = ids[ids.index(query["after_id"]) + 1 :]
        shown = ids[: min(2, int(query.get("limit", 20)))]
        page = {
            "data": [self.api.show(i) for i in shown],
            "has_more": len(shown) < len(ids),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }
        return self.reply(page)

    def error(self, status, text, *, after=False):
        body = {
            "type": "error",
            "error": {"type": ERRORS.get(status, "api_error"), "message": text},
        }
        return self.reply(body, status, {"retry-after": self.api.retry_after} if after else {})

    def reply(self, value, status=200, headers=None, *, cut=False, kind="application/json"):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if self.api.requests_left is not None:
            self.send_header("anthropic-ratelimit-requests-remaining", str(self.api.requests_left))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut
