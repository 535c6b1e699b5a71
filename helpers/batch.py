"""Run the notebooks one after another: `python -m helpers.batch RUN [--from 03] [-p NAME VALUE]...`."""

import argparse
import ast
import logging
import re
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from tenacity import retry, retry_if_exception_message, stop_after_attempt

from helpers.config import CONFIGS, PRESETS, configure, from_text, refuse_secrets
from helpers.config.fields import names_like
from helpers.core.errors import OURS, RunError, Stopped
from helpers.core.files import on_disk, write_text
from helpers.core.process import run_command
from helpers.core.redact import redact
from helpers.core.run import STAGES, Run, notebook_name
from helpers.mirror.sync import STOP_S, sync_before_end

NOTEBOOKS = Path("notebooks")
# jupyter_client's words: no cell has run
NOT_STARTED = r"Kernel (died before replying|didn't respond)"


def parameters_of(stage: str) -> list[str]:
    """Return the parameter names of a stage's notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(papermill.inspect_notebook(str(NOTEBOOKS / f"{notebook_name(stage)}.ipynb")))


def chosen_stages(first: str | None, only: str | None) -> list[str]:
    """Return the stages to run: a given list such as "01,04", or all stages from a first one such as "03".

    Raises RunError for an unknown number.
    """
    numbers = {f"{i:02d}": stage for i, stage in enumerate(STAGES, 1)}
    first = "01" if first is None else first
    named = [] if only is None else only.split(",")
    for number in [first, *named]:
        if number not in numbers:
            raise RunError(f"there is no notebook {number!r}: give one of {', '.join(numbers)}")
    return [stage for n, stage in numbers.items() if (n in named if named else n >= first)]


def plan_parameters(
    run: str, stages: list[str], given: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Parse and check command-line parameters, and return the parameters of each stage.

    Raises RunError for a parameter that no notebook has, a secret, or a value out of its bounds.
    """
    refuse_secrets({"run": run, **given})
    known = {stage: parameters_of(stage) for stage in STAGES}
    more = _parse_more(given.get("more", "{}"))
    if "run" in given or "run" in more:
        raise RunError("run is the first argument: python -m helpers.batch RUN, and no parameter")
    for name in given:
        theirs = [stage for stage in STAGES if name in known[stage]]
        if not theirs:
            every = set().union(*known.values())
            raise RunError(f"no notebook knows the parameter {name!r}: {names_like(name, every)}")
        if not set(theirs) & set(stages):
            notebooks = " and ".join(map(notebook_name, theirs))
            raise RunError(
                f"parameter {name!r} belongs to a notebook that would not run ({notebooks}): leave it out"
            )
    settings = {stage: {field.name for field in fields(CONFIGS[stage])} for stage in stages}
    for name in more:
        if not any(name in names for names in settings.values()):
            raise RunError(f"more has {name!r}, which no notebook that would run knows")
    planned = {}
    for stage in stages:
        names = [name for name in given if name in known[stage] and name != "more"]
        typed = {name: from_text(CONFIGS[stage], name, given[name]) for name in names}
        mine = {name: value for name, value in more.items() if name in settings[stage]}
        configure(CONFIGS[stage], mine, run=run, **typed)
        planned[stage] = {"run": run, **typed, **({"more": mine} if mine else {})}
    return planned


def _parse_more(text: str) -> dict[str, Any]:
    with suppress(ValueError, SyntaxError):
        if isinstance(more := ast.literal_eval(text), dict):
            return more
    raise RunError(f"more is {text!r}: give a dict such as {{'save_every_steps': 5}}")


def _describe(run: Run, error: papermill.PapermillExecutionError) -> str:
    if error.ename in OURS:
        return error.evalue
    words = " ".join(f"{error.ename}: {error.evalue}".split())
    about = f"python -m helpers.about {run.name}"
    return f"{words}; if that is a bug, report it with what {about} prints"


@retry(
    retry=retry_if_exception_message(match=NOT_STARTED), stop=stop_after_attempt(3), reraise=True
)
def _run_notebook(stage: str, target: Path, parameters: dict[str, Any]) -> None:
    # tried again if the kernel does not start, for example since a port is taken
    papermill.execute_notebook(
        str(NOTEBOOKS / f"{notebook_name(stage)}.ipynb"),
        str(target),
        parameters,
        progress_bar=False,
        kernel_name="python3",
        iopub_timeout=60,  # on a busy machine, output may take longer than its default of 4 s
        # a kernel warns about its own loopback socket
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )


def execute(run: Run, stage: str, parameters: dict[str, Any]) -> float:
    """Run a notebook, write the executed copy to the run folder, and return the seconds taken.

    Raises RunError with the notebook's error in one line.
    """
    began = time.perf_counter()
    target = run.notebook(stage)
    try:
        with on_disk("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _run_notebook(stage, target, parameters)
    except papermill.PapermillExecutionError as error:
        words = f"{notebook_name(stage)} stopped: {_describe(run, error)} (see {target})"
        raise RunError(words) from None
    except DeadKernelError:
        raise RunError(
            f"{notebook_name(stage)} was killed from outside, most likely out of memory: "
            "what it had done is saved; give the same command again to resume"
        ) from None
    except RuntimeError as error:
        if not re.match(NOT_STARTED, str(error)):
            raise
        raise RunError(
            f"{notebook_name(stage)} did not start: {error}; see why with python -m ipykernel"
        ) from None
    finally:
        _redact_copy(target)
    return time.perf_counter() - began


def _redact_copy(target: Path) -> None:
    # the kernel redacts no output before Setup has run
    text = target.read_text(encoding="utf-8") if target.is_file() else ""
    if redact(text) != text:
        write_text(target, redact(text))


def outcome(run: Run, stage: str) -> str:
    """Return the last text that an executed notebook printed, or "" if it printed none."""
    cells = nbformat.read(run.notebook(stage), as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    printed = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    return printed[-1].strip() if printed else ""


def walk(run: Run, planned: dict[str, dict[str, Any]]) -> None:
    """Run the planned notebooks in order, and print a line before and after each.

    After a stop or an error the run is synced here, since the kernel had no time for it.
    """
    try:
        for number, (stage, parameters) in enumerate(planned.items(), 1):
            print(f"[{number}/{len(planned)}] {notebook_name(stage)} ...", flush=True)
            seconds = execute(run, stage, parameters)
            print(f"      {seconds:.0f} s: {outcome(run, stage)}", flush=True)
    except (RunError, Stopped) as error:
        if words := sync_before_end(run, STOP_S if isinstance(error, Stopped) else None):
            print(words, file=sys.stderr)
        raise


def read_command(
    arguments: list[str] | None = None,
) -> tuple[Run, dict[str, dict[str, Any]]]:
    """Return a command line's run, and the parameters of each stage to run. Raises what plan_parameters raises."""
    words = __doc__.split(":")[0]
    parser = argparse.ArgumentParser(prog="python -m helpers.batch", description=words)
    parser.add_argument("run", help="the run's name; its folder is runs/RUN")
    parser.add_argument("--from", dest="first", metavar="03", help="start with this notebook")
    parser.add_argument("--only", metavar="01,04", help="run only these notebooks")
    parser.add_argument("--preset", help=f"of 04_train: {', '.join(PRESETS)}")
    parser.add_argument(
        "-p", nargs=2, action="append", metavar=("NAME", "VALUE"), help="a notebook's parameter"
    )
    args = parser.parse_args(arguments)
    given = dict(args.p or []) | ({"preset": args.preset} if args.preset else {})
    stages = chosen_stages(args.first, args.only)
    return Run(args.run), plan_parameters(args.run, stages, given)


def main() -> None:
    walk(*read_command())


def stop(number: int, _frame: object) -> None:
    """Raise Stopped when a signal arrives. Papermill then interrupts the kernel, and a training saves its state."""
    raise Stopped("stopped; what was done is saved: give the same command again to resume", number)


if __name__ == "__main__":
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of nbclient's task after a stop
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    run_command(main)
