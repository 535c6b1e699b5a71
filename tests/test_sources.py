"""01's other ways in: the owner's export and datasets of the hub; and logging in to Instagram."""

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import papermill
import pytest
from PIL import Image

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Post, Rejection, read_rows
from helpers.core.run import Run
from helpers.scrape.ingest import ingest, list_items, verify_images
from helpers.scrape.instagram import login
from tests.conftest import photograph
from tests.loopback_instagram import CANARIES, COOKIES, picture

CAPTION = "Käfer im Garten 🐞 – “neu”\nzweite Zeile"
DAY = 1_700_000_000


def garbled(text):
    """As Instagram's export writes it: each byte of the UTF-8 as a character."""
    return text.encode().decode("latin-1")


def taken_from(source, **more):
    config, run = ScrapeConfig(run="mine", source=source, **more), Run("mine")
    offered = list_items(config, run)
    return run, offered, list(ingest(config, run, offered))


# export


def export_posts(count=6):
    """posts_1.json as Instagram writes it: single posts have their title with the picture, carousels above."""
    posts = []
    for i in range(count):
        uris = [f"media/posts/202311/{i}_{k}.jpg" for k in range(1 + i % 3)]
        if i % 3 == 2:
            uris[1] = uris[1].replace(".jpg", ".mp4")
        title, stamp = garbled(f"{CAPTION} {i}"), DAY - i * 86_400
        media = [
            {"uri": uri, "creation_timestamp": stamp, "media_metadata": {}, "title": ""}
            for uri in uris
        ]
        if len(media) == 1:
            media[0]["title"] = title
            posts.append({"media": media})
        else:
            posts.append({"media": media, "title": title, "creation_timestamp": stamp})
    return posts


def uris_of(posts):
    return [part["uri"] for post in posts for part in post["media"]]


def write_export(
    path, posts, name="your_instagram_activity/media/posts_1.json", files=None, root=""
):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if posts is not None:
            archive.writestr(root + name, json.dumps(posts))
        for uri in uris_of(posts or []) if files is None else files:
            archive.writestr(root + uri, b"video" if uri.endswith("mp4") else picture(uri))
    return path


LAYOUTS = [
    ("your_instagram_activity/media/posts_1.json", ""),
    ("your_instagram_activity/content/posts_1.json", ""),
    ("content/posts_1.json", ""),
    ("media/posts_1.json", ""),
    ("your_instagram_activity/media/posts_1.json", "instagram-artist-2024-01-01-AbC/"),
]


@pytest.mark.parametrize(("name", "root"), LAYOUTS)
def test_an_export_comes_in_whole_with_its_captions_mended(workplace, name, root):
    posts = export_posts()
    path = write_export(workplace / "export.zip", posts, name, root=root)
    run, offered, taken = taken_from(
        "export", folder=str(path), permission="own work", account="me"
    )
    rows = read_rows(run.posts, Post)
    pictures = [uri for uri in uris_of(posts) if uri.endswith("jpg")]
    assert [run.image(row.file_name).read_bytes() for row in rows] == [picture(u) for u in pictures]
    assert len({row.shortcode for row in rows}) == 6 == len({row.post_caption for row in rows})
    assert rows[0].post_caption == f"{CAPTION} 0" and rows[1].post_caption == f"{CAPTION} 1"
    assert rows[0].taken_at == "2023-11-14T22:13:20+00:00" and rows[0].permission == "own work"
    assert [row.index for row in rows if row.shortcode == rows[1].shortcode] == [1, 2]
    assert {row.reason for row in read_rows(run.rejected, Rejection)} == {"is a video"}
    assert not list(run.images.glob("*.txt"))  # what was published is no caption to train on
    before = run.posts.read_bytes()
    taken_from("export", folder=str(path), permission="own work", account="me")
    assert run.posts.read_bytes() == before and "10 images of 6 posts" in verify_images(run)


@pytest.mark.parametrize("name", ["posts_1.json", "posts_2.json"])
def test_an_export_in_parts_is_one(workplace, name):
    posts = export_posts()
    uris = uris_of(posts)
    write_export(workplace / "parts/a.zip", posts[:3], files=uris[4:])
    write_export(
        workplace / "parts/b.zip", posts[3:], "your_instagram_activity/media/posts_2.json", uris[:4]
    )
    run, _, _ = taken_from("export", folder=str(workplace / "parts"))
    assert "10 images of 6 posts" in verify_images(run)


def test_a_newer_export_adds_what_is_new_under_the_same_names(workplace):
    posts = export_posts(6)
    path = write_export(workplace / "old.zip", posts[2:])
    run, _, _ = taken_from("export", folder=str(path))
    before = {row.file_name for row in read_rows(run.posts, Post)}
    taken_from("export", folder=str(write_export(workplace / "new.zip", posts)))
    after = [row.file_name for row in read_rows(run.posts, Post)]
    assert before < set(after) and len(after) == len(set(after)) == 10


def test_days_and_a_limit_hold_for_an_export(workplace):
    path = write_export(workplace / "export.zip", export_posts())
    run, _, _ = taken_from(
        "export", folder=str(path), since="2023-11-11", until="2023-11-13", max_posts=2
    )
    assert {row.taken_at[:10] for row in read_rows(run.posts, Post)} == {"2023-11-13", "2023-11-12"}


def test_a_file_that_unpacks_to_far_too_much_or_is_damaged_is_left_out(workplace):
    posts = export_posts(3)
    path = write_export(workplace / "export.zip", posts, files=[])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(posts[0]["media"][0]["uri"], bytes(3_000_000))
        archive.writestr(posts[1]["media"][0]["uri"], os.urandom(1_100_000))
        archive.writestr(posts[1]["media"][1]["uri"], picture("damaged"), zipfile.ZIP_STORED)
        archive.writestr(posts[2]["media"][2]["uri"], picture("whole"))
    content = bytearray(path.read_bytes())
    at = content.index(picture("damaged")) + 300
    content[at : at + 8] = bytes(8)
    path.write_bytes(content)
    run, _, _ = taken_from("export", folder=str(path), max_image_mb=1)
    reasons = {row.file_name: row.reason for row in read_rows(run.rejected, Rejection)}
    assert [row.size_bytes for row in read_rows(run.posts, Post)] == [len(picture("whole"))]
    assert "larger than 1 MB" in reasons[posts[0]["media"][0]["uri"]]
    assert "larger than 1 MB" in reasons[posts[1]["media"][0]["uri"]]
    assert "is damaged in the ZIP" in reasons[posts[1]["media"][1]["uri"]]
    assert "put all parts" in reasons[posts[2]["media"][0]["uri"]]
    path = write_export(workplace / "bomb.zip", posts[:1], files=[])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(posts[0]["media"][0]["uri"], bytes(900_000))
    _, _, (item,) = taken_from("export", folder=str(path), max_image_mb=1)
    assert "unpacks to far more" in item.reason


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("missing", "has no ZIP of an export in it"),
        ("folder", "has no ZIP of an export in it"),
        ("text", "is not a complete ZIP: download it again"),
        ("cut", "is not a complete ZIP: download it again"),
        ("html", "lists no posts"),
        ("json", "cannot be read"),
        ("odd", "lists no posts"),
    ],
)
def test_what_is_no_export_is_refused_in_a_line(workplace, make, words):
    path = workplace / "export.zip"
    if make == "folder":
        path.mkdir()
    elif make == "text":
        path.write_text("hello")
    elif make == "cut":
        write_export(path, export_posts()).write_bytes(path.read_bytes()[:-100])
    elif make != "missing":
        odd = {"a": [1, {"media": 3}, {"media": [None]}, {"media": []}, {"media": [{"uri": ""}]}]}
        write_export(path, None if make == "html" else odd, files=["a.jpg"])
    if make == "json":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("content/posts_1.json", "[" * 100_000)
    with pytest.raises(RunError, match=words) as caught:
        taken_from("export", folder=str(path))
    assert "\n" not in str(caught.value) and not (workplace / "runs").exists()


# hub


@pytest.fixture
def dataset_folder(workplace, monkeypatch):
    """A dataset in imagefolder layout, as the hub keeps many."""
    monkeypatch.setenv("HOME", str(workplace))
    folder = workplace / "art"
    for name in ("C1a2B3c4D5e_1.jpg", "C1a2B3c4D5e_2.jpg", "plain.png"):
        photograph(folder / "train" / name, len(name))
    rows = [
        ("C1a2B3c4D5e_1.jpg", "a cat"),
        ("C1a2B3c4D5e_2.jpg", "a dog"),
        ("plain.png", "a tree "),
    ]
    table = "file_name,prompt\n" + "".join(f"{name},{words}\n" for name, words in rows)
    (folder / "train/metadata.csv").write_text(table)
    return folder


def test_a_dataset_comes_in_with_its_captions(dataset_folder):
    run, offered, _ = taken_from("hub", dataset_id=str(dataset_folder))
    assert offered.words.startswith("3 files in 2 posts")
    for name, words in (("C1a2B3c4D5e_2", "a dog"), ("plain_1", "a tree")):
        assert run.sidecar(f"{name}.jpg").read_text() == words
    rows = {row.file_name: row for row in read_rows(run.posts, Post)}
    original = (dataset_folder / "train/C1a2B3c4D5e_1.jpg").read_bytes()
    assert run.image("C1a2B3c4D5e_1.jpg").read_bytes() == original and "plain_1.png" in rows
    assert "3 images of 2 posts" in verify_images(run)


def test_a_dataset_with_its_images_inside_comes_in_byte_for_byte(workplace, monkeypatch):
    import datasets

    monkeypatch.setenv("HOME", str(workplace))
    buffers = [picture(f"p{i}") for i in range(3)]
    table = {"image": [{"bytes": b, "path": None} for b in buffers], "text": ["a", None, "c  d"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (workplace / "packed").mkdir()
    made = datasets.Dataset.from_dict(table, features=features)
    made.to_parquet(workplace / "packed/train-00000.parquet")
    run, _, _ = taken_from("hub", dataset_id=str(workplace / "packed"))
    names = [row.file_name for row in read_rows(run.posts, Post)]
    assert [run.image(name).read_bytes() for name in names] == buffers
    assert run.sidecar(names[2]).read_text() == "c d" and not run.sidecar(names[1]).exists()


def test_images_of_one_name_in_a_dataset_stay_apart(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    for i in range(4):
        photograph(workplace / f"same/train/part{i}/C1a2B3c4D5e_1.jpg", i)
    run, _, _ = taken_from("hub", dataset_id=str(workplace / "same"))
    assert len({row.sha256 for row in read_rows(run.posts, Post)}) == 4
    assert "4 images of 4 posts" in verify_images(run)
    assert not any(row.url for row in read_rows(run.posts, Post))


def test_a_dataset_without_images_is_refused(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    (workplace / "words").mkdir()
    (workplace / "words/train.csv").write_text("text\na\nb\n")
    with pytest.raises(RunError, match="has no image column"):
        taken_from("hub", dataset_id=str(workplace / "words"))


def test_a_dataset_that_names_a_file_elsewhere_does_not_get_it(dataset_folder, workplace):
    photograph(workplace / "private.jpg", 5)
    (dataset_folder / "train/linked.jpg").symlink_to(workplace / "private.jpg")
    table = dataset_folder / "train/metadata.csv"
    table.write_text(table.read_text() + "linked.jpg,mine\n")
    run, _, _ = taken_from("hub", dataset_id=str(dataset_folder))
    (row,) = read_rows(run.rejected, Rejection)
    assert row.reason == "is outside the dataset's folder"


@pytest.mark.parametrize("name", ["nobody/has-this", "no id at all"])
def test_a_dataset_that_is_not_there_is_told_in_a_line(workplace, name):
    with pytest.raises(RunError, match="cannot be loaded .*: give a hub id") as caught:
        taken_from("hub", dataset_id=name)
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_out_of_ones_folder_is_left_out(workplace, pictures):
    photograph(workplace / "private.jpg", 5)
    (workplace / "private.txt").write_text("private words")
    (pictures / "link.jpg").symlink_to(workplace / "private.jpg")
    (pictures / "Holiday 01.txt").unlink()
    (pictures / "Holiday 01.txt").symlink_to(workplace / "private.txt")
    run, _, _ = taken_from("folder", folder=str(pictures))
    (row,) = read_rows(run.rejected, Rejection)
    assert (row.file_name, row.reason) == ("link.jpg", "is a link that leads out of the folder")
    assert not any("private" in path.read_text() for path in run.images.glob("*.txt"))


# settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "instagram"}, "set account to the account's name"),
        ({"source": "instagram", "account": "a b"}, "account is 'a b'"),
        ({"source": "instagram", "account": "../x"}, "account is '../x'"),
        ({"source": "instagram", "posts": "C1a2B3c4D5e, http://evil.example/p/C1a2B3c4D5e/"}, "posts has 'http"),
        ({"source": "export"}, "set folder to the path of the ZIP"),
        ({"source": "hub"}, "set dataset_id to a hub id"),
        ({"since": "yesterday"}, "since is 'yesterday': give a day as in 2024-01-31"),
        ({"until": "2024-02-30"}, "until is '2024-02-30'"),
        ({"since": "20240101"}, "since is '20240101'"),
        ({"since": "2024-02-01", "until": "2024-01-01"}, "is after until"),
        ({"permission": "none"}, "choose one of private study, own work, permission of the artist"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_in_a_line(values, words):
    with pytest.raises(RunError) as caught:
        ScrapeConfig(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "account", ["some.artist", "@Some.Artist", "https://www.instagram.com/some.artist/?hl=en"]
)
def test_an_account_is_known_by_name_or_address(account):
    assert ScrapeConfig(source="instagram", account=account).username == "some.artist"


# login


@pytest.fixture
def home(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.delenv("INSTAGRAM_COOKIES", raising=False)
    return workplace


def test_without_cookies_nobody_asks(home):
    assert login.cookies() is None


@pytest.mark.parametrize("line", [COOKIES, f"Cookie: {COOKIES}; rur=x", f"'mid=1;{COOKIES};'"])
def test_cookies_come_as_a_browser_shows_them(home, monkeypatch, line):
    monkeypatch.setenv("INSTAGRAM_COOKIES", line)
    found = login.cookies()
    assert (found["sessionid"], found["ds_user_id"]) == (CANARIES["cookie"], "7")
    assert set(found) <= set(login.SAVED)


@pytest.mark.parametrize("line", ["canary-x", "sessionid=canary-x", "sessionid=canary-x; csrftoken=a b; ds_user_id=7",
                                  "sessionid=canary-x; csrftoken=canary-x; ds_user_id=canary-x"])  # fmt: skip
def test_cookies_that_cannot_be_used_are_named_and_never_shown(home, monkeypatch, line):
    monkeypatch.setenv("INSTAGRAM_COOKIES", line)
    with pytest.raises(RunError, match="INSTAGRAM_COOKIES has .*copy them afresh") as caught:
        login.cookies()
    assert "canary-x" not in str(caught.value)


def test_a_cookie_file_that_others_can_read_is_refused(home):
    path = login.save_cookies(login.parse(COOKIES))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and login.cookies()["csrftoken"]
    path.chmod(0o644)
    with pytest.raises(RunError, match="chmod 600"):
        login.cookies()
    path.chmod(0o600)
    path.write_text("[1]")
    with pytest.raises(RunError, match="holds no cookies: delete it and log in again"):
        login.cookies()


def log_in(*answers):
    command = [sys.executable, "-W", "ignore", "-m", "helpers.scrape.login", "artist"]
    text = "".join(f"{answer}\n" for answer in answers)
    return subprocess.run(
        command, input=text, capture_output=True, text=True, start_new_session=True
    )


@pytest.mark.parametrize("second_factor", [False, True])
def test_logging_in_keeps_cookies_and_no_password(serve, second_factor):
    site = serve(4, second_factor=second_factor, user_id="7", is_private=True)
    done = log_in(CANARIES["password"], *(["123456"] if second_factor else []))
    assert done.returncode == 0, done.stderr
    kept = json.loads(login.cookie_file().read_text())
    assert kept["sessionid"] == CANARIES["cookie"] and set(kept) <= set(login.SAVED)
    assert not any(canary in done.stdout + done.stderr for canary in CANARIES.values())
    run, offered, _ = taken_from("instagram", account="artist", pauses=False)
    assert "logged in" in offered.words and len(read_rows(run.posts, Post)) == len(site.images())


@pytest.mark.parametrize(
    ("answer", "words"),
    [("wrong", "the password or the code is wrong"), ("checkpoint", "log in with your browser"),
     ("html", "log in with your browser"), ("drop", "log in with your browser")],
)  # fmt: skip
def test_a_login_that_fails_is_told_in_a_line(serve, answer, words):
    site = serve(1)
    if answer != "wrong":
        site.fail("login", answer)
    done = log_in(CANARIES["password"] if answer != "wrong" else "canary-wrong")
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") <= 3
    assert "canary" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not login.cookie_file().exists()


# secrets


def assert_no_canary(folder: Path, *texts: str):
    """In no file, its name included, but the one that only its owner reads; nor packed in a notebook's pictures."""
    for path in folder.resolve().rglob("*"):
        if path.is_file() and path != login.cookie_file() and not path.is_symlink():
            content = path.read_bytes().decode("latin-1") + str(path)
            assert not [c for c in CANARIES.values() if c in content], path
    assert not [c for c in CANARIES.values() for text in texts if c in text]


@pytest.mark.parametrize(
    ("way", "end"), [("environment", "well"), ("file", "refused"), ("environment", "crash")]
)
def test_no_cookie_password_or_token_is_written_or_shown(serve, monkeypatch, capfd, way, end):
    site = serve(5, page=3)
    if way == "environment":
        monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    else:
        assert log_in(CANARIES["password"]).returncode == 0
    if end == "refused":
        site.fail("timeline", "revoked", after=1)
    if end == "crash":
        Path("runs/art").mkdir(parents=True)
        Path("runs/art/images").write_text("in the way")
    given = {"run": "art", "source": "instagram", "account": "artist", "more": {"pauses": False}}
    target, failed = "runs/art/notebooks/01_scrape.ipynb", ""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook("notebooks/01_scrape.ipynb", target, given, progress_bar=False)
    except papermill.PapermillExecutionError as error:
        failed = str(error)
    assert (end == "crash") == bool(failed)
    captured = capfd.readouterr()
    assert_no_canary(Path(), captured.out, captured.err, failed)
    assert len(site.log) > 3 and Path(target).is_file()
    if end == "well":
        assert "Traceback" not in Path(target).read_text()
        cells = nbformat.read(target, as_version=4).cells
        assert any("logged in" in o.get("text", "") for c in cells for o in c.get("outputs", []))
        assert verify_images(Run("art")).startswith(f"{len(site.images())} images")


def test_pictures_are_real():
    assert Image.open(io.BytesIO(picture("x"))).size == (48, 60)
