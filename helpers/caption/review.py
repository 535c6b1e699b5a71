"""A table in the notebook to review and edit captions, for ipywidgets 7.7 (Colab's) and 8.

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

ROWS_PER_PAGE = 8
PICTURE_PX = 160
IF_DEAD = """<small>If the buttons do nothing, or no table stands above, this page has lost its kernel (it was
restarted, or the page was reloaded): run all cells of the notebook again. Edits and accepted captions are
saved.</small>"""
EVERY, TO_READ = "all captions", "all that want a look"


def review(config: CaptionConfig, run: Run) -> "ReviewTable | None":
    """Show the review table if `config.review` is set and a person runs the notebook, else print counts of problems.

    Returns the table, or None if it is not shown.
    """
    run.check_settings(config)
    table = ReviewTable(config, run)
    if config.review and is_interactive():
        display(table.view, HTML(IF_DEAD))
        return table
    counts = ", ".join(f"{what}: {len(names)}" for what, names in table.found.items() if names)
    print(
        f"review skipped; it would have shown {len(table.names(TO_READ))} captions ({counts or 'none'})"
    )
    return None


def is_interactive() -> bool:
    """Return whether a person runs this cell: a front end allows input requests, papermill does not."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent("shell") if kernel else {}
    return bool(request.get("content", {}).get("allow_stdin"))


class Line(NamedTuple):
    """A row of the review table: the image's file name, and the widgets whose content changes."""

    name: str
    note: widgets.HTML
    words: widgets.Text


class ReviewTable:
    """A paged table of images, each with its problems and its caption to edit. `view` is the widget to show."""

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
        self.view = widgets.VBox(
            [
                widgets.HBox([self.filter, self.back, self.forward, self.where]),
                self.message,
                self.table,
            ]
        )
        self._list()

    def names(self, shown: str) -> list[str]:
        """Return the file names of the captions that the filter choice `shown` selects.

        Under a problem, captions that a person accepted or edited are left out, unless they are too long.
        """
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
        """Read captions.jsonl again, and find the problems in its captions."""
        self.rows = latest(read_rows(self.run.captions, Caption))
        self.found = {
            what: [
                row.file_name for row in rows if row.status != "edited" or what.startswith(TOO_LONG)
            ]
            for what, rows in problems(self.config, self.run).items()
        }

    def _list(self) -> None:
        """List the captions that the filter selects, and show the first page.

        Later edits do not change the list, so no page is skipped.
        """
        self.listed = self.names(self.filter.value)
        self._turn_to(0)

    def _turn_to(self, page: int) -> None:
        last = max(0, (len(self.listed) - 1) // ROWS_PER_PAGE)
        self.page = min(max(0, page), last)
        self.back.disabled, self.forward.disabled = self.page == 0, self.page == last
        self._count()
        shown = self.listed[self.page * ROWS_PER_PAGE : (self.page + 1) * ROWS_PER_PAGE]
        self.table.children = tuple(self._row(self.rows[name]) for name in shown)

    def _count(self) -> None:
        """Show how many captions the filter selects, and the page number."""
        pages = max(1, -(-len(self.listed) // ROWS_PER_PAGE))
        count = len(self.names(self.filter.value))
        self.where.value = f"{count} captions, page {self.page + 1} of {pages}"

    def _row(self, row: Caption) -> widgets.HBox:
        words = widgets.Text(
            row.caption,
            placeholder=row.status,
            continuous_update=False,
            layout=widgets.Layout(width="98%"),
        )
        note = widgets.HTML(self._note(row))
        accept = widgets.Button(description="Accept", icon="check", button_style="success")
        again = widgets.Button(description="Ask again", icon="refresh")
        line = Line(row.file_name, note, words)
        words.observe(lambda _: self._on_typed(line), "value")
        accept.on_click(lambda _: self._save(line))
        again.on_click(lambda button: self._ask(line, button))
        picture = widgets.Image(value=_thumbnail(self.run, row.file_name), format="jpeg")
        picture.layout = widgets.Layout(width=f"{PICTURE_PX}px", flex="0 0 auto")
        right = [note, words, widgets.HBox([accept, again])]
        return widgets.HBox(
            [
                picture,
                widgets.VBox(right, layout=widgets.Layout(flex="1 1 0%", margin="0 0 0 12px")),
            ],
            layout=widgets.Layout(border="1px solid #ddd", padding="6px", margin="4px 0"),
        )

    def _note(self, row: Caption) -> str:
        """Return the HTML line above a caption: file name, status, captioner and problems."""
        parts = [
            f"<b>{html.escape(row.file_name)}</b>",
            html.escape(f"{row.status}, {row.captioner}"),
        ]
        parts += [
            f'<span style="color:#b03030">{html.escape(what)}</span>'
            for what in self._problems_of(row.file_name)
        ]
        return " &middot; ".join(parts)

    def _problems_of(self, name: str) -> list[str]:
        return [what for what, names in self.found.items() if name in names]

    def _on_typed(self, line: Line) -> None:
        if " ".join(line.words.value.split()) != self.rows[line.name].caption:
            self._save(line)

    def _save(self, line: Line) -> None:
        """Save the caption that stands in the row's text field, edited or merely accepted."""
        try:
            edit(self.run, self.rows[line.name], line.words.value)
            self._refresh(line, "kept")
        except RunError as error:
            self._show_message(str(error))

    def _ask(self, line: Line, button: widgets.Button) -> None:
        """Caption the image of a table row again, and show the new caption."""
        button.disabled = True
        try:
            row = ask_again(self.config, self.run, self.posts[line.name])
            self._refresh(line, row.status)
        except RunError as error:
            self._show_message(str(error))
        finally:
            button.disabled = False

    def _refresh(self, line: Line, what: str) -> None:
        self._reload()
        line.words.value = self.rows[line.name].caption
        line.note.value = self._note(self.rows[line.name])
        self._update_filter()
        self._count()
        long = [fault for fault in self._problems_of(line.name) if fault.startswith(TOO_LONG)]
        self._show_message(
            f"{line.name}: {what}" + "".join(f", but {f}: its end is not read" for f in long)
        )

    def _update_filter(self) -> None:
        """Update the choices of the filter, with the present choice still selected."""
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
    """Return a small JPEG of an image, grey if the image cannot be read."""
    try:
        image = open_rgb(run.image(file_name))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = Image.new("RGB", (PICTURE_PX, PICTURE_PX), "#cccccc")
    image.thumbnail((2 * PICTURE_PX, 2 * PICTURE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
