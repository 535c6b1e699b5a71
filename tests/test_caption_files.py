"""Captions as people have them: each layout is taken whole and named, or refused with what to do."""

import json
import os
from pathlib import Path
from time import process_time
from unicodedata import normalize

import pandas as pd
import pytest

from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, latest, read_rows
from helpers.core.run import Run
from helpers.core.text import alternatives, decode, decode_western
from helpers.scrape.caption_files import read_captions
from helpers.scrape.ingest import ingest, list_items
from tests.conftest import photograph

WORDS = [
    "a red cat on a hill, number 0",
    "a blue cat, asleep, on a hill",
    "a green cat on a hill, number 2",
    "two pink cats",
]
NAMES = [f"{i}.jpg" for i in range(4)]


def scrape(folder: Path, name: str = "mine", **more) -> Run:
    config, run = ScrapeConfig(run=name, source="folder", folder=str(folder), **more), Run(name)
    return taken(config, run)


def taken(config: ScrapeConfig, run: Run) -> Run:
    """01, which says what it took."""
    source = list_items(config, run)
    print(source.words)
    list(ingest(config, run, source))
    return run


def captions(run: Run, folder: Path) -> dict[str, str]:
    """What 02 keeps for each image, by its path in the folder."""
    config = CaptionConfig(run=run.name)
    list(caption_images(config, run, pending(config, run)))
    rows = latest(read_rows(run.captions, Caption))
    contents = {path.read_bytes(): path for path in folder.rglob("*") if path.is_file()}
    return {
        contents[run.image(post.file_name).read_bytes()].relative_to(folder).as_posix(): words
        for post in read_rows(run.posts, Post)
        if (words := rows[post.file_name].caption)
    }


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def beside(folder: Path, ending: str, full_name: bool = False, encoding: str = "utf-8", change=str):
    for name, words in zip(NAMES, WORDS, strict=True):
        stem = name if full_name else name.removesuffix(".jpg")
        write(folder / f"{change(stem)}{ending}", f"{words}\r\n", encoding)


def table(folder: Path, name: str, header: str, sep: str = ",", row="{name}{sep}{words}"):
    def quoted(words):
        return f'"{words}"' if sep in words else words

    rows = [row.format(name=n, words=quoted(w), sep=sep) for n, w in zip(NAMES, WORDS, strict=True)]
    write(folder / name, "\n".join([*([header] if header else []), *rows]) + "\n")


def as_json(folder: Path, name: str, value, lines: bool = False):
    text = "\n".join(json.dumps(v) for v in value) if lines else json.dumps(value)
    write(folder / name, text)


PAIRS = list(zip(NAMES, WORDS, strict=True))
LAYOUTS = {
    "txt": (lambda f: beside(f, ".txt"), "captions from 4 .txt"),
    "TXT": (lambda f: beside(f, ".TXT"), "captions from 4 .txt"),
    "a folder of their own": (
        lambda f: [write(f / f"captions/{n[:-4]}.txt", w) for n, w in [*PAIRS, ("more.jpg", "x")]],
        "captions from 4 .txt\n  not used: captions/more.txt",
    ),
    "caption": (lambda f: beside(f, ".caption"), "captions from 4 .caption"),
    "jpg.txt": (lambda f: beside(f, ".txt", True), "captions from 4 .txt"),
    "jpg.caption": (lambda f: beside(f, ".caption", True), "captions from 4 .caption"),
    "other case": (lambda f: beside(f, ".txt", True, change=str.upper), "captions from 4 .txt"),
    "utf-8 with BOM": (lambda f: beside(f, ".txt", encoding="utf-8-sig"), "captions from 4 .txt"),
    "utf-16": (lambda f: beside(f, ".txt", encoding="utf-16"), "captions from 4 .txt"),
    "utf-16 without BOM": (
        lambda f: beside(f, ".txt", encoding="utf-16-be"),
        "captions from 4 .txt",
    ),
    "utf-32": (lambda f: beside(f, ".txt", encoding="utf-32"), "captions from 4 .txt"),
    "metadata.csv": (
        lambda f: table(f, "metadata.csv", "file_name,text"),
        "captions from 4 metadata.csv (text)",
    ),
    "a csv of any name and columns": (
        lambda f: table(f, "my list.csv", "image,caption"),
        "captions from 4 my list.csv (caption)",
    ),
    "filename and description": (
        lambda f: table(f, "data.csv", "Filename,Description"),
        "captions from 4 data.csv (Description)",
    ),
    "semicolons": (
        lambda f: table(f, "list.csv", "file_name;prompt", ";"),
        "captions from 4 list.csv (prompt)",
    ),
    "tsv with paths": (
        lambda f: table(f, "list.tsv", "path\tcaption", "\t", "./{name}{sep}{words}"),
        "captions from 4 list.tsv (caption)",
    ),
    "paths of another machine": (
        lambda f: table(f, "list.csv", "path,text", row="C:\\me\\{name}{sep}{words}"),
        "captions from 4 list.csv (text)",
    ),
    "pandas with an index": (
        lambda f: pd.DataFrame(PAIRS, columns=["file_name", "prompt"]).to_csv(f / "metadata.csv"),
        "captions from 4 metadata.csv (prompt)",
    ),
    "commas that nobody quoted": (
        lambda f: write(f / "l.csv", "file_name,text\n" + "".join(f"{n},{w}\n" for n, w in PAIRS)),
        "captions from 4 l.csv (text)",
    ),
    "no header": (
        lambda f: table(f, "list.csv", ""),
        "captions from 4 list.csv (caption)",
    ),
    "no header and no quotes": (
        lambda f: write(
            f / "captions.txt",
            "".join(f"{n}, {w}\n" for n, w in PAIRS),
        ),
        "captions from 4 captions.txt (caption)",
    ),
    "flickr8k's tokens": (
        lambda f: table(f, "token.txt", "", "\t", "{name}#0{sep}{words}"),
        "captions from 4 token.txt (caption)",
    ),
    "flickr8k's captions.txt": (
        lambda f: table(f, "captions.txt", "image,caption"),
        "captions from 4 captions.txt (caption)",
    ),
    "flickr30k's pipes": (
        lambda f: table(
            f, "results.csv", "image_name| comment_number| comment", "|", "{name}| 0| {words}"
        ),
        "captions from 4 results.csv (comment)",
    ),
    "metadata.jsonl": (
        lambda f: as_json(
            f, "metadata.jsonl", [{"file_name": n, "text": w} for n, w in PAIRS], True
        ),
        "captions from 4 metadata.jsonl (text)",
    ),
    "a dict of captions": (
        lambda f: as_json(f, "captions.json", dict(PAIRS)),
        "captions from 4 captions.json (caption)",
    ),
    "kohya's meta_cap.json": (
        lambda f: as_json(
            f,
            "meta_cap.json",
            {f"/home/me/train/{n[:-4]}": {"caption": w, "tags": "1girl, hat"} for n, w in PAIRS},
        ),
        "captions from 4 meta_cap.json (caption)\n  also found: tags (caption_choice)",
    ),
    "COCO": (
        lambda f: as_json(
            f,
            "captions_train.json",
            {
                "images": [{"id": i, "file_name": n} for i, n in enumerate(NAMES)],
                "annotations": [
                    {"image_id": i, "id": 9 - i, "caption": w} for i, w in enumerate(WORDS)
                ],
            },
        ),
        "captions from 4 captions_train.json (caption)",
    ),
    "a list within an object": (
        lambda f: as_json(
            f, "data.json", {"version": 1, "data": [{"img": n, "prompt": w} for n, w in PAIRS]}
        ),
        "captions from 4 data.json (prompt)",
    ),
    "parquet": (
        lambda f: pd.DataFrame(PAIRS, columns=["file_name", "text"]).to_parquet(
            f / "metadata.parquet"
        ),
        "captions from 4 metadata.parquet (text)",
    ),
    "img2dataset's json": (
        lambda f: [as_json(f, f"{n[:-4]}.json", {"caption": w, "url": "x"}) for n, w in PAIRS],
        "captions from 4 .json (caption)",
    ),
    "Takeout": (
        lambda f: [
            as_json(
                f,
                f"{n}{('.json', '.supplemental-metadata.json', '.supplemental-me.json', '.suppl.json')[i]}",
                {"title": n, "description": w, "geoData": {"latitude": 1.5}},
            )
            for i, (n, w) in enumerate(PAIRS)
        ],
        "captions from 4 .json (description)",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_taken_whole_and_named(workplace, tmp_path, capsys, layout):
    folder, (make, line) = tmp_path / "art", LAYOUTS[layout]
    for i, name in enumerate(NAMES):
        photograph(folder / name, i)
    make(folder)
    run = scrape(folder)
    _, _, after = capsys.readouterr().out.partition(line)
    assert after[:1] in ("", "\n"), after
    assert captions(run, folder) == dict(PAIRS) and not read_rows(run.rejected, Post)


# names


def test_names_meet_in_any_case_and_in_both_forms_of_unicode(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    photograph(folder / "6.JPG", 1)
    photograph(folder / normalize("NFD", "Käfer.jpg"), 2)
    photograph(folder / normalize("NFD", "Übung.png"), 3)
    write(
        folder / "list.csv", f"image,caption\n6.jpg,six\n{normalize('NFC', 'käfer.JPG')},beetle\n"
    )
    write(folder / normalize("NFC", "Übung.txt"), normalize("NFD", "eine Übung"))
    found = captions(scrape(folder), folder)
    assert sorted(found.values()) == ["beetle", normalize("NFC", "eine Übung"), "six"]


def test_an_image_without_an_ending_has_its_words_as_well(workplace, tmp_path):
    folder = tmp_path / "art"
    photograph(folder / "1.jpg", 1).rename(folder / "one")
    photograph(folder / "2.jpg", 2).rename(folder / "two")
    write(folder / "one.txt", "a cat")
    write(folder / "list.csv", "file_name,text\ntwo,a dog\none,listed\n")
    assert captions(scrape(folder), folder) == {"one": "a cat", "two": "a dog"}


def test_two_images_whose_names_differ_in_case_alone_have_their_own_words(workplace, tmp_path):
    folder = tmp_path / "art"
    photograph(folder / "a.jpg", 1)
    photograph(folder / "A.jpg", 2)
    if len(list(folder.iterdir())) == 1:
        pytest.skip("this disk knows no case")
    write(folder / "a.txt", "small")
    write(folder / "A.txt", "capital")
    assert captions(scrape(folder), folder) == {"a.jpg": "small", "A.jpg": "capital"}
    (folder / "A.txt").unlink()
    assert captions(scrape(folder, "less"), folder) == {"a.jpg": "small"}


def test_lists_below_count_for_their_folder_and_a_name_that_is_there_twice_for_none(
    workplace, tmp_path, capsys
):
    folder = tmp_path / "art"
    for i, side in enumerate(("train", "test")):
        photograph(folder / side / "x.jpg", i)
        photograph(folder / side / f"{side}.jpg", i + 2)
    write(folder / "train/metadata.csv", "file_name,text\nx.jpg,of train\n")
    write(
        folder / "all.csv",
        "file_name,text\nx.jpg,of whom\ntest/test.jpg,of test\ntrain.jpg,alone\n",
    )
    found = captions(scrape(folder), folder)
    assert found == {
        "train/x.jpg": "of train", "test/test.jpg": "of test", "train/train.jpg": "alone",
    }  # fmt: skip
    assert (
        "1 images have none\n  1 names in lists have no image here: x.jpg"
        in capsys.readouterr().out
    )


# programs


def test_stray_texts_stop_nothing_and_are_named(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    for i, name in enumerate(NAMES):
        photograph(folder / name, i)
    beside(folder, ".txt")
    (folder / "3.txt").unlink()
    write(folder / "README.txt", "These are mine.\n0.jpg is the first, see LICENSE.txt.\n")
    write(folder / "LICENSE.txt", "CC BY")
    write(folder / "notes.md", "# notes")
    write(folder / "data.csv", "a,b\n1,2\n")
    write(folder / "broken.json", "[" * 100_000)
    write(folder / "settings.json", '{"a": {"b": "0.png"}}')
    run = scrape(folder)
    assert captions(run, folder) == dict(PAIRS[:3]) and not run.rejected.exists()
    line = capsys.readouterr().out
    assert "captions from 3 .txt\n  1 images have none\n  not used: " in line
    assert "and 3 more" in line


def test_instaloaders_folder_has_one_text_for_a_post(workplace, tmp_path, capsys):
    folder = tmp_path / "artist"
    for i in (1, 2, 3):
        photograph(folder / f"2024-01-02_10-00-00_UTC_{i}.jpg", i)
    photograph(folder / "2024-01-05_10-00-00_UTC.jpg", 4)
    write(folder / "2024-01-02_10-00-00_UTC.txt", "Three new ones\n.\n#watercolour #cats\n")
    write(folder / "2024-01-05_10-00-00_UTC.txt", "a fox\nin the snow")
    write(folder / "2024-01-05_10-00-00_UTC.json.xz", "x")
    write(folder / "artist_1234.json.xz", "x")
    found = captions(scrape(folder), folder)
    assert found == {
        f"2024-01-02_10-00-00_UTC_{i}.jpg": "Three new ones . #watercolour #cats" for i in (1, 2, 3)
    } | {"2024-01-05_10-00-00_UTC.jpg": "a fox in the snow"}
    assert "captions from 4 .txt of posts" in capsys.readouterr().out


def test_onetrainers_lines_are_alternatives_and_its_masks_no_pictures(workplace, tmp_path, capsys):
    folder = tmp_path / "concept"
    for i in range(3):
        photograph(folder / f"{i}.png", i)
        photograph(folder / f"{i}-masklabel.png", i + 10)
        write(folder / f"{i}.txt", f"a cat {i}\na red cat on a long hill {i}\n\ncat {i}\n")
    photograph(folder / "my-masklabel.png", 50)  # of no picture here: one itself
    assert captions(scrape(folder), folder) == {f"{i}.png": f"a cat {i}" for i in range(3)}
    line = capsys.readouterr().out
    assert "3 have several: first is used (caption_choice)" in line
    assert "3 masks left out" in line
    picked = {
        "last": "cat 1",
        "longest": "a red cat on a long hill 1",
        "shortest": "cat 1",
        "joined": "a cat 1 a red cat on a long hill 1 cat 1",
    }
    for choice, words in picked.items():
        run = scrape(folder, choice, caption_choice=choice)
        assert captions(run, folder)["1.png"] == words
        assert len(read_rows(run.posts, Post)) == 4


def test_kohyas_folders_come_in_without_what_the_base_drew(workplace, tmp_path, capsys):
    folder = tmp_path / "project"
    for i in range(3):
        photograph(folder / f"img/10_mira style/{i}.png", i)
        write(folder / f"img/10_mira style/{i}.caption", f"a cat {i}")
        write(folder / f"img/10_mira style/{i}.txt", f"cat, {i}")
        photograph(folder / f"reg/1_style/{i}.png", i + 10)
    write(folder / "model/mira.json", '{"output_name": "mira"}')
    run = scrape(folder)
    assert captions(run, folder) == {f"img/10_mira style/{i}.png": f"cat, {i}" for i in range(3)}
    line = capsys.readouterr().out
    assert "3 regularisation images (reg/) left out" in line
    assert "kohya's folders (10_mira style): repeats and class are not used" in line
    assert "also found: .caption (caption_choice)" in line
    chosen = scrape(folder, "chosen", caption_choice=".caption")
    assert captions(chosen, folder) == {
        f"img/10_mira style/{i}.png": f"a cat {i}" for i in range(3)
    }


def test_kohyas_masks_samples_and_caches_are_no_pictures(workplace, tmp_path, capsys):
    folder = tmp_path / "project"
    for i in range(3):
        photograph(folder / f"img/10_mira style/{i}.png", i)
        photograph(folder / f"mask/10_mira style/{i}.png", i + 10)
        (folder / f"img/10_mira style/{i}_0512x0512_sd.npz").write_bytes(b"PK")
        photograph(folder / f"model/sample/mira_e00000{i}_00_20260101120000_42.png", i + 20)
    photograph(folder / "masks/0.png", 30)  # of Venice, beside faces
    photograph(folder / "faces/0.png", 33)
    photograph(folder / "model/sample/my own.png", 31)
    (folder / "model/mira.safetensors").write_bytes(b"weights")
    run = scrape(folder)
    own = {f"img/10_mira style/{i}.png" for i in range(3)}
    own |= {"masks/0.png", "faces/0.png", "model/sample/my own.png"}
    assert {post.source_name for post in read_rows(run.posts, Post)} == own
    assert not run.rejected.exists()
    line = capsys.readouterr().out
    assert "3 masks left out\n  3 samples that a training drew left out" in line
    assert "beside them 3 .npz, 1 .safetensors" in line


def test_a_pdf_is_told_apart_from_texts_that_are_not_used(workplace, tmp_path, capsys):
    photograph(tmp_path / "art/a.png", 0)
    (tmp_path / "art/Portfolio.PDF").write_bytes(b"%PDF-1.7")
    write(tmp_path / "art/notes.md", "# notes")
    scrape(tmp_path / "art")
    line = capsys.readouterr().out
    assert (
        "PDFs are not read, save their pages as images: Portfolio.PDF\n  not used: notes.md" in line
    )


def test_several_rows_and_lists_of_captions_are_alternatives(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    photograph(folder / "a.jpg", 1)
    photograph(folder / "b.jpg", 2)
    write(folder / "results.csv", "image|comment\na.jpg|one\na.jpg|a second\nb.jpg|only\n")
    assert captions(scrape(folder), folder) == {"a.jpg": "one", "b.jpg": "only"}
    line = "captions from 2 results.csv (comment)\n  1 have several: first is used (caption_choice)"
    assert line in capsys.readouterr().out
    assert captions(scrape(folder, "l", caption_choice="longest"), folder)["a.jpg"] == "a second"
    (folder / "results.csv").unlink()
    as_json(folder, "c.json", {"a.jpg": ["one", "a second"], "b.jpg": [], "c.jpg": "x"})
    assert captions(scrape(folder, "json", caption_choice="last"), folder) == {"a.jpg": "a second"}


def test_a_column_is_chosen_by_name_and_one_that_nobody_has_is_refused(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    photograph(folder / "a.jpg", 1)
    write(folder / "list.csv", "file_name,artist,remark\na.jpg,anna,a cat\n")
    assert captions(scrape(folder), folder) == {}
    assert (
        "list.csv has the columns file_name, artist, remark: set caption_choice to the one with the captions"
        in capsys.readouterr().out
    )
    assert captions(scrape(folder, "b", caption_choice="remark"), folder) == {"a.jpg": "a cat"}
    with pytest.raises(
        RunError, match="caption_choice is 'remarks': choose one of first, .*artist, remark"
    ):
        scrape(folder, "c", caption_choice="remarks")
    assert not Path("runs/c").exists()


def test_a_text_beside_an_image_goes_before_a_list_and_an_empty_one_does_not(workplace, tmp_path):
    folder = tmp_path / "art"
    for name in ("a", "b"):
        photograph(folder / f"{name}.jpg", ord(name))
    write(folder / "a.txt", "beside")
    write(folder / "b.txt", " \n")
    write(folder / "metadata.csv", "file_name,text\na.jpg,listed\nb.jpg,listed\n")
    assert captions(scrape(folder), folder) == {"a.jpg": "beside", "b.jpg": "listed"}


def test_a_list_whose_lines_cannot_be_told_apart_is_left(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    for name in NAMES:
        photograph(folder / name, int(name[0]))
    write(folder / "results.csv", "".join(f"{n}|{i}|a cat\n" for i, n in enumerate(NAMES)))
    assert captions(scrape(folder), folder) == {}
    assert "results.csv" in capsys.readouterr().out


# lists with mistakes


def scrape_list(folder: Path, name: str, text: str, capsys) -> tuple[dict[str, str], str]:
    """The captions of images 0.jpg to 3.jpg by a list, and what 01 says of it."""
    for i, image in enumerate(NAMES):
        photograph(folder / image, i)
    write(folder / name, text)
    found = captions(scrape(folder), folder)
    return found, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("x.csv", 'file_name,text\n0.jpg,a cat\n1.jpg,"a dog\n2.jpg,a cow\n3.jpg,a fox\n', 3),
        ("x.csv", 'file_name,text\r\n0.jpg,"a cat\r\n1.jpg,"a dog"\r\n2.jpg,a cow\r\n', 2),
        ("x.csv", 'file_name,text\n0.jpg,"a cat\n1.jpg,a dog"\n2.jpg,a cow\n', 2),
        ("x.csv", 'text;file_name\n"a cat;0.jpg\na dog;1.jpg\n', 2),
        ("x.csv", 'file_name,text\n0.jpg,a cat\n1.jpg,"a dog', 3),
        ("x.csv", '0.jpg,"a cat\n1.jpg,a dog\n2.jpg,a cow\n', 1),
        ("x.txt", '0.jpg|a cat\n1.jpg|"a dog\n2.jpg|a cow\n', 2),
        ("x.csv", 'sep=;\nfile_name;text\n0.jpg;"a cat\n1.jpg;a dog\n', 3),
        ("x.csv", 'file_name,text\n0.jpg,"a cat\n' + "1.jpg,a dog\n" * 20_000, 2),
    ],
)
def test_a_quotation_mark_that_does_not_close_is_told_and_swallows_no_caption(
    workplace, tmp_path, capsys, name, text, line
):
    found, told = scrape_list(tmp_path / "art", name, text, capsys)
    words = f"{name}: a cell that begins on line {line} does not end: close its quotation mark"
    assert not found and words in told.splitlines()[2]


def test_cells_of_several_lines_and_marks_within_a_line_are_read(workplace, tmp_path, capsys):
    text = (
        '0.jpg,"a ""red"" cat,\r\non two lines"\r\n1.jpg,"Untitled" by Anna\r\n2.jpg,5" of snow\r\n'
    )
    whole = {"0.jpg": 'a "red" cat, on two lines', "2.jpg": '5" of snow'}
    found, _ = scrape_list(tmp_path / "a", "x.csv", f"file_name,text\r\n{text}", capsys)
    assert found == whole | {"1.jpg": "Untitled by Anna"}
    write(tmp_path / "a/x.csv", text)
    found = captions(scrape(tmp_path / "a", "headless"), tmp_path / "a")
    assert found == whole | {"1.jpg": '"Untitled" by Anna'}


@pytest.mark.parametrize("first", ["sep=;", "SEP=;\r", '"sep=;"', "sep=;;;"])
def test_excels_first_line_names_the_delimiter(workplace, tmp_path, capsys, first):
    text = f"{first}\nfile_name;text\n0.jpg;a cat, red | old\n1.jpg;a dog\n"
    found, told = scrape_list(tmp_path / "art", "x.csv", text, capsys)
    assert found == {"0.jpg": "a cat, red | old", "1.jpg": "a dog"}
    assert "captions from 2 x.csv (text)" in told and "not used" not in told


def test_a_delimiter_that_only_excels_first_line_tells_is_taken(workplace, tmp_path, capsys):
    found, _ = scrape_list(tmp_path / "art", "x.csv", "sep=^\nimage^text\n0.jpg^a cat\n", capsys)
    assert found == {"0.jpg": "a cat"}


def test_a_column_that_is_given_twice_is_told(workplace, tmp_path, capsys):
    text = "File Name,Caption,Caption,,\n0.jpg,one,two,,\n1.jpg,three,four,,\n"
    found, told = scrape_list(tmp_path / "art", "x.csv", text, capsys)
    assert not found and "x.csv: has the column Caption 2 times: rename all but one" in told
    write(tmp_path / "art/x.csv", text.replace("Caption,Caption", "Caption,Other"))
    found = captions(scrape(tmp_path / "art", "renamed"), tmp_path / "art")
    assert found == {"0.jpg": "one", "1.jpg": "three"}


def test_lines_that_are_no_json_and_captions_that_are_no_text_are_counted(
    workplace, tmp_path, capsys
):
    rows = [
        '{"file_name": "0.jpg", "text": "a\u2028cat"}',
        '{"file_name": "1.jpg", "text": NaN}',
        '{"file_name": "2.jpg", "text": {"en": "a cow"}}',
        "",
        '{"file_name": "3.jpg", "text": 5}',
        '{"file_name": "3.jpg", "text": null}',
        '{"file_name": "3.jpg", "text": "a f',
        "[]",
    ]
    found, told = scrape_list(tmp_path / "art", "metadata.jsonl", "\n".join(rows), capsys)
    assert found == {"0.jpg": "a cat"}
    assert (
        "metadata.jsonl: 2 lines are no JSON object (7, 8): write each as {...}, without a comma after it\n"
        "  metadata.jsonl: 3 lines have a caption that is no text (2, 3, 5): write it in quotation marks"
    ) in told


def test_json_lines_that_end_in_commas_are_told(workplace, tmp_path, capsys):
    text = "".join(f'{{"file_name": "{n}", "text": "a cat"}},\r\n' for n in NAMES * 2)
    found, told = scrape_list(tmp_path / "art", "metadata.jsonl", text, capsys)
    assert not found and "metadata.jsonl: 8 lines are no JSON object (1, 2, 3, 4, 5, ...)" in told


def test_captions_of_a_json_file_that_are_no_text_are_counted(workplace, tmp_path, capsys):
    text = json.dumps({"0.jpg": "a cat", "1.jpg": 5, "2.jpg": {"prompt": "a cow"}, "3.jpg": {}})
    found, told = scrape_list(tmp_path / "art", "list.json", text, capsys)
    assert found == {"0.jpg": "a cat", "2.jpg": "a cow"}
    assert "list.json: 1 entries have a caption that is no text (2)" in told


# texts


@pytest.mark.parametrize(
    "text",
    [
        "ein Käfer über dem Fluß",
        "a cat’s “house” – near the hill…",
        "un éléphant à l'été, œuvre d'un café",
    ],
)
def test_western_texts_that_are_no_unicode_are_read(text):
    content = text.encode("cp1252")
    assert decode(content) is None and decode_western([content]) == [text]


def test_texts_of_a_run_and_of_examples_are_read_in_any_common_encoding(workplace, tmp_path):
    from helpers.caption.claude.prompt import example_pairs

    folder = tmp_path / "art"
    for name in NAMES[:3]:
        photograph(folder / name, int(name[0]))
    write(folder / "0.txt", "ein Käfer", "utf-16")
    write(folder / "1.txt", "ein Käfer", "cp1252")
    config = CaptionConfig(run="mine", examples=(str(folder),))
    run = scrape(folder)
    assert [words for _, words in example_pairs(config, run)] == ["ein Käfer"] * 2
    run.sidecar("0_1.jpg").write_bytes("ein Fuß".encode("utf-8-sig"))
    run.sidecar("1_1.jpg").write_bytes("рыжая кошка".encode("cp1251"))
    assert captions(run, folder) == {"0.jpg": "ein Fuß"}
    assert "failed: 1_1.txt is no UTF-8 text" in run.captions.read_text()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("рыжая кошка сидит на окне", "cp1251"),
        ("рыжая кошка сидит на окне", "koi8-r"),
        ("赤い屋根の上の猫", "shift-jis"),
        ("一只红色的猫坐在屋顶上", "gb18030"),
        ("žluťoučký kůň", "cp1250"),
        ("źrebię w stajni, łóżko", "cp1250"),
        ("kırmızı şapkalı kedi ağaçta", "cp1254"),
        ("eine süße Katze", "mac-roman"),
        ("a cat’s house", "mac-roman"),
        ("κόκκινη γάτα στη στέγη", "cp1253"),
    ],
)
def test_other_encodings_are_not_guessed_at(workplace, tmp_path, capsys, text, encoding):
    folder = tmp_path / "art"
    photograph(folder / "a.jpg", 1)
    photograph(folder / "b.jpg", 2)
    (folder / "a.txt").write_bytes(text.encode(encoding))
    write(folder / "b.txt", "a cat")
    assert captions(scrape(folder), folder) == {"b.jpg": "a cat"}
    assert "not read: a.txt (save them as UTF-8)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "an orange cat wearing a green scarf is sitting on a wooden bench in\nthe park",
        "a watercolour of a small fox that jumps over the old wooden fence\nbehind the red mill under a pale sky",
        "two blue elephants,\ntouching their trunks",
        "a bear with\na hat",
    ],
)
def test_a_text_that_an_editor_broke_into_lines_is_one(text):
    assert alternatives(text) == [text.replace("\n", " ")]


@pytest.mark.parametrize(
    "lines",
    [
        ["a cat", "a red cat", "cat"],
        [
            "an orange cat wearing a green scarf sits on a wooden bench in the park",
            "a cat on a bench",
        ],
        ["1girl, solo, hat", "a girl with a hat"],
        ["cat, hill, red,", "a red cat on a hill"],
        ["a cat on a hill near the old mill in a mira watercolor style", "alternative words"],
        ["orange cat wearing a green scarf on a wooden bench", "cat on bench", "cat in a scarf"],
        ["A cat sleeps on the old sofa by the window of the house.", "The cat is orange."],
        ["猫", "赤い猫"],
    ],
)
def test_lines_that_are_captions_each_are_alternatives(lines):
    assert alternatives("\r\n".join(["", *lines, ""])) == lines


def test_four_thousand_texts_are_read_in_a_fraction_of_what_they_took(tmp_path):
    """By this process's own time; comparing each with each took ten times as long. An image is a name here."""
    files = []
    for i in range(4000):
        files += [tmp_path / f"{i:05d}.jpg", tmp_path / f"{i:05d}.txt"]
        files[-1].write_text(f"a cat {i}")
    began = process_time()
    assert len(read_captions(tmp_path, files).captions) == 4000
    assert process_time() - began < 4


def test_names_and_words_that_are_no_unicode_stop_nothing(workplace, tmp_path, capsys):
    folder = tmp_path / "art"
    photograph(folder / "a.jpg", 1)
    write(folder / "c.json", '{"a.jpg": "a cat \\ud83d", "\\ud800.jpg": "x"}')
    Path(os.fsdecode(os.fsencode(folder) + b"/stray \xe9\n.txt")).write_text("x")
    assert captions(scrape(folder), folder) == {"a.jpg": "a cat ?"}
    line = capsys.readouterr().out.strip()
    assert line.count("\n") == 3 and "stray \\xe9 .txt" in line


# datasets of the hub


def dataset(folder: Path, features: dict, rows: list[dict]) -> str:
    import datasets

    folder.mkdir()
    table = {name: [row[name] for row in rows] for name in features}
    made = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    made.to_parquet(folder / "train-00000.parquet")
    return str(folder)


def from_hub(name: str, dataset_id: str, **more) -> tuple[Run, dict[str, str]]:
    config = ScrapeConfig(run=name, source="hub", dataset_id=dataset_id, **more)
    run = Run(name)
    taken(config, run)
    found = {run.image(p.file_name).read_bytes(): p.file_name for p in read_rows(run.posts, Post)}
    return run, {
        name: run.sidecar(name).read_text() for name in found.values() if run.sidecar(name).exists()
    }


@pytest.fixture
def bytes_of(tmp_path, workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))

    def content(seed):
        return {"bytes": photograph(tmp_path / f"{seed}.jpg", seed).read_bytes(), "path": None}

    return content


def test_a_datasets_lists_of_captions_are_alternatives(tmp_path, bytes_of, capsys):
    from datasets import Image, List, Value

    features = {"image": Image(), "captions": List(Value("string")), "label": Value("int64")}
    rows = [
        {"image": bytes_of(i), "captions": [f"a cat {i}", f"a longer cat {i}"][: 2 - i], "label": i}
        for i in range(3)
    ]
    place = dataset(tmp_path / "lists", features, rows)
    _, words = from_hub("a", place)
    assert sorted(words.values()) == ["a cat 0", "a cat 1"]
    line = "captions from 2 captions\n  1 images have none\n  1 have several: first is used (caption_choice)"
    assert line in capsys.readouterr().out
    _, words = from_hub("b", place, caption_choice="longest")
    assert sorted(words.values()) == ["a cat 1", "a longer cat 0"]
    with pytest.raises(
        RunError, match="caption_choice is 'label': choose one of first, .*captions"
    ):
        from_hub("c", place, caption_choice="label")


def test_a_conditioning_image_is_no_art_unless_it_is_asked_for(tmp_path, bytes_of, capsys):
    from datasets import Image, Value

    texts = {"text": Value("string"), "short": Value("string")}
    features = {"conditioning_image": Image(), "image": Image(), **texts}
    rows = [
        {
            "conditioning_image": bytes_of(i + 10),
            "image": bytes_of(i),
            "text": None,
            "short": f"{i}",
        }
        for i in range(2)
    ]
    place = dataset(tmp_path / "control", features, rows)

    def came(run):
        return {run.image(post.file_name).read_bytes() for post in read_rows(run.posts, Post)}

    run, words = from_hub("a", place)
    assert came(run) == {bytes_of(0)["bytes"], bytes_of(1)["bytes"]} and words == {}
    assert "images from image, not conditioning_image (image_column)" in capsys.readouterr().out
    run, words = from_hub("b", place, image_column="conditioning_image", caption_choice="short")
    assert came(run) == {bytes_of(10)["bytes"], bytes_of(11)["bytes"]}
    assert sorted(words.values()) == ["0", "1"]
    with pytest.raises(
        RunError, match="image_column is 'x': choose one of conditioning_image, image"
    ):
        from_hub("c", place, image_column="x")
