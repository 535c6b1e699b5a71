import json
import re
import subprocess
import sys

import pytest

from helpers.batch import chosen_stages, main, plan_parameters
from helpers.core.errors import RunError


def batch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "helpers.batch", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x", "-p", "nonsense", 1), "no notebook knows the parameter 'nonsense'"),
        (("x", "-p", "max_step", 5), "parameter 'max_step': did you mean max_steps"),
        (("x", "-p", "max_steps", 0), "max_steps is 0: give a number from 1"),
        (("x", "-p", "max_steps", "soon"), "max_steps is 'soon'"),
        (("x", "-p", "more", "{'no_such_field': 1}"), "more has 'no_such_field'"),
        (("x", "--only", "01", "-p", "max_steps", 5), "would not run (04_train): leave it out"),
        (("x", "--from", "07"), "there is no notebook '07'"),
        (("x", "--preset", "tpu"), "preset is 'tpu': choose one of demo"),
        (("../x",), "run is '../x'"),
        (("x", "--only", ""), "there is no notebook ''"),
        (("x", "--from", ""), "there is no notebook ''"),
        (("x", "-p", "run", "y"), "run is the first argument"),
        (("x", "-p", "more", "{'run': 'y'}"), "run is the first argument"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_runs(
    workplace, monkeypatch, arguments, words
):
    monkeypatch.setattr(sys, "argv", ["batch", *map(str, arguments)])
    with pytest.raises(RunError, match=re.escape(words)) as refused:
        main()
    assert "\n" not in str(refused.value)
    assert not (workplace / "runs").exists()


def test_a_mistake_is_one_line_and_a_status(workplace):
    done = batch("x", "-p", "nonsense", 1)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_notebook_before_its_predecessor_says_which_to_run(workplace):
    done = batch("x", "--only", "03")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "runs/x/posts.jsonl is missing: run 01_scrape with run='x' first" in last
    assert "Traceback" not in done.stderr


def test_what_a_notebook_left_that_failed_is_mirrored(workplace, monkeypatch):
    monkeypatch.setenv("RUNS_MIRROR", str(workplace / "mirror"))
    (workplace / "runs/x").mkdir(parents=True)
    (workplace / "runs/x/posts.jsonl").write_text("no post\n")
    done = batch("x", "--only", "02")
    kept, last = done.stderr.strip().splitlines()[-2:]
    assert "runs/x is kept on" in kept and "posts.jsonl line 1 is not a Post" in last


TAKES_A_PORT = """
import json, pathlib, socket, sys
mark, connection = map(pathlib.Path, sys.argv[1:3])
if not mark.exists():
    mark.touch()
    taken = socket.create_server(("127.0.0.1", json.loads(connection.read_text())["shell_port"]))
from ipykernel.kernelapp import IPKernelApp
IPKernelApp.launch_instance(["-f", str(connection), "--log-level=CRITICAL"])
"""


@pytest.fixture
def kernel(workplace, monkeypatch):
    def installed(code):
        spec = workplace / "jupyter/kernels/python3/kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, "-c", code, str(workplace / "mark"), "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "a", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(workplace / "jupyter"))

    return installed


def test_a_kernel_whose_port_another_program_took_is_started_again(workplace, kernel):
    kernel(TAKES_A_PORT)
    done = batch("x", "--only", "01", "-p", "more", {"demo_posts": 4})
    assert "already in use" in done.stderr and done.returncode == 0, done.stderr
    assert (workplace / "runs/x/posts.jsonl").exists()


def test_a_kernel_that_never_starts_is_one_line(kernel):
    kernel("raise SystemExit(1)")
    done = batch("x", "--only", "01")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [*_, last] = done.stderr.splitlines()
    assert last.startswith("error: 01_scrape did not start: Kernel died before replying")


def test_stages_are_chosen_by_number():
    assert chosen_stages("03", None) == ["dataset", "train", "inference"]
    assert chosen_stages(None, "01,04") == ["scrape", "train"]


def test_a_parameter_goes_to_the_notebooks_that_know_it(workplace):
    planned = plan_parameters("x", ["dataset", "train"], {"seed": "3", "suffix": " in oil"})
    assert planned["dataset"] == {"run": "x", "seed": 3, "suffix": " in oil"}
    assert planned["train"] == {"run": "x", "seed": 3}


def test_more_goes_to_the_only_notebook_that_knows_its_fields(workplace):
    planned = plan_parameters("x", ["dataset", "train"], {"more": "{'save_every_steps': 5}"})
    assert planned["train"]["more"] == {"save_every_steps": 5} and "more" not in planned["dataset"]
    with pytest.raises(RunError, match="more has 'colour', which no notebook that would run knows"):
        plan_parameters("x", ["dataset", "train"], {"more": "{'colour': 5}"})
