"""What comes in: only images that decode, under names of ours, from Instagram's media hosts."""

import io
import json
import random
import socket
import struct
import sys
import time
import warnings
import zipfile

import pytest
import requests
from PIL import Image, ImageFilter

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Post, Rejection, read_rows
from helpers.core.run import IMAGE_NAME, Run
from helpers.scrape.ingest import ingest, list_items, verify_images
from helpers.scrape.instagram.download import fetch, media_host
from helpers.scrape.items import PermanentRefusal
from helpers.scrape.validate import validate_image
from tests.loopback_instagram import FakePost, make_posts

MUTANTS = 1000
SLOWEST_S = 2.0


def originals():
    """Real files of each format, plain and odd."""
    noise = Image.effect_noise((96, 64), 60).convert("RGB").filter(ImageFilter.GaussianBlur(1))
    ways = [
        ("JPEG", noise, {"quality": 85}),
        ("JPEG", noise, {"progressive": True, "exif": _sideways()}),
        ("PNG", noise, {}),
        ("PNG", noise.convert("P"), {"pnginfo": None}),
        ("PNG", noise.convert("RGBA"), {"optimize": True}),
        ("WEBP", noise, {"quality": 80}),
        ("WEBP", noise, {"lossless": True}),
    ]
    for kind, image, options in ways:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


def _sideways():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def mutate(content, others, rng):
    content = bytearray(content)
    way = rng.randrange(8)
    at = rng.randrange(len(content))
    if way == 0:
        del content[at:]
    elif way == 1:
        for _ in range(rng.randint(1, 30)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif way == 2:
        del content[at : at + rng.randint(1, 200)]
    elif way == 3:
        content[at:at] = rng.randbytes(rng.randint(1, 300))
    elif way == 4:  # sizes in the header
        head = rng.randrange(8, min(60, len(content) - 4))
        content[head : head + 4] = struct.pack(
            ">I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1))
        )
    elif way == 5:  # the beginning of one and the rest of another
        content[at:] = rng.choice(others)[at:]
    elif way == 6:
        content[at : at + 64] = bytes(64)
    else:
        content[:12] = rng.choice(others)[:12]
    return bytes(content)


def decodes(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")).load()
        except Exception:
            return False
    return True


def test_of_a_thousand_mutated_files_none_that_does_not_decode_comes_in(workplace, tmp_path):
    rng, files = random.Random(0), list(originals())
    folder = tmp_path / "mutants"
    folder.mkdir()
    for i in range(MUTANTS):
        (folder / f"{i:04d}.jpg").write_bytes(mutate(rng.choice(files), files, rng))
    config, run = ScrapeConfig(run="m", source="folder", folder=str(folder)), Run("m")
    slowest, began, taken = 0.0, time.perf_counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for item in ingest(config, run, list_items(config, run)):
            slowest, began = max(slowest, time.perf_counter() - began), time.perf_counter()
            taken.append(item)
    accepted = [item.post.file_name for item in taken if item.post]
    refused = {row.file_name for row in read_rows(run.rejected, Rejection)}
    assert len(taken) == MUTANTS == len(accepted) + len(refused) and slowest < SLOWEST_S
    assert refused == {item.name for item in taken if not item.post} and len(refused) > 300
    assert all(decodes(run.image(name).read_bytes()) for name in accepted)
    assert {post.file_name for post in read_rows(run.posts, Post)} == set(accepted)
    assert "left out" in verify_images(run)


def test_a_picture_with_more_pictures_in_it_comes_in_as_jpeg():
    buffer = io.BytesIO()
    frame = Image.new("RGB", (40, 30), "red")
    frame.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
    assert validate_image(buffer.getvalue(), 80)[:3] == ("jpg", 40, 30)


def test_a_bomb_is_refused_before_it_is_decoded():
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + b"\0\0\0\0"
    with pytest.raises(ValueError):
        validate_image(png, 80)


# names


def hostile_names(count=200):
    """Names that lead elsewhere, break a shell, a table or a file system."""
    fixed = [
        "../../../etc/passwd", "..", ".", "/etc/passwd", "~/.ssh/id_rsa", "a/../../b.jpg", "..\\..\\b.jpg",
        "C:\\Windows\\x.jpg", "\\\\host\\share\\x.jpg", "file:///etc/passwd", "a\0.jpg", "a\nb.jpg", "a\rb.jpg",
        "CON", "nul.jpg", "x" * 300 + ".jpg", "\u202egpj.exe", "=cmd|' /C calc'!A0", "<img src=x onerror=1>",
        "$(touch /tmp/x).jpg", "`id`.jpg", "; rm -rf ~", "%2e%2e%2f%2e%2e%2fx", "..%c0%af..%c0%afx", "....//....//x",
        " ", "-rf", "--help", ".hidden", "a b", "日本.jpg", "e\u0301.jpg", "\ufeff.jpg", "a/./b.jpg", "a//b.jpg",
    ]  # fmt: skip
    rng, parts = (
        random.Random(3),
        ["..", "/", "\\", "\0", ":", "etc", "passwd", " ", "\n", "%2e", "jpg", ".", "~", "$"],
    )
    while len(fixed) < count:
        fixed.append("".join(rng.choices(parts, k=rng.randint(2, 9))))
    return fixed[:count]


def tree(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "runs" not in path.parts
    }


def assert_only_our_names(run):
    assert all(IMAGE_NAME.fullmatch(path.name) for path in run.images.iterdir())
    assert {path.name for path in run.folder.iterdir()} <= {
        "images", "posts.jsonl", "rejected.jsonl", "config", "cursor.json", "seconds.json"
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_hundred_hostile_names_in_an_export_lead_nowhere(workplace):
    good = next(originals())
    (workplace / "outside.jpg").write_bytes(good)
    names = hostile_names()
    posts = [
        {"creation_timestamp": 1_700_000_000 + i, "media": [{"uri": name, "title": name}]}
        for i, name in enumerate(
            [*names, "media/posts/fine.jpg", "../outside.jpg", str(workplace / "outside.jpg")]
        )
    ]
    with zipfile.ZipFile(workplace / "export.zip", "w") as archive:
        archive.writestr("your_instagram_activity/media/posts_1.json", json.dumps(posts))
        archive.writestr("media/posts/fine.jpg", good)
        for name in names:
            archive.writestr(zipfile.ZipInfo(name.replace("\ud83d", "") or "x"), good)
    before, run = tree(workplace), Run("x")
    config = ScrapeConfig(run="x", source="export", folder=str(workplace / "export.zip"))
    with socketless():
        taken = list(ingest(config, run, list_items(config, run)))
    assert before == tree(workplace)
    assert len(taken) == len(posts) and taken[-3].post
    refused = {item.name for item in taken if not item.post}
    assert {name[:300] for name in names if ".." in name.split("/") or name[:1] in "/\\"} <= refused
    assert_only_our_names(run)


def test_hostile_shortcodes_from_instagram_lead_nowhere(serve, monkeypatch):
    fine = make_posts(3)
    hostile = [FakePost(name, 1_600_000_000 - i) for i, name in enumerate(hostile_names(40))]
    site = serve([*fine, *hostile], page=50)
    before = tree(site.folder)
    config = ScrapeConfig(run="x", source="instagram", account="artist", pauses=False)
    run = Run("x")
    list(ingest(config, run, list_items(config, run)))
    assert before == tree(site.folder) and not site.asked("elsewhere")
    assert {post.shortcode for post in read_rows(run.posts, Post)} >= {fine[0].code, fine[1].code}
    assert_only_our_names(run)


@pytest.mark.parametrize("name", ["../up", "/abs", "..\\up", "a" * 200, "", "x y", "ünï"])
def test_hostile_shortcodes_of_ones_own_are_refused_before_anything_is_asked(name):
    if name:
        with pytest.raises(RunError, match="posts has"):
            ScrapeConfig(source="instagram", posts=f"https://www.instagram.com/p/{name}/")


# addresses

URLS = [
    "http://scontent.cdninstagram.com/a.jpg",
    "file:///etc/passwd",
    "ftp://scontent.cdninstagram.com/a.jpg",
    "https://169.254.169.254/latest/meta-data/",
    "https://127.0.0.1/a.jpg",
    "https://[::1]/a.jpg",
    "https://2130706433/a.jpg",
    "https://0x7f000001/a.jpg",
    "https://0177.0.0.1/a.jpg",
    "https://localhost/a.jpg",
    "https://metadata.google.internal/a.jpg",
    "https://10.0.0.1/a.jpg",
    "https://192.168.1.1/a.jpg",
    "https://[::ffff:127.0.0.1]/a.jpg",
    "https://cdninstagram.com.evil.example/a.jpg",
    "https://evilcdninstagram.com/a.jpg",
    "https://scontent.cdninstagram.com@127.0.0.1/a.jpg",
    "https://127.0.0.1#.cdninstagram.com/a.jpg",
    "https://127.0.0.1\\.cdninstagram.com/a.jpg",
    "https://user:pass@scontent.cdninstagram.com/a.jpg",
    "https://scontent.cdninstagram.com:8443/a.jpg",
    "https://scontent.cdninstagram.com:99999/a.jpg",
    "https://127.0.0.1%00.cdninstagram.com/a.jpg",
    "https://127.0.0.1\n.cdninstagram.com/a.jpg",
    "https://ⓛocalhost.cdninstagram.com/a.jpg",
    "https:///a.jpg",
    "https://..cdninstagram.com/a.jpg",
    "//scontent.cdninstagram.com/a.jpg",
    "javascript:alert(1)",
    "data:image/png;base64,AAAA",
    "",
]
PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "169.254.169.254",
    "192.168.0.9",
    "172.16.0.1",
    "100.64.0.1",
    "0.0.0.0",
]
PRIVATE += ["::1", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "224.0.0.1", "64:ff9b::7f00:1"]


class socketless:
    """No connection may be made within; those tried are listed."""

    watching: list["socketless"] = []

    def __enter__(self):
        self.tried = []
        if not socketless.watching:
            sys.addaudithook(_watch)  # stays for the process, and does nothing outside of a block
        socketless.watching.append(self)
        return self

    def __exit__(self, *_):
        socketless.watching.remove(self)
        socketless.watching.append(None)


def _watch(event, arguments):
    watcher = next((w for w in reversed(socketless.watching) if w), None)
    if watcher and event == "socket.connect":
        watcher.tried.append(arguments[1])
        raise ConnectionRefusedError("no connection is made in this test")


@pytest.fixture
def direct(monkeypatch):
    """No proxy stands between, so that names are looked up here."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    answers = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: _entries(host, answers))
    return answers


def _entries(host, answers):
    if host.replace(".", "").isdecimal():
        addresses = [host]
    else:
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
    kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
    return [
        (kind, socket.SOCK_STREAM, 6, "", (a, 443))
        for kind, a in zip(kinds, addresses, strict=True)
    ]


@pytest.mark.parametrize("url", URLS)
def test_addresses_that_are_not_of_a_media_host_are_refused_without_a_connection(url, direct):
    direct.append(["8.8.8.8"])
    with socketless() as net, pytest.raises(PermanentRefusal):
        fetch(url, requests.Session, 10**6, 1.0)
    assert net.tried == []


@pytest.mark.parametrize("address", PRIVATE)
def test_a_media_host_that_leads_to_a_private_address_is_refused(address, direct):
    direct.append([address])
    with socketless() as net, pytest.raises(PermanentRefusal, match="not public"):
        fetch("https://scontent.cdninstagram.com/a.jpg", requests.Session, 10**6, 1.0)
    direct[:] = [["8.8.8.8", address]]
    with pytest.raises(PermanentRefusal, match="not public"):
        fetch("https://scontent.cdninstagram.com/a.jpg", requests.Session, 10**6, 1.0)
    assert net.tried == []


def test_a_name_that_changes_its_address_between_two_looks_gains_nothing(direct):
    direct += [["8.8.8.8"], ["127.0.0.1"]]
    with socketless() as net, pytest.raises(ValueError, match="could not be downloaded"):
        fetch("https://scontent.cdninstagram.com/a.jpg", requests.Session, 10**6, 1.0)
    assert net.tried and {address[0] for address in net.tried} == {"8.8.8.8"}


@pytest.mark.parametrize(
    "host", ["scontent.cdninstagram.com", "scontent-fra3-1.cdninstagram.com", "x.y.fbcdn.net"]
)
def test_media_hosts_are_let_through(host):
    assert media_host(f"https://{host}/v/t51/a.jpg?stp=dst-jpg&_nc_ht={host}") == host
    assert media_host(f"https://{host.upper()}:443/a.jpg") == host


@pytest.mark.parametrize("url", [url for url in URLS if url.startswith("http")][:20])
def test_hostile_addresses_given_by_instagram_reach_no_one(serve, url):
    site = serve(3)
    true_slide = site.slide
    site.slide = lambda name, kind: {
        **true_slide(name, kind),
        "image_versions2": {"candidates": [{"url": url}]},
    }
    config, run = (
        ScrapeConfig(run="x", source="instagram", account="artist", pauses=False),
        Run("x"),
    )
    taken = list(ingest(config, run, list_items(config, run)))
    assert not site.asked("elsewhere") and not site.asked("image")
    assert taken and not any(item.post for item in taken)
