"""Google Colab's Python side as a notebook meets it, for a machine that is none.

`STUB_CLOUD` is the folder that stands for the person's Google Drive; without it they refuse. `STUB_SECRETS` is JSON of
what lies under Secrets. Whatever would ask the person is written into the file `STUB_ASKED`.
"""

import os
from pathlib import Path


def ask(what: str) -> None:
    with Path(os.environ["STUB_ASKED"]).open("a") as file:
        file.write(what + "\n")
