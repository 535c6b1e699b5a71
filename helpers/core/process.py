"""What a process of this project asks for when it begins: secrets kept out of what it shows, and libraries quiet."""

import logging
import os
import sys
from collections.abc import Callable

from helpers.core.errors import RunError, Stopped
from helpers.core.redact import install

QUIET = (  # both warn at import of what does not run here; host/device.py tells of what was to be used
    "bitsandbytes",
    "xformers",
)


def prepare_process() -> None:
    """Redact what this process shows, and have libraries say no more than helps; twice is as once.

    Called by Setup in a notebook, and by every command, before anything else is loaded.
    """
    # transformers warns at import of image processors that want torchvision, which nothing here uses
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # datasets reports each loading of a folder, even a local one, to a counter on the network
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.ERROR)
    install()


def run_command(main: Callable[[], None]) -> None:
    """Run a command; an error or a stop is one line and an exit code, a signal's as a shell has it."""
    prepare_process()
    try:
        main()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except RunError as error:
        sys.exit(f"error: {error}")
