import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.core.files import append_line, find_corruption, replacing_file, replacing_folder
from helpers.core.records import Caption, append_row, latest, read_rows


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="no"), replacing_file(path) as beside:
        beside.write_text("half")
        raise OSError("no")
    assert path.read_text() == "old"


def test_a_folder_verifies_and_any_change_is_seen(tmp_path):
    folder = tmp_path / "data"
    with replacing_folder(folder) as beside:
        (beside / "deep").mkdir()
        (beside / "deep/a.txt").write_text("hello")
    assert find_corruption(folder) is None
    (folder / "deep/a.txt").write_text("hallo")
    assert "a.txt is not what manifest.json says" in find_corruption(folder)
    (folder / "deep/a.txt").unlink()
    assert "a.txt is missing" in find_corruption(folder)


def test_replacing_a_folder_leaves_nothing_of_the_old(tmp_path):
    for name in ("one", "two"):
        with replacing_folder(tmp_path / "data") as beside:
            (beside / name).write_text(name)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["manifest.json", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_kill_between_two_lines_loses_none_and_a_half_line_is_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = textwrap.dedent(f"""
        from pathlib import Path
        from helpers.core.files import append_line
        path = Path({str(path)!r})
        append_line(path, "one"); append_line(path, "two")
        with path.open("a") as f:
            f.write("hal"); f.flush()
        import os, signal; os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False)
    assert done.returncode == -signal.SIGKILL
    append_line(path, "three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_the_last_line_of_a_name_counts(tmp_path):
    path = tmp_path / "captions.jsonl"
    for words in ("a cat", "a dog"):
        append_row(path, Caption("x_1.jpg", words, "ok", "sidecar"))
    assert latest(read_rows(path, Caption))["x_1.jpg"].caption == "a dog"


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file_name": "a"}\n')
    with pytest.raises(RunError, match="captions.jsonl line 1 is not a Caption"):
        read_rows(path, Caption)
