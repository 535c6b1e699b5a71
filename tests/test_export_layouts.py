"""Instagram's export as it comes to hand: in parts, unpacked, packed anew by other programs, with what they leave."""

import json
import shutil
import zipfile

import pytest

from helpers.core.errors import RunError
from helpers.core.records import Rejection, present, read_rows
from tests.loopback_instagram import picture
from tests.test_sources import export_posts, taken_from, uris_of, write_export

LINES = "your_instagram_activity/media/posts_1.json"


@pytest.fixture
def posts():
    return export_posts()


def whole(run, posts):
    """That all pictures came in, each once, and nothing but videos was left out."""
    wanted = sorted(picture(uri) for uri in uris_of(posts) if uri.endswith("jpg"))
    assert sorted(run.image(post.file_name).read_bytes() for post in present(run.posts)) == wanted
    assert {row.reason for row in read_rows(run.rejected, Rejection)} == {"is a video"}


def unpack(archive, folder):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_parts_packed_anew_into_folders_of_their_own_are_one_export(workplace, posts):
    uris = uris_of(posts)
    first = {f"instagram-me part 1/{LINES}": json.dumps(posts)}
    first |= {f"instagram-me part 1/{uri}": picture(uri) for uri in uris[:4]}
    (workplace / "parts").mkdir()
    pack(workplace / "parts/1.zip", first)
    pack(workplace / "parts/2.ZIP", {f"part 2/deeper/{uri}": picture(uri) for uri in uris[4:]})
    run, _, _ = taken_from("export", folder=str(workplace / "parts"))
    whole(run, posts)


def test_what_macos_leaves_beside_and_in_a_zip_is_passed_over(workplace, posts):
    path = write_export(workplace / "parts/part.zip", posts)
    with zipfile.ZipFile(path, "a") as archive:
        for uri in uris_of(posts):
            name = "/._".join(uri.rsplit("/", 1))
            archive.writestr(f"__MACOSX/{name}", b"no picture")
        archive.writestr("__MACOSX/your_instagram_activity/media/._posts_1.json", b"no JSON")
    (workplace / "parts/._part.zip").write_bytes(b"Mac OS X")
    (workplace / "parts/.DS_Store").write_bytes(b"Mac OS X")
    run, _, _ = taken_from("export", folder=str(workplace / "parts"))
    whole(run, posts)


@pytest.mark.parametrize("below", ["", "instagram-me", "a/b"])
def test_an_export_that_was_unpacked_is_taken_from_its_folder(workplace, posts, below):
    unpack(write_export(workplace / "export.zip", posts), workplace / "unpacked" / below)
    run, _, _ = taken_from("export", folder=str(workplace / "unpacked"))
    whole(run, posts)


def test_one_part_unpacked_and_one_as_it_came_are_one_export(workplace, posts):
    uris = uris_of(posts)
    write_export(workplace / "parts/1.zip", posts, files=uris[:4])
    second = write_export(workplace / "2.zip", None, files=uris[4:])
    unpack(second, workplace / "parts/2")
    run, _, _ = taken_from("export", folder=str(workplace / "parts"))
    whole(run, posts)


def test_a_zip_with_backslashes_for_folders_is_read(workplace, posts):
    files = {LINES: json.dumps(posts)} | {uri: picture(uri) for uri in uris_of(posts)}
    path = workplace / "windows.zip"
    pack(path, {name.replace("/", "\\"): content for name, content in files.items()})
    run, _, _ = taken_from("export", folder=str(path))
    whole(run, posts)


def test_the_same_export_in_another_shape_brings_nothing_anew(workplace, posts):
    path = write_export(workplace / "export.zip", posts)
    run, _, _ = taken_from("export", folder=str(path))
    before = {post.file_name: post.sha256 for post in present(run.posts)}
    unpack(path, workplace / "unpacked")
    run, offered, _ = taken_from("export", folder=str(workplace / "unpacked"))
    assert {post.file_name: post.sha256 for post in present(run.posts)} == before
    assert offered.news == "0 new, 10 as before"
    lines = run.posts.read_bytes()
    taken_from("export", folder=str(workplace / "unpacked"))
    assert run.posts.read_bytes() == lines


def test_a_carousel_that_lost_its_first_picture_keeps_the_names_of_the_others(workplace, posts):
    carousel = max(posts, key=lambda post: len(post["media"]))
    del carousel["media"][1]  # its video; two pictures are left
    run, _, _ = taken_from("export", folder=str(write_export(workplace / "old.zip", posts)))
    before = {post.sha256: post.file_name for post in present(run.posts)}
    del carousel["media"][-1]
    carousel["media"].append({"uri": "media/posts/new.jpg", "creation_timestamp": 1_700_000_000})
    run, offered, _ = taken_from("export", folder=str(write_export(workplace / "new.zip", posts)))
    after = {post.sha256: post.file_name for post in present(run.posts)}
    kept = before.keys() & after.keys()
    assert len(kept) == len(before) - 1 and all(after[sha] == before[sha] for sha in kept)
    assert not {after[sha] for sha in after.keys() - kept} & set(before.values())
    assert "0 new, " in offered.news and "1 changed (media/posts/new.jpg)" in offered.news


def test_two_accounts_in_one_folder_get_their_own_pictures(workplace, posts):
    """Both name a file alike; each line takes the one of its own part."""
    for name in ("a", "b"):
        uri = "media/posts/1.jpg"
        line = [{"media": [{"uri": uri, "creation_timestamp": 1_700_000_000 + ord(name)}]}]
        pack(
            workplace / f"{name}.zip",
            {LINES: json.dumps(line), uri: picture(f"{name} {uri}")},
        )
    for name in ("a", "b"):
        (workplace / "both").mkdir(exist_ok=True)
        shutil.move(workplace / f"{name}.zip", workplace / "both")
    run, _, taken = taken_from("export", folder=str(workplace / "both"))
    stamps = {post.taken_at: run.image(post.file_name).read_bytes() for post in present(run.posts)}
    assert [stamps[day] for day in sorted(stamps)] == [
        picture("a media/posts/1.jpg"),
        picture("b media/posts/1.jpg"),
    ]


def test_a_folder_without_an_export_says_how_to_get_one(workplace):
    (workplace / "empty").mkdir()
    (workplace / "empty/a.jpg").write_bytes(picture("a"))
    with pytest.raises(
        RunError, match="has no ZIP of an export in it: ask Instagram for your information"
    ):
        taken_from("export", folder=str(workplace / "empty"))
