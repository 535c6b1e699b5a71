"""Source: the ZIP that Instagram gives an account's owner (Accounts Centre, Download your information, JSON).

`posts_1.json` and its like list the posts, each with the paths of its media in the ZIP. A large account comes in
several ZIPs, and a post's media may lie in another part than its line. The parts may have been packed anew or
unpacked. Nothing is extracted to disk.
"""

import hashlib
import json
import os
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.host.colab import why_not_there
from helpers.scrape.folder import VIDEOS, file_id, is_inside, walk
from helpers.scrape.items import Final, Found, Listing

POSTS = re.compile(r"(.*?)(?:your_instagram_activity/)?(?:content|media|posts)/posts_\d+\.json")
MOST_JSON_BYTES = 200 * 10**6
MOST_RATIO = 200  # of a file's size to its packed size; pictures hardly shrink
HOW = "ask Instagram for your information in JSON, and give the ZIP as it comes"


@dataclass(frozen=True)
class Entry:
    """A file of the export: in a ZIP, which stays open, since an export lists tens of thousands; or unpacked."""

    name: str  # its path, from the top of the ZIP or of the folder
    within: zipfile.ZipFile | Path
    info: zipfile.ZipInfo | os.stat_result

    def __str__(self) -> str:
        place = self.within.filename if isinstance(self.within, zipfile.ZipFile) else self.within
        return f"{self.name} in {place}"

    @property
    def id(self) -> str:
        """What stays the same while the file does; a ZIP has a checksum of its content."""
        if isinstance(self.info, zipfile.ZipInfo):
            return f"{self.info.CRC:08x} {self.info.file_size}"
        return file_id("", self.info)


def find(config: ScrapeConfig, _run: Run) -> Listing:
    """Every picture of every post, newest first as Instagram lists them.

    Raises RunError if there is no such ZIP or folder, or it lists no posts.
    """
    listed = _entries(Path(config.folder).expanduser())
    media = Media(listed)
    found, seen = [], set()
    for entry in listed:
        match = POSTS.fullmatch(entry.name)
        for post in _posts(entry) if match else ():
            code = _shortcode(post)
            if code not in seen:
                found += _pictures(post, code, entry, media, config.max_image_mb * 10**6)
            seen.add(code)
    if not found:
        raise RunError(f"{config.folder} lists no posts (posts_1.json): {HOW}")
    return Listing(found)


def _entries(path: Path) -> list[Entry]:
    """Every file of every part, by name within each: of a ZIP, or of a folder with ZIPs, unpacked ones, or both."""
    if path.is_file():
        return _packed(path)
    files, _ = walk(path)
    archives = [file for file in files if file.suffix.lower() == ".zip"]
    loose = [
        Entry(file.relative_to(path).as_posix(), path, stat)
        for file, stat in files.items()
        if file not in archives and is_inside(file, path)
    ]
    if not archives and not any(POSTS.fullmatch(entry.name) for entry in loose):
        raise RunError(f"folder {path} is no ZIP and holds none: {HOW}{why_not_there(path)}")
    return [entry for archive in archives for entry in _packed(archive)] + loose


def _packed(path: Path) -> list[Entry]:
    try:
        archive = zipfile.ZipFile(path)
        infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise RunError(f"{path} is no whole ZIP: download it again") from None
    entries = [Entry(info.filename.replace("\\", "/"), archive, info) for info in infos]
    return sorted(entries, key=lambda entry: entry.name)


class Media:
    """The files of an export by their paths. A path counts from the folder that holds the whole export.

    Whoever packs a part anew may put its files into a folder more, of another name for each part.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.by_ending: dict[str, list[Entry]] = {}
        for entry in entries:
            parts = entry.name.split("/")
            for i in range(len(parts)):
                self.by_ending.setdefault("/".join(parts[i:]), []).append(entry)

    def get(self, uri: str, line: Entry) -> Entry | None:
        """The file that a line of an export names: below the same folder, else of the same part, else of another."""
        root = POSTS.fullmatch(line.name)[1]
        return min(
            self.by_ending.get(uri, ()),
            key=lambda entry: (entry.name != root + uri, entry.within is not line.within),
            default=None,
        )


def _posts(entry: Entry) -> Iterator[dict[str, Any]]:
    try:
        posts = json.loads(_read(entry, MOST_JSON_BYTES, ratio=None))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{entry} cannot be read ({type(error).__name__}): {HOW}") from None
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
    post: dict[str, Any], code: str, line: Entry, media: Media, most_bytes: int
) -> list[Found]:
    seconds = _seconds(post)
    caption = post.get("title") or post["media"][0].get("title") or ""
    found = []
    for index, part in enumerate(post["media"], 1):
        uri = str(part["uri"])
        entry = media.get(uri, line)
        name = uri[:300].encode("utf-8", "replace").decode()
        found.append(
            Found(
                name=name,
                shortcode=code,
                index=index,
                load=partial(_load, uri, entry, most_bytes),
                taken_at=datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else "",
                post_caption=mended(str(caption)),
                source_id=f"{name} {entry.id}" if entry else "",
            )
        )
    return found


def mended(text: str) -> str:
    """Text as it was written: Instagram's export gives each byte of its UTF-8 as a character of its own."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _load(uri: str, entry: Entry | None, most_bytes: int) -> bytes:
    """A file's content. Raises Final for a name that leads elsewhere, a video, or one that is not there."""
    parts = uri.split("/")
    if ".." in parts or "" in parts or re.search(r"[\\:\x00-\x1f]", uri):
        raise Final("has a name that leads out of the ZIP")
    if uri.lower().endswith(VIDEOS):
        raise Final("is a video")
    if not entry:
        raise Final("is not in the ZIP: put all parts of the export into one folder")
    return _read(entry, most_bytes, MOST_RATIO)


def _read(entry: Entry, most_bytes: int, ratio: int | None) -> bytes:
    """A file's content, as far as its header tells the truth. Raises Final where it is too large or damaged."""
    within, info = entry.within, entry.info
    if isinstance(within, Path):
        size, packed = info.st_size, info.st_size
    else:
        size, packed = info.file_size, info.compress_size
    if size > most_bytes:
        raise Final(f"is larger than {most_bytes / 1e6:.0f} MB")
    if ratio and size > ratio * max(1, packed):
        raise Final("unpacks to far more than a picture would")
    try:
        with (
            (within / entry.name).open("rb") if isinstance(within, Path) else within.open(info)
        ) as file:
            content = file.read(most_bytes + 1)
    except Exception as error:  # zipfile raises what its decompressors do
        raise Final(f"is damaged in the ZIP ({type(error).__name__})") from None
    if len(content) > most_bytes:
        raise Final(f"is larger than {most_bytes / 1e6:.0f} MB")
    return content
