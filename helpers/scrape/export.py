"""Source: the ZIP that Instagram gives an account's owner (Accounts Centre, Download your information, JSON).

`posts_1.json` and its like list the posts, each with the paths of its media in the ZIP. A large account comes in
several ZIPs, and a post's media may lie in another part than its line. Nothing is extracted to disk.
"""

import hashlib
import json
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from helpers.colab import why_not_there
from helpers.config import ScrapeConfig
from helpers.errors import RunError
from helpers.scrape.found import Final, Found

POSTS = re.compile(r"(.*?)(?:your_instagram_activity/)?(?:content|media|posts)/posts_\d+\.json")
VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".avi")
MOST_JSON_BYTES = 200 * 10**6
MOST_RATIO = 200  # of a file's size to its packed size; pictures hardly shrink
HOW = "ask Instagram for your information in JSON, and give the ZIP as it comes"


@dataclass(frozen=True)
class Entry:
    """A file in one of the ZIPs, which stays open: an export lists tens of thousands of files."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo


def find(config: ScrapeConfig) -> list[Found]:
    """Every picture of every post, newest first as Instagram lists them.

    Raises RunError if there is no such ZIP, or it lists no posts.
    """
    listed = _entries(_archives(Path(config.folder).expanduser()))
    entries = {entry.info.filename: entry for entry in reversed(listed)}
    found, seen = [], set()
    for entry in listed:
        match = POSTS.fullmatch(entry.info.filename)
        root = match[1] if match else ""
        for post in _posts(entry) if match else ():
            code = _shortcode(post)
            if code not in seen:
                found += _pictures(post, code, root, entries, config.max_image_mb * 10**6)
            seen.add(code)
    if not found:
        raise RunError(f"{config.folder} lists no posts (posts_1.json): {HOW}")
    return found


def _archives(path: Path) -> list[Path]:
    archives = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    if not archives or not archives[0].is_file():
        raise RunError(f"folder {path} is no ZIP and holds none: {HOW}{why_not_there(path)}")
    return archives


def _entries(archives: list[Path]) -> list[Entry]:
    """Every file of every part, by name within each."""
    entries: list[Entry] = []
    for path in archives:
        try:
            archive = zipfile.ZipFile(path)
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise RunError(f"{path} is no whole ZIP: download it again") from None
        entries += [Entry(archive, info) for info in infos]
    return entries


def _posts(entry: Entry) -> Iterator[dict[str, Any]]:
    try:
        posts = json.loads(_read(entry, MOST_JSON_BYTES, ratio=None))
    except (ValueError, RecursionError) as error:
        where = f"{entry.info.filename} in {entry.archive.filename}"
        raise RunError(f"{where} cannot be read ({type(error).__name__}): {HOW}") from None
    if isinstance(posts, dict):  # an account with one post
        posts = [posts] if "media" in posts else next(iter(posts.values()), [])
    for post in posts if isinstance(posts, list) else []:
        media = post.get("media") if isinstance(post, dict) else None
        media = media if isinstance(media, list) else []
        media = [part for part in media if isinstance(part, dict) and part.get("uri")]
        if media:
            yield {**post, "media": media}


def _shortcode(post: dict[str, Any]) -> str:
    """A post's name, the same in every export: the ZIP has no shortcode."""
    first = post["media"][0]
    made_of = f"{_seconds(post)} {str(first['uri']).rpartition('/')[2]}"
    digest = hashlib.sha256(made_of.encode("utf-8", "replace")).digest()
    return "X" + urlsafe_b64encode(digest)[:10].decode()


def _seconds(post: dict[str, Any]) -> int:
    """When it was published, in seconds since 1970; 0 where nobody knows."""
    stamps = [post.get("creation_timestamp"), post["media"][0].get("creation_timestamp")]
    return next((int(s) for s in stamps if isinstance(s, int | float) and 0 < s < 2**35), 0)


def _pictures(
    post: dict[str, Any], code: str, root: str, entries: dict[str, Entry], most_bytes: int
) -> list[Found]:
    seconds = _seconds(post)
    caption = post.get("title") or post["media"][0].get("title") or ""
    return [
        Found(
            name=str(part["uri"])[:300],
            shortcode=code,
            index=index,
            load=partial(_load, str(part["uri"]), root, entries, most_bytes),
            taken_at=datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else "",
            post_caption=mended(str(caption)),
        )
        for index, part in enumerate(post["media"], 1)
    ]


def mended(text: str) -> str:
    """Text as it was written: Instagram's export gives each byte of its UTF-8 as a character of its own."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _load(uri: str, root: str, entries: dict[str, Entry], most_bytes: int) -> bytes:
    """A file's content. Raises Final for a name that leads elsewhere, a video, or one that is not there."""
    parts = uri.split("/")
    if ".." in parts or "" in parts or re.search(r"[\\:\x00-\x1f]", uri):
        raise Final("has a name that leads out of the ZIP")
    if uri.lower().endswith(VIDEOS):
        raise Final("is a video")
    entry = entries.get(root + uri) or entries.get(uri)
    if not entry:
        raise Final("is not in the ZIP: put all parts of the export into one folder")
    return _read(entry, most_bytes, MOST_RATIO)


def _read(entry: Entry, most_bytes: int, ratio: int | None) -> bytes:
    """A file's content, as far as its header tells the truth. Raises Final where it is too large or damaged."""
    info = entry.info
    if info.file_size > most_bytes:
        raise Final(f"is larger than {most_bytes / 1e6:.0f} MB")
    if ratio and info.file_size > ratio * max(1, info.compress_size):
        raise Final("unpacks to far more than a picture would")
    try:
        with entry.archive.open(info) as file:
            content = file.read(most_bytes + 1)
    except Exception as error:  # zipfile raises what its decompressors do
        raise Final(f"is damaged in the ZIP ({type(error).__name__})") from None
    if len(content) > most_bytes:
        raise Final(f"is larger than {most_bytes / 1e6:.0f} MB")
    return content
