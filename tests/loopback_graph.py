"""Instagram's own API on loopback, graph.instagram.com, beside the media hosts of loopback_instagram.py.

It pages, hides the token in the address of the next page, tells how much of the limit is used, and refuses with the
codes of the real one.
"""

import json
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.ingest import IngestResult, ingest, list_items
from helpers.scrape.items import Source
from tests.loopback_instagram import FakePost, Instagram, _Handler

TOKEN = "IGAA" + "canary7f3e" * 8 + "ZD"
REFRESHED = "IGAA" + "canary90de" * 8 + "ZD"


@dataclass
class Graph(Instagram):
    """`with Graph(folder, make_posts(12)) as site:` serves until the block ends."""

    page: int = 100  # at most so many posts are given, whatever is asked for
    tokens: tuple[str, ...] = (TOKEN, REFRESHED)
    account_type: str = "MEDIA_CREATOR"
    media_count: int | None = None  # if it is not the number of posts
    percent: float = 1.0  # of the limit, used
    wait_minutes: int = 0
    limits: list[int] = field(default_factory=list)  # that were asked for
    unknown: str = ""  # a field that is not known
    refreshed: str = REFRESHED

    def handle(self, connection: object) -> None:
        _GraphHandler(connection, self)

    def object(self, post: FakePost) -> dict:
        parts = [self.part(post, i, kind) for i, kind in enumerate(post.slides, 1)]
        shown = parts[0]
        if len(parts) > 1:
            shown = parts[0] | {"media_type": "CAROUSEL_ALBUM", "children": {"data": parts}}
        else:
            shown = shown | {"alt_text": f"May show {post.code}_1"}
        taken_at = datetime.fromtimestamp(post.taken_at, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
        shown = shown | {
            "id": str(number_of(post)),
            "shortcode": post.code,
            "permalink": f"https://www.instagram.com/p/{post.code}/",
            "caption": post.caption,
            "timestamp": taken_at,
            "like_count": post.likes,
            "username": post.owner or self.username,
        }
        return {name: value for name, value in shown.items() if name not in post.lacks}

    def part(self, post: FakePost, index: int, kind: str) -> dict:
        """A slide, with the number that it had when it was published: `kind` may tell it, as in image3."""
        number = int(kind.lstrip("imagevdo") or index)
        name = f"{post.code}_{number}"
        address = f"https://{self.media_host}/48/{name}.jpg?links={self.links}"
        part = {"id": f"{number_of(post)}{number:02d}", "media_type": "IMAGE", "media_url": address}
        if kind == "video":
            part |= {"media_type": "VIDEO", "media_url": address[:-10] + ".mp4"}
            part |= {"thumbnail_url": address}
        return {key: value for key, value in part.items() if key not in post.lacks}


def number_of(post: FakePost) -> int:
    return int.from_bytes(post.code.encode()) % 10**17


class _GraphHandler(_Handler):
    """The requests of one connection."""

    site: Graph

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        if not self.headers["Host"].startswith("graph."):
            return super().do_GET()
        self.asked = {n: v[0] for n, v in urllib.parse.parse_qs(parts.query).items()}
        path = parts.path.strip("/")
        kind = {"me": "me", "me/media": "media", "refresh_access_token": "refresh"}.get(path)
        if self.asked.get("access_token") not in self.site.tokens:
            return self.refuse(190, "", "Invalid OAuth access token - Cannot parse access token")
        if self.site.unknown and self.site.unknown in self.asked.get("fields", ""):
            return self.refuse(100, "", "Tried accessing nonexisting field")
        self.answer(kind or "object", self.asked.get("after", "") if kind else path)

    def send(self, status: int, body: object, content_type: str = "", **headers: str) -> None:
        if self.headers["Host"].startswith("graph."):
            row = {"type": "instagram", "call_count": self.site.percent, "total_cputime": 1}
            row |= {"total_time": 1, "estimated_time_to_regain_access": self.site.wait_minutes}
            headers["X_Business_Use_Case_Usage"] = json.dumps({self.site.user_id: [row]})
            headers["X_App_Usage"] = json.dumps({"call_count": 2, "total_time": 1})
        super().send(status, body, content_type, **headers)

    def refuse(self, code: int, subcode: str, said: str = "It echoes", status: int = 400) -> None:
        error = {"message": f"{said} {self.path}", "type": "OAuthException", "code": code}
        error |= {"error_subcode": int(subcode)} if subcode else {}
        self.send(status, {"error": error | {"fbtrace_id": "x"}})

    # as it should be

    def give_me(self, _: str) -> None:
        count = self.site.media_count
        me = {
            "user_id": self.site.user_id,
            "id": "7",
            "username": self.site.username,
            "account_type": self.site.account_type,
            "media_count": len(self.site.posts) if count is None else count,
        }
        self.send(200, me)

    def give_media(self, after: str) -> None:
        limit = int(self.asked.get("limit", 25))
        self.site.limits.append(limit)
        start, size = int(after or 0), min(limit, self.site.page)
        paging = {"cursors": {"before": str(start), "after": str(start + size)}}
        if start + size < len(self.site.posts):
            more = f"?access_token={self.asked['access_token']}&after={start + size}"
            paging["next"] = f"https://graph.instagram.com/v23.0/me/media{more}"
        posts = self.site.posts[start : start + size]
        self.send(200, {"data": [self.site.object(post) for post in posts], "paging": paging})

    def give_object(self, media_id: str) -> None:
        for post in self.site.posts:
            if str(number_of(post)) == media_id:
                return self.send(200, self.site.object(post))
        self.refuse(100, "33", "Unsupported get request. Object does not exist")

    def give_refresh(self, _: str) -> None:
        token = {"access_token": self.site.refreshed, "token_type": "bearer"}
        self.send(200, token | {"expires_in": 5_183_944})

    # as it should not be

    def fail(self, answer: str, about: str) -> None:
        code, _, subcode = answer.partition(".")
        if self.headers["Host"].startswith("graph.") and code.isdecimal():
            said = "Session has expired on Friday, 11-Sep-26 06:41:31 PDT."
            return self.refuse(int(code), subcode, said, 500 if code in "12" else 400)
        if answer.startswith("http"):
            return self.send(int(answer[4:]), "<html>not the API</html>")
        super().fail(answer, about)

    def fail_list(self, _: str) -> None:
        self.send(200, [1, 2])

    def fail_uncoded(self, _: str) -> None:
        self.send(200, {"error": {"message": f"It echoes {self.path}"}})

    def fail_silence(self, _: str) -> None:
        self.site.done.wait()

    def fail_empty(self, _: str) -> None:
        self.send(200, {})

    def fail_circle(self, after: str) -> None:
        paging = {"cursors": {"after": after or "0"}, "next": "https://x"}
        self.send(200, {"data": [], "paging": paging})

    def fail_away(self, _: str) -> None:
        self.send(302, "", Location=f"https://elsewhere.example/?{self.path}")


# 01 on it


def config(**more: object) -> ScrapeConfig:
    return ScrapeConfig(run="art", source="api", **more)


def walk(**more: object) -> tuple[Run, Source, list[IngestResult]]:
    run, settings = Run("art"), config(**more)
    source = list_items(settings, run)
    return run, source, list(ingest(settings, run, source))
