"""A disk that refuses the executed copy of a notebook."""

from tests.test_batch import batch


def test_a_disk_that_fills_under_a_notebooks_copy_is_one_line(workplace):
    copies = workplace / "runs/x/notebooks"
    copies.mkdir(parents=True)
    (copies / "01_scrape.ipynb").symlink_to("/dev/full")
    done = batch("x", "--only", "01", "-p", "more", {"demo_posts": 4})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "error: could not write runs/x/notebooks/01_scrape.ipynb: No space left on device"
    )
    assert "free some space, and run the notebook again" in line
    (copies / "01_scrape.ipynb").unlink()
    assert batch("x", "--only", "01", "-p", "more", {"demo_posts": 4}).returncode == 0
