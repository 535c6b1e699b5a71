"""Prepare a process at its start: redact secrets in all output, and silence needless library messages."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from helpers.core.errors import RunError, Stopped
from helpers.core.redact import install

QUIET = ("bitsandbytes", "xformers")  # both warn at import; host/device.py reports what cannot run
PIPELINE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
KNOWN = {  # messages of libraries, by logger, that a line of ours reports, or that are as intended
    PIPELINE: (
        "The following part of your input",
        "You have disabled the safety checker",  # to read a model back
    ),
    "diffusers.pipelines.stable_diffusion.safety_checker": ("Potential NSFW content",),
    "transformers.tokenization_utils_base": ("Token indices sequence length is longer",),
    "diffusers.loaders.lora_base": ("No LoRA keys associated to",),  # text encoder not trained
    "diffusers.models.modeling_utils": ("should be kept in float32: []",),
}


def prepare_process() -> None:
    """Redact secrets in this process's output, and silence needless library messages. Call this before all else."""
    # transformers warns at import of image processors that want torchvision, which nothing here uses
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # datasets reports each loading of a folder, even a local one, to a counter on the network
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.ERROR)
    for logger in KNOWN:
        logging.getLogger(logger).addFilter(_is_news)  # the same filter is added once
    install()
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.set_custom_exc((NameError,), _show_name_error)


def _show_name_error(
    shell: Any, kind: type, error: NameError, trace: TracebackType, tb_offset: int | None = None
) -> None:
    *_, (frame, _) = traceback.walk_tb(trace)
    if frame.f_globals is shell.user_ns:  # in a module it is a fault of ours
        line = f"{kind.__name__}: {error}: run the cells above first, in their order; a text of yours wants quotes"
        # IPython prints these lines instead of a traceback
        error._render_traceback_ = lambda: [line]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(words in message for words in KNOWN[record.name])


def run_command(main: Callable[[], None]) -> None:
    """Run a command, and print a RunError or Stopped as one line. After a signal, exit with 128 + signal number."""
    prepare_process()
    try:
        main()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except RunError as error:
        sys.exit(f"error: {error}")
