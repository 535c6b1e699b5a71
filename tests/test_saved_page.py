"""What stands in a notebook's page when no kernel answers any more: widgets are dead then, a line of HTML is not."""

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jupyter_client.manager import start_new_kernel

from helpers.core.records import Caption, append_row
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import Sampler, make_config
from tests.test_claude import make_run, name_of

VIEW = "application/vnd.jupyter.widget-view+json"
TABLE = """
from helpers.caption.review import review
from helpers.config import CaptionConfig
from helpers.core.run import Run
table = review(CaptionConfig(run="art"), Run("art"))
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


def test_below_the_prompt_box_stands_what_to_do(trained_run):
    sampler = Sampler(trained_run)
    box = PromptBox(sampler, make_config(sampler.run), "a turtle")
    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            shell.display_formatter.format(box)
    finally:
        InteractiveShell.clear_instance()
    view, line = (output.data for output in shown.outputs)
    assert VIEW in view and "run all cells of the notebook again" in line["text/html"]
    assert "runs/pictures/samples" in line["text/html"] and "<script" not in line["text/html"]


def test_below_the_table_of_captions_stands_what_to_do(workplace):
    run = make_run(2)
    append_row(run.captions, Caption(name_of(0), "a cat with a hat", "ok", "claude"))
    view, line = shown_by(TABLE, workplace)
    assert VIEW in view and "run all cells of the notebook again" in line["text/html"]
