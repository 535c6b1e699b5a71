"""The table in which a person reads and mends captions. Written to what ipywidgets 7.7 (Colab's) and 8 both have.

What is typed is kept as a row beside the captioner's; nothing is written over. By keyboard: Tab goes
from field to field, Enter keeps what was typed, Space presses the button one is on.
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

PAGE = 8  # rows
PICTURE_PX = 160
IF_DEAD = """<small>If the buttons do nothing, or no table stands above, this page has lost its kernel (it was
restarted, or the page was opened anew): run all cells of the notebook again. What was typed and accepted is
kept.</small>"""
EVERY, TO_READ = "all captions", "all that want a look"


def review(config: CaptionConfig, run: Run) -> "ReviewTable | None":
    """Show the table if it is wanted and a person is there; else say what they would have been asked."""
    run.check_settings(config)
    table = ReviewTable(config, run)
    if config.review and somebody_is_there():
        display(table.view, HTML(IF_DEAD))
        return table
    counts = ", ".join(f"{what}: {len(names)}" for what, names in table.found.items() if names)
    print(
        f"review skipped; it would have shown {len(table.names(TO_READ))} captions ({counts or 'none'})"
    )
    return None


def somebody_is_there() -> bool:
    """Whether this cell was run by hand: a front end lets its cells ask for input, papermill's does not."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent("shell") if kernel else {}
    return bool(request.get("content", {}).get("allow_stdin"))


class Line(NamedTuple):
    """What changes in a row of the table."""

    name: str
    note: widgets.HTML
    words: widgets.Text


class ReviewTable:
    """Image, caption and what is the matter with it, a row each. `view` is the widget to show."""

    def __init__(self, config: CaptionConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.posts = latest(read_rows(run.posts, Post))
        narrow = widgets.Layout(width="110px")
        self.back = widgets.Button(description="Previous", icon="arrow-left", layout=narrow)
        self.forth = widgets.Button(description="Next", icon="arrow-right", layout=narrow)
        self.where = widgets.Label(layout=widgets.Layout(width="220px"))
        self.message = widgets.HTML()
        self.table = widgets.VBox()
        self.page = 0
        self._look()
        self.filter = widgets.Dropdown(
            options=self._choices(), description="Show", layout=widgets.Layout(width="380px")
        )
        self._on_filter = lambda _change: self._list()
        self.filter.observe(self._on_filter, "value")
        self.back.on_click(lambda _: self._turn_to(self.page - 1))
        self.forth.on_click(lambda _: self._turn_to(self.page + 1))
        self.view = widgets.VBox(
            [
                widgets.HBox([self.filter, self.back, self.forth, self.where]),
                self.message,
                self.table,
            ]
        )
        self._list()

    def names(self, shown: str) -> list[str]:
        """The file names behind a choice of the filter; what a person has passed or mended wants no further look."""
        if shown == EVERY:
            return list(self.rows)
        if shown == TO_READ:
            wanted = {name for names in self.found.values() for name in names}
            return [name for name in self.rows if name in wanted]
        return self.found.get(shown, [])

    def _choices(self) -> list[str]:
        kinds = [what for what, names in self.found.items() if names]
        return [TO_READ, *kinds, EVERY] if kinds else [EVERY]

    def _look(self) -> None:
        """Read the ledger anew."""
        self.rows = latest(read_rows(self.run.captions, Caption))
        self.found = {
            what: [
                row.file_name for row in rows if row.status != "edited" or what.startswith(TOO_LONG)
            ]
            for what, rows in problems(self.config, self.run).items()
        }

    def _list(self) -> None:
        """Show what the filter holds now; what is mended from here on keeps its place, so that no page is skipped."""
        self.listed = self.names(self.filter.value)
        self._turn_to(0)

    def _turn_to(self, page: int) -> None:
        last = max(0, (len(self.listed) - 1) // PAGE)
        self.page = min(max(0, page), last)
        self.back.disabled, self.forth.disabled = self.page == 0, self.page == last
        self._count()
        shown = self.listed[self.page * PAGE : (self.page + 1) * PAGE]
        self.table.children = tuple(self._row(self.rows[name]) for name in shown)

    def _count(self) -> None:
        """Say how many captions the filter still holds, and which page is shown."""
        pages = max(1, -(-len(self.listed) // PAGE))
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
        accept.on_click(lambda _: self._keep(line))
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
        """The line over a caption: the file, its status and what is the matter, as text whatever they hold."""
        parts = [
            f"<b>{html.escape(row.file_name)}</b>",
            html.escape(f"{row.status}, {row.captioner}"),
        ]
        parts += [
            f'<span style="color:#b03030">{html.escape(what)}</span>'
            for what in self._faults(row.file_name)
        ]
        return " &middot; ".join(parts)

    def _faults(self, name: str) -> list[str]:
        return [what for what, names in self.found.items() if name in names]

    def _on_typed(self, line: Line) -> None:
        if " ".join(line.words.value.split()) != self.rows[line.name].caption:
            self._keep(line)

    def _keep(self, line: Line) -> None:
        """Keep what a person typed, or their yes to what is there."""
        try:
            edit(self.run, self.rows[line.name], line.words.value)
            self._refresh(line, "kept")
        except RunError as error:
            self._say(str(error))

    def _ask(self, line: Line, button: widgets.Button) -> None:
        """Have the image captioned once more; the new words count from now on."""
        button.disabled = True
        try:
            row = ask_again(self.config, self.run, self.posts[line.name])
            self._refresh(line, row.status)
        except RunError as error:
            self._say(str(error))
        finally:
            button.disabled = False

    def _refresh(self, line: Line, what: str) -> None:
        self._look()
        line.words.value = self.rows[line.name].caption
        line.note.value = self._note(self.rows[line.name])
        self._offer()
        self._count()
        long = [fault for fault in self._faults(line.name) if fault.startswith(TOO_LONG)]
        self._say(f"{line.name}: {what}" + "".join(f", but {f}: its end is not read" for f in long))

    def _offer(self) -> None:
        """Have the filter offer what there is now, and stay where it is."""
        chosen, choices = self.filter.value, self._choices()
        if chosen not in choices:
            choices.append(chosen)
        if choices != list(self.filter.options):
            self.filter.unobserve(self._on_filter, "value")
            self.filter.options, self.filter.value = choices, chosen
            self.filter.observe(self._on_filter, "value")

    def _say(self, text: str) -> None:
        self.message.value = html.escape(text)


def _thumbnail(run: Run, file_name: str) -> bytes:
    """A small JPEG of an image; a grey one where it cannot be read."""
    try:
        image = open_rgb(run.image(file_name))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = Image.new("RGB", (PICTURE_PX, PICTURE_PX), "#cccccc")
    image.thumbnail((2 * PICTURE_PX, 2 * PICTURE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
