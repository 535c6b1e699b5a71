"""The image source "export": the ZIP of an account's posts that Instagram gives to the account's owner.

The ZIP is ordered in Instagram's Accounts Centre (Download your information, format JSON). `posts_1.json`,
`posts_2.json`, ... list the posts, each with the paths of its media in the ZIP. A large account comes in several ZIPs,
and a post's media may be in another ZIP than its entry. ZIPs may be repacked or unpacked. Nothing is extracted to disk.
"""

import hashlib
import json
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.files import is_inside
from helpers.core.run import Run
from helpers.host.here import HOST
from helpers.scrape.folder import VIDEOS, file_id, walk
from helpers.scrape.items import Listing, PermanentRefusal, SourceItem

POSTS = re.compile(r"(.*?)(?:your_instagram_activity/)?(?:content|media|posts)/posts_\d+\.json")
MAX_JSON_BYTES = 200 * 10**6
MAX_RATIO = 200  # of uncompressed to compressed size; images hardly compress
HOW = "ask Instagram for your information in JSON, and give the ZIP as it comes"


@dataclass(frozen=True)
class Entry:
    """A file of the export, unpacked or in a ZIP."""

    name: str  # its path within the ZIP or the folder
    within: Path  # the ZIP or the folder
    id: str  # changes when the file changes: CRC-32 and size in a ZIP, else size and times
    size_bytes: int
    packed_bytes: int
    open: Callable[[], IO[bytes]]  # a ZIP stays open, as an export has tens of thousands of files

    def __str__(self) -> str:
        return f"{self.name} in {self.within}"


def list_items(config: ScrapeConfig, _run: Run) -> Listing:
    """Return an item for each image and video in the posts of an Instagram export.

    Raises RunError if there is no such ZIP or folder, or it lists no posts.
    """
    listed = _entries(Path(config.folder).expanduser())
    media = Media(listed)
    found, seen = [], set()
    for entry in listed:
        for post in _read_posts(entry) if POSTS.fullmatch(entry.name) else ():
            code = _shortcode(post)
            if code not in seen:
                found += _post_items(post, code, entry, media, config.max_image_mb * 10**6)
            seen.add(code)
    if not found:
        raise RunError(f"{config.folder} lists no posts (posts_1.json): {HOW}")
    return Listing(found)


def _entries(path: Path) -> list[Entry]:
    if path.is_file():
        return _zip_entries(path)
    archives, unpacked = [], []
    for file, stat in walk(path)[0].items():
        name, size, read = file.relative_to(path).as_posix(), stat.st_size, partial(file.open, "rb")
        if file.suffix.lower() == ".zip":
            archives.append(file)
        elif is_inside(file, path):
            unpacked.append(Entry(name, path, file_id("", stat), size, size, read))
    if not archives and not any(POSTS.fullmatch(entry.name) for entry in unpacked):
        raise RunError(
            f"folder {path} has no ZIP of an export in it: {HOW}{HOST.why_missing(path)}"
        )
    return [entry for archive in archives for entry in _zip_entries(archive)] + unpacked


def _zip_entries(path: Path) -> list[Entry]:
    try:
        archive = zipfile.ZipFile(path)
        infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise RunError(f"{path} is not a complete ZIP: download it again") from None
    entries = [
        Entry(
            name=info.filename.replace("\\", "/"),
            within=path,
            id=f"{info.CRC:08x} {info.file_size}",
            size_bytes=info.file_size,
            packed_bytes=info.compress_size,
            open=partial(archive.open, info),
        )
        for info in infos
    ]
    return sorted(entries, key=lambda entry: entry.name)


class Media:
    """An index of the export's files by the paths that posts_1.json gives, relative to the export's top folder.

    A repacked ZIP may have extra folders above that, named differently in each ZIP.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.by_ending: dict[str, list[Entry]] = {}
        for entry in entries:
            parts = entry.name.split("/")
            for i in range(len(parts)):
                self.by_ending.setdefault("/".join(parts[i:]), []).append(entry)

    def get(self, uri: str, line: Entry) -> Entry | None:
        """Return the export's file at a path that posts_1.json lists, or None if there is no such file.

        A file below the same top folder comes first, then one in the same ZIP, then any other.
        """
        root = POSTS.fullmatch(line.name)[1]
        return min(
            self.by_ending.get(uri, ()),
            key=lambda entry: (entry.name != root + uri, entry.within != line.within),
            default=None,
        )


def _read_posts(entry: Entry) -> Iterator[dict[str, Any]]:
    try:
        posts = json.loads(_read(entry, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{entry} cannot be read ({type(error).__name__}): {HOW}") from None
    if isinstance(posts, dict):  # an account with one post
        posts = [posts] if "media" in posts else next(iter(posts.values()), [])
    for post in posts if isinstance(posts, list) else []:
        media = post.get("media") if isinstance(post, dict) else None
        if not isinstance(media, list):
            continue
        if media := [part for part in media if isinstance(part, dict) and part.get("uri")]:
            yield {**post, "media": media}


def _shortcode(post: dict[str, Any]) -> str:
    first = post["media"][0]  # an export has no shortcodes
    made_of = f"{_published_s(post)} {str(first['uri']).rpartition('/')[2]}"
    digest = hashlib.sha256(made_of.encode("utf-8", "replace")).digest()
    return "X" + urlsafe_b64encode(digest)[:10].decode()


def _published_s(post: dict[str, Any]) -> int:
    stamps = [post.get("creation_timestamp"), post["media"][0].get("creation_timestamp")]
    return next((int(s) for s in stamps if isinstance(s, int | float) and 0 < s < 2**35), 0)


def _post_items(
    post: dict[str, Any], code: str, line: Entry, media: Media, max_bytes: int
) -> list[SourceItem]:
    seconds = _published_s(post)
    caption = post.get("title") or post["media"][0].get("title") or ""
    found = []
    for index, part in enumerate(post["media"], 1):
        uri = str(part["uri"])
        entry = media.get(uri, line)
        name = uri[:300].encode("utf-8", "replace").decode()
        found.append(
            SourceItem(
                name=name,
                shortcode=code,
                index=index,
                load=partial(_load, uri, entry, max_bytes),
                taken_at=datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else "",
                post_caption=fix_encoding(str(caption)),
                source_id=f"{name} {entry.id}" if entry else "",
            )
        )
    return found


def fix_encoding(text: str) -> str:
    """Repair an export's text in which UTF-8 bytes were written as Latin-1 characters."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _load(uri: str, entry: Entry | None, max_bytes: int) -> bytes:
    parts = uri.split("/")
    if ".." in parts or "" in parts or re.search(r"[\\:\x00-\x1f]", uri):
        raise PermanentRefusal("has a name that leads out of the ZIP")
    if uri.lower().endswith(VIDEOS):
        raise PermanentRefusal("is a video")
    if not entry:
        raise PermanentRefusal("is not in the ZIP: put all parts of the export into one folder")
    if max_bytes >= entry.size_bytes > MAX_RATIO * max(1, entry.packed_bytes):
        raise PermanentRefusal("unpacks to far more than an image would")
    return _read(entry, max_bytes)


def _read(entry: Entry, max_bytes: int) -> bytes:
    content = b""
    if entry.size_bytes <= max_bytes:
        try:
            with entry.open() as file:
                content = file.read(max_bytes + 1)
        except Exception as error:  # zipfile raises what its decompressors do
            raise PermanentRefusal(f"is damaged in the ZIP ({type(error).__name__})") from None
    if max(entry.size_bytes, len(content)) > max_bytes:
        raise PermanentRefusal(f"is larger than {max_bytes / 1e6:.0f} MB")
    return content
