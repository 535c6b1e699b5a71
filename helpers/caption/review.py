"""A notebook table for reviewing and editing captions, with ipywidgets 7.7 (on Colab) or 8.

An edit is appended as a new row; nothing is overwritten. By keyboard: Tab moves between fields, Enter saves the text,
Space presses the focused button.
"""

import html
import io
from typing import NamedTuple

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import HTML, display
from PIL import Image

from helpers.caption.check import TOO_LONG
from helpers.caption.ledger import ask_again, edit, problems
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, latest, read_rows
from helpers.core.run import Run
from helpers.figures.pictures import open_rgb
from helpers.mirror.sync import sync_soon

ROWS_PER_PAGE = 8
PICTURE_PX = 160
IF_DEAD = """<small>If the buttons do nothing, or no table stands above, this page has lost its kernel (it was
restarted, or the page was reloaded): run all cells of the notebook again. Edits and accepted captions are
saved.</small>"""
NO_CAPTION = "no caption yet: type what the picture shows"
EVERY, TO_READ = "all captions", "all that want a look"


def review(config: CaptionConfig, run: Run) -> "ReviewTable | None":
    """Show and return the review table. If review is off or no person is there, only problem counts are printed."""
    run.check_settings(config)
    table = ReviewTable(config, run)
    if config.review and is_interactive():
        display(table.view, HTML(IF_DEAD))
        return table
    counts = ", ".join(f"{what}: {len(names)}" for what, names in table.found.items() if names)
    to_read = len(table.names(TO_READ))
    print(f"review skipped; it would have shown {to_read} captions ({counts or 'none'})")
    return None


def is_interactive() -> bool:
    """Return True if a person runs this cell in a notebook, False if papermill runs it."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent("shell") if kernel else {}
    return bool(request.get("content", {}).get("allow_stdin"))


class Line(NamedTuple):
    """A row of the review table: the image's file name, and the widgets whose content changes."""

    name: str
    note: widgets.HTML
    words: widgets.Text


class ReviewTable:
    """A paged table of images, editable captions, and problems found in the captions."""

    def __init__(self, config: CaptionConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.posts = latest(read_rows(run.posts, Post))
        narrow = widgets.Layout(width="110px")
        self.back = widgets.Button(description="Previous", icon="arrow-left", layout=narrow)
        self.forward = widgets.Button(description="Next", icon="arrow-right", layout=narrow)
        self.where = widgets.Label(layout=widgets.Layout(width="220px"))
        self.message = widgets.HTML()
        self.table = widgets.VBox()
        self.page = 0
        self._reload()
        self.filter = widgets.Dropdown(
            options=self._choices(), description="Show", layout=widgets.Layout(width="380px")
        )
        self._on_filter = lambda _change: self._list()
        self.filter.observe(self._on_filter, "value")
        self.back.on_click(lambda _: self._turn_to(self.page - 1))
        self.forward.on_click(lambda _: self._turn_to(self.page + 1))
        top = widgets.HBox([self.filter, self.back, self.forward, self.where])
        self.view = widgets.VBox([top, self.message, self.table])  # the widget to show
        self._list()

    def names(self, shown: str) -> list[str]:
        """Return the file names of the images that a choice in the table's filter selects."""
        if shown == EVERY:
            return list(self.rows)
        if shown == TO_READ:
            wanted = {name for names in self.found.values() for name in names}
            return [name for name in self.rows if name in wanted]
        return self.found.get(shown, [])

    def _choices(self) -> list[str]:
        kinds = [what for what, names in self.found.items() if names]
        return [TO_READ, *kinds, EVERY] if kinds else [EVERY]

    def _reload(self) -> None:
        self.rows = latest(read_rows(self.run.captions, Caption))
        self.found = {
            # of a caption that a person edited or accepted, only excess length is a problem
            what: [r.file_name for r in rows if r.status != "edited" or what.startswith(TOO_LONG)]
            for what, rows in problems(self.config, self.run).items()
        }

    def _list(self) -> None:
        self.listed = self.names(self.filter.value)  # not changed by edits: no page is skipped
        self._turn_to(0)

    @property
    def _last_page(self) -> int:
        return max(0, (len(self.listed) - 1) // ROWS_PER_PAGE)

    def _turn_to(self, page: int) -> None:
        self.page = min(max(0, page), self._last_page)
        self.back.disabled, self.forward.disabled = self.page == 0, self.page == self._last_page
        self._count()
        shown = self.listed[self.page * ROWS_PER_PAGE : (self.page + 1) * ROWS_PER_PAGE]
        self.table.children = tuple(self._row(self.rows[name]) for name in shown)

    def _count(self) -> None:
        count = len(self.names(self.filter.value))
        self.where.value = f"{count} captions, page {self.page + 1} of {self._last_page + 1}"

    def _row(self, row: Caption) -> widgets.HBox:
        wide = widgets.Layout(width="98%")
        words = widgets.Text(row.caption, placeholder=NO_CAPTION, layout=wide)
        words.continuous_update = False
        note = widgets.HTML(self._note(row))
        accept = widgets.Button(description="Accept", icon="check", button_style="success")
        again = widgets.Button(description="Ask again", icon="refresh")
        line = Line(row.file_name, note, words)
        words.observe(lambda _: self._on_typed(line), "value")
        accept.on_click(lambda _: self._save(line))
        again.on_click(lambda button: self._ask(line, button))
        picture = widgets.Image(value=_thumbnail(self.run, row.file_name), format="jpeg")
        picture.layout = widgets.Layout(width=f"{PICTURE_PX}px", flex="0 0 auto")
        right = widgets.VBox([note, words, widgets.HBox([accept, again])])
        right.layout = widgets.Layout(flex="1 1 0%", margin="0 0 0 12px")
        frame = widgets.Layout(border="1px solid #ddd", padding="6px", margin="4px 0")
        return widgets.HBox([picture, right], layout=frame)

    def _note(self, row: Caption) -> str:
        name, made = html.escape(row.file_name), html.escape(f"{row.status}, {row.captioner}")
        found = map(html.escape, self._problems_of(row.file_name))
        red = [f'<span style="color:#b03030">{what}</span>' for what in found]
        return " &middot; ".join([f"<b>{name}</b>", made, *red])

    def _problems_of(self, name: str) -> list[str]:
        return [what for what, names in self.found.items() if name in names]

    def _on_typed(self, line: Line) -> None:
        if " ".join(line.words.value.split()) != self.rows[line.name].caption:
            self._save(line)

    def _save(self, line: Line) -> None:
        try:
            edit(self.run, self.rows[line.name], line.words.value)
            self._refresh(line, "kept")
        except RunError as error:
            self._show_message(str(error))

    def _ask(self, line: Line, button: widgets.Button) -> None:
        button.disabled = True
        try:
            row = ask_again(self.config, self.run, self.posts[line.name])
            self._refresh(line, row.status)
        except RunError as error:
            self._show_message(str(error))
        finally:
            button.disabled = False

    def _refresh(self, line: Line, what: str) -> None:
        sync_soon(self.run)
        self._reload()
        line.words.value = self.rows[line.name].caption
        line.note.value = self._note(self.rows[line.name])
        self._update_filter()
        self._count()
        long = [fault for fault in self._problems_of(line.name) if fault.startswith(TOO_LONG)]
        but = "".join(f", but {fault}: its end is not read" for fault in long)
        self._show_message(f"{line.name}: {what}{but}")

    def _update_filter(self) -> None:
        chosen, choices = self.filter.value, self._choices()
        if chosen not in choices:
            choices.append(chosen)
        if choices != list(self.filter.options):
            self.filter.unobserve(self._on_filter, "value")
            self.filter.options, self.filter.value = choices, chosen
            self.filter.observe(self._on_filter, "value")

    def _show_message(self, text: str) -> None:
        self.message.value = html.escape(text)


def _thumbnail(run: Run, file_name: str) -> bytes:
    try:
        image = open_rgb(run.image(file_name))
    except OSError:
        image = Image.new("RGB", (PICTURE_PX, PICTURE_PX), "#cccccc")
    image.thumbnail((2 * PICTURE_PX, 2 * PICTURE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
