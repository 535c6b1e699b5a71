"""What stands in a notebook's page when no kernel answers any more: widgets are dead then, a line of HTML is not."""

from jupyter_client.manager import start_new_kernel

from helpers.records import Caption, append_row
from tests.test_claude import make_run, name_of

VIEW = "application/vnd.jupyter.widget-view+json"
TABLE = """
from helpers.caption.review import review
from helpers.config import CaptionConfig
from helpers.run import Run
table = review(CaptionConfig(run="art"), Run("art"))
"""
BOX = """
from helpers.inference.sample import Studio, settings_of
from helpers.inference.widget import PromptBox
from helpers.run import Run
here = Run("pictures")
studio = Studio(here)
box = PromptBox(studio, settings_of(here), "a turtle")
box
"""


def shown_by(code, folder):
    """What a cell displays that a person runs by hand."""
    manager, client = start_new_kernel(cwd=str(folder))
    shown = []

    def keep(message):
        if message["msg_type"] in ("display_data", "execute_result"):
            shown.append(message["content"]["data"])

    try:
        reply = client.execute_interactive(code, output_hook=keep, allow_stdin=True, timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    return shown


def test_below_the_prompt_box_stands_what_to_do(trained_folder, workplace):
    (workplace / "runs").symlink_to(trained_folder / "runs")
    *_bars, view, line = shown_by(BOX, workplace)
    assert VIEW in view and "run all cells of the notebook again" in line["text/html"]
    assert "runs/pictures/samples" in line["text/html"]


def test_below_the_table_of_captions_stands_what_to_do(workplace):
    run = make_run(2)
    append_row(run.captions, Caption(name_of(0), "a cat with a hat", "ok", "claude"))
    view, line = shown_by(TABLE, workplace)
    assert VIEW in view and "run all cells of the notebook again" in line["text/html"]
