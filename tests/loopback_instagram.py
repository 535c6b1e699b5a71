"""An Instagram on loopback, for the real instaloader: a proxy that ends TLS, used by the environment alone.

`HTTPS_PROXY` and `REQUESTS_CA_BUNDLE` lead every request here, in papermill's kernels and killed subprocesses too.
It answers as instagram.com and its media hosts do, keeps a log, refuses every other host, and fails on demand.
"""

import hashlib
import http.server
import io
import json
import random
import signal
import socket
import ssl
import string
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from helpers.config import ScrapeConfig
from helpers.core.records import Post, read_rows
from helpers.core.run import Run
from helpers.scrape.ingest import IngestResult, ingest, list_items, verify_images
from helpers.scrape.items import Source

KINDS = {  # of requests, by the number of the query
    "28904005159232689": "timeline",
    "29104886249145907": "timeline",
    "27128499623469141": "post",
    "27937681195819736": "profile",
}
FIRST_DAY = 1_700_000_000  # 2023-11-14
DAY_S = 86_400
CANARIES = {
    "cookie": "canary-cookie-5f1e",
    "csrf": "canary-csrf-77aa",
    "lsd": "canary-lsd-31bc",
    "dtsg": "canary-dtsg-90de",
    "password": "canary-password-4c2f",
}
COOKIES = f"sessionid={CANARIES['cookie']}; csrftoken={CANARIES['csrf']}; ds_user_id=7"
CONFIG = """[req]
distinguished_name = dn
x509_extensions = v3
prompt = no
[dn]
CN = loopback
[v3]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = DNS:*.instagram.com, DNS:*.cdninstagram.com, DNS:*.fbcdn.net
"""


def make_certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key, config = folder / "ca.pem", folder / "key.pem", folder / "ca.cnf"
    config.write_text(CONFIG)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30"
    files = ["-keyout", key, "-out", certificate, "-config", config]
    subprocess.run([*command.split(), *map(str, files)], check=True, capture_output=True)
    return certificate, key


@dataclass
class FakePost:
    code: str
    taken_at: int
    slides: tuple[str, ...] = ("image",)  # image or video
    caption: str = ""
    likes: int = 0
    owner: str = ""  # who published it together with the account, whose timeline it is in
    lacks: tuple[str, ...] = ()  # what an answer does not say of it

    @property
    def images(self) -> list[str]:
        return [f"{self.code}_{i}" for i, kind in enumerate(self.slides, 1) if kind == "image"]


def make_posts(count: int, seed: int = 0) -> list[FakePost]:
    """Newest first: pictures, carousels and videos, with captions in several scripts."""
    rng = random.Random(seed)
    letters = string.ascii_letters + string.digits + "-_"
    shapes = (
        ("image",),
        ("image", "image", "image"),
        ("video",),
        ("image", "video"),
        ("image", "image"),
    )
    return [
        FakePost(
            "C" + "".join(rng.choices(letters, k=10)),
            FIRST_DAY + (count - i) * DAY_S,
            shapes[i % len(shapes)],
            f'Nr {i} — Käfer 🐞 "quoted"\nsecond line',
            i,
        )
        for i in range(count)
    ]


@cache
def picture(name: str, width_px: int = 48) -> bytes:
    """A real JPEG, another one for each name and width."""
    seed = hashlib.sha256(f"{name} {width_px}".encode()).digest()
    image = Image.frombytes("RGB", (4, 2), seed[:24])
    buffer = io.BytesIO()
    image.resize((width_px, width_px * 5 // 4)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass
class Fault:
    kind: str  # of request that fails: page, start, timeline, post, profile, image, login
    answer: str
    after: int = 0  # so many are answered well first
    times: int = 10**9
    about: str = ""  # only requests whose subject has this


@dataclass
class Instagram:
    """`with Instagram(folder, make_posts(12)) as server:` serves until the block ends."""

    folder: Path
    posts: list[FakePost]
    page: int = 12
    username: str = "artist"
    user_id: str = "42"
    is_private: bool = False
    media_host: str = "scontent.cdninstagram.com"
    links: str = "1"  # goes into media addresses; older ones have expired
    second_factor: bool = False
    log: list[tuple[str, str]] = field(default_factory=list)  # kind and subject
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.certificate, key = make_certificate(self.folder)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)
        self.done = threading.Event()
        self.on_request = lambda kind, phase: None  # phase: asked, answered

    def __enter__(self) -> "Instagram":
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.listener.close()

    def environment(self) -> dict[str, str]:
        return {
            "HTTPS_PROXY": f"http://127.0.0.1:{self.listener.getsockname()[1]}",
            "REQUESTS_CA_BUNDLE": str(self.certificate),
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def fail(self, kind: str, answer: str, **more: object) -> None:
        self.faults.append(Fault(kind, answer, **more))

    def asked(self, kind: str) -> list[str]:
        return [about for asked, about in self.log if asked == kind]

    def images(self) -> list[str]:
        """What a walk takes, in order."""
        return [name for post in self.posts for name in post.images]

    def fault(self, kind: str, about: str) -> str:
        for fault in self.faults:
            if fault.kind == kind and fault.about in about:
                fault.after -= 1
                if fault.after < 0 and fault.times > 0:
                    fault.times -= 1
                    return fault.answer
        return ""

    def _listen(self) -> None:
        while not self.done.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096) or b"\r\n\r\n"
            host = head.decode("latin-1").split(" ")[1].rpartition(":")[0]
            if not host.endswith((".instagram.com", ".cdninstagram.com", ".fbcdn.net")):
                self.log.append(("elsewhere", host))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            elif self.fault("network", host):
                self.log.append(("network", host))
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with self.tls.wrap_socket(connection, server_side=True) as secure:
                    self.handle(secure)
        except (OSError, ValueError, IndexError):
            pass  # the other side is gone
        finally:
            connection.close()

    def handle(self, connection: ssl.SSLSocket) -> None:
        _Handler(connection, self)

    # what is known

    def user(self) -> dict:
        return {
            "pk": self.user_id,
            "id": f"17841{self.user_id}",
            "username": self.username,
            "full_name": "An Artist",
            "is_private": self.is_private,
            "profile_pic_url": f"https://{self.media_host}/me.jpg",
        }

    def media(self, post: FakePost) -> dict:
        slides = [self.slide(f"{post.code}_{i}", kind) for i, kind in enumerate(post.slides, 1)]
        media = {
            "code": post.code,
            "pk": str(int.from_bytes(post.code.encode())),
            "taken_at": post.taken_at,
            "user": self.user(),
            "caption": {"text": post.caption} if post.caption else None,
            "like_count": post.likes,
            "comment_count": 0,
            "has_liked": False,
        }
        if post.owner:
            media["user"] |= {"username": post.owner, "pk": "77", "id": "1784177"}
        if len(slides) == 1:
            media = slides[0] | media
        else:
            media |= {"media_type": 8, "carousel_media": slides, **_renditions(slides[0])}
        return {name: value for name, value in media.items() if name not in post.lacks}

    def slide(self, name: str, kind: str) -> dict:
        candidates = [  # not the widest first, as it sometimes is
            {"url": f"https://{self.media_host}/{w}/{name}.jpg?links={self.links}", "width": w}
            for w in (24, 48, 32)
        ]
        slide = {
            "code": name,
            "media_type": 2 if kind == "video" else 1,
            "accessibility_caption": f"May show {name}",
            "image_versions2": {"candidates": candidates},
        }
        if kind == "video":
            slide |= {"video_versions": [{"url": f"https://{self.media_host}/{name}.mp4"}]}
            slide |= {"video_duration": 1.0, "view_count": 1, "play_count": 1}
        return slide

    def timeline(self, after: str, whole: bool) -> dict:
        start = int(after or 0)
        posts = self.posts[start : start + self.page]
        nodes = [self.media(post) if whole else {"code": post.code} for post in posts]
        more = start + self.page < len(self.posts)
        page_info = {"has_next_page": more, "end_cursor": str(start + self.page)}
        return {"edges": [{"node": node} for node in nodes], "page_info": page_info}


def _renditions(slide: dict) -> dict:
    return {"image_versions2": slide["image_versions2"]}


class _Handler(http.server.BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: ssl.SSLSocket, site: Instagram) -> None:
        self.site = site
        super().__init__(connection, ("127.0.0.1", 0), None)

    def log_message(self, *_: object) -> None:
        pass

    @property
    def is_logged_in(self) -> bool:
        return CANARIES["cookie"] in (self.headers["Cookie"] or "")

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if self.headers["Host"].endswith(("cdninstagram.com", "fbcdn.net")):
            self.answer("image", path.rpartition("/")[2].removesuffix(".jpg"))
        elif path == "/":
            self.answer("start", "")
        else:
            self.answer("page", path.strip("/"))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.form = urllib.parse.parse_qs(self.rfile.read(length).decode())
        path = urllib.parse.urlsplit(self.path).path
        if "/login/ajax" in path:
            return self.answer("login", "factor" if "two_factor" in path else "password")
        self.given = json.loads(self.form["variables"][0])
        kind = KINDS.get(self.form["doc_id"][0], "unknown")
        about = self.given.get("shortcode") or self.given.get("after") or self.given.get("id") or ""
        self.answer(kind, str(about))

    def answer(self, kind: str, about: str) -> None:
        self.site.on_request(kind, "asked")
        self.site.log.append((kind, about))
        if fault := self.site.fault(kind, about):
            self.fail(fault, about)
        else:
            getattr(self, f"give_{kind}")(about)
        self.site.on_request(kind, "answered")

    def send(self, status: int, body: object, content_type: str = "", **headers: str) -> None:
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        content = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        json_type = "text/html" if isinstance(body, str) else "application/json"
        self.send_header("Content-Type", content_type or json_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    # as it should be

    def give_start(self, _: str) -> None:
        page = f'["LSD",[],{{"token":"{CANARIES["lsd"]}"}},1] "IG_USER_EIMU":"0" '
        if self.is_logged_in:
            page += f'["DTSGInitialData",[],{{"token":"{CANARIES["dtsg"]}"}},2]'
        self.send(200, page, Set_Cookie=f"csrftoken={CANARIES['csrf']}; Path=/; Secure")

    def give_page(self, name: str) -> None:
        if name != self.site.username:
            return self.send(404, "<html>Sorry, this page isn't available.</html>")
        user = self.site.user() | {"all_media_count": len(self.site.posts)}
        shown = [user]
        if not self.site.is_private:
            shown.append(
                user | {"polaris_ordered_timeline_connection": self.site.timeline("", False)}
            )
        scripts = [
            json.dumps(
                {"require": [[{"__bbox": {"result": {"data": {"xig_user_by_username": u}}}}]]}
            )
            for u in shown
        ]
        page = "".join(f'<script type="application/json" data-x>{s}</script>' for s in scripts)
        self.send(200, f"<html>{page}</html>")

    def give_profile(self, _: str) -> None:
        user = self.site.user() | {
            "media_count": len(self.site.posts),
            "follower_count": 1,
            "following_count": 2,
            "friendship_status": {"following": False},
        }
        self.send(200, {"status": "ok", "data": {"user": user}})

    def give_timeline(self, after: str) -> None:
        if self.is_logged_in:
            page = self.site.timeline(after if after.isdecimal() else "", True)
            data = {"xdt_api__v1__feed__user_timeline_graphql_connection": page}
        else:
            data = {
                "node": {"polaris_ordered_timeline_connection": self.site.timeline(after, False)}
            }
        self.send(200, {"data": data})

    def give_post(self, code: str) -> None:
        post = next((post for post in self.site.posts if post.code == code), None)
        items = [self.site.media(post)] if post else []
        data = {"xdt_api__v1__media__shortcode__web_info": {"items": items}}
        self.send(200, {"status": "ok", "data": data})

    def give_image(self, name: str) -> None:
        parts = urllib.parse.urlsplit(self.path)
        if urllib.parse.parse_qs(parts.query).get("links") != [self.site.links]:
            return self.send(403, "URL signature expired", "text/plain")
        self.send(200, picture(name, int(parts.path.split("/")[1])), "image/jpeg")

    def give_login(self, step: str) -> None:
        if step == "password" and not self.form["enc_password"][0].endswith(CANARIES["password"]):
            return self.send(200, {"authenticated": False, "user": True, "status": "ok"})
        if step == "password" and self.site.second_factor:
            info = {"two_factor_identifier": "x"}
            return self.send(400, {"two_factor_required": True, "two_factor_info": info})
        self.send_response(200)
        for name, value in (("sessionid", CANARIES["cookie"]), ("ds_user_id", "7")):
            self.send_header("Set-Cookie", f"{name}={value}; Path=/; Secure")
        self.send_header("Set-Cookie", f"csrftoken={CANARIES['csrf']}; Path=/; Secure")
        body = b'{"authenticated": true, "user": true, "status": "ok"}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def give_unknown(self, _: str) -> None:
        self.fail("revoked", "")

    # as it should not be

    def fail(self, answer: str, about: str) -> None:
        if answer.isdecimal():
            words = {"status": "fail", "message": "Please wait a few minutes before you try again."}
            return self.send(int(answer), words)
        getattr(self, f"fail_{answer}")(about)

    def fail_echo(self, _: str) -> None:
        self.send(400, {"status": "fail", "message": f"no entry with {self.headers['Cookie']}"})

    def fail_checkpoint(self, _: str, word: str = "checkpoint_required") -> None:
        self.send(400, {"status": "fail", "message": word, "checkpoint_url": "/challenge/x/"})

    def fail_challenge(self, _: str) -> None:
        self.fail_checkpoint("", "challenge_required")

    def fail_feedback(self, _: str) -> None:
        self.fail_checkpoint("", "feedback_required")

    def fail_revoked(self, _: str) -> None:
        self.send(400, {"status": "fail", "message": "invalid request"})

    def fail_execution(self, _: str) -> None:
        self.send(200, {"errors": [{"message": "execution error"}], "data": None})

    def fail_login(self, _: str) -> None:
        self.send(302, "", Location="https://www.instagram.com/accounts/login/?next=%2F")

    def fail_html(self, _: str) -> None:
        self.send(200, "<!DOCTYPE html><html><body>Something is different today</body></html>")

    def fail_gone(self, _: str) -> None:
        data = {"xdt_api__v1__media__shortcode__web_info": {"items": []}}
        self.send(200, {"status": "ok", "data": data})

    def fail_changed(self, code: str) -> None:
        other = next(post for post in self.site.posts if post.code != code)
        data = {"xdt_api__v1__media__shortcode__web_info": {"items": [self.site.media(other)]}}
        self.send(200, {"status": "ok", "data": data})

    def fail_malformed(self, code: str) -> None:
        data = {
            "xdt_api__v1__media__shortcode__web_info": {"items": [{"code": code, "media_type": 1}]}
        }
        self.send(200, {"status": "ok", "data": data})

    def fail_redirect(self, _: str) -> None:
        self.send(302, "", Location="https://169.254.169.254/latest/meta-data/")

    def fail_loop(self, _: str) -> None:
        self.send(302, "", Location=self.path)

    def fail_drop(self, _: str) -> None:
        self.close_connection = True
        self.connection.close()

    def fail_cut(self, name: str) -> None:
        content = picture(name)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def fail_short(self, name: str) -> None:
        """Cut, and the length is not told."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(picture(name)[:-200])
        self.close_connection = True

    def fail_huge(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(64):
            self.wfile.write(b"\0" * 2**16)
        self.close_connection = True

    def fail_slow(self, name: str) -> None:
        content = picture(name)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for i in range(len(content)):
            if self.site.done.wait(0.02):
                return
            self.wfile.write(content[i : i + 1])
            self.wfile.flush()


# kills


def killed_sessions(site: Instagram, script: str, kills: int, rng: random.Random) -> list[list]:
    """Sessions of a real process that runs `script`, each killed around a random request; the requests of each."""
    sessions = []
    while len(sessions) < kills:
        process = subprocess.Popen([sys.executable, "-c", script])
        countdown, phase = rng.randint(1, 12), rng.choice(("asked", "answered"))
        delay_s = rng.choice((0.0, rng.uniform(0, 0.02)))

        def strike(_kind, now, process=process, phase=phase, delay_s=delay_s):
            nonlocal countdown
            countdown -= now == phase
            if countdown == 0:
                threading.Timer(delay_s, process.kill).start()

        site.on_request, begin = strike, len(site.log)
        killed = process.wait() == -signal.SIGKILL
        site.on_request = lambda *_: None
        sessions.append(site.log[begin:])
        if not killed:
            break
    return sessions


# 01 on it


def config(account: str = "artist", **more: object) -> ScrapeConfig:
    return ScrapeConfig(run="art", source="instagram", account=account, pauses=False, **more)


def walk(**more: object) -> tuple[Run, Source, list[IngestResult]]:
    run, settings = Run("art"), config(**more)
    source = list_items(settings, run)
    return run, source, list(ingest(settings, run, source))


def stems(run: Run) -> list[str]:
    """CODE_INDEX of each image taken, in order."""
    return [post.file_name.rpartition(".")[0] for post in read_rows(run.posts, Post)]


def assert_told(stopped, words):
    assert words in stopped and "\n" not in stopped and len(stopped) < 300
    assert "run 01_scrape again" in stopped
    assert not any(canary in stopped for canary in CANARIES.values())


def assert_a_rerun_completes(site, **more):
    site.faults.clear()
    run, source, _ = walk(**more)
    assert not source.stopped and "Stopped early" not in verify_images(run)
    assert sorted(stems(run)) == sorted(site.images()) and len(stems(run)) == len(set(stems(run)))
