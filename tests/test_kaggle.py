"""The notebooks on Kaggle: an image that says it is Colab's, its Secrets on loopback, outputs that are read-only."""

# ruff: noqa: F401, F811  (fixtures of another file)
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers.config import TrainConfig, configure
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.host.interface import FOLDER
from helpers.train.trainer import train
from tests.conftest import ROOT, SMALL_TRAINING, lines
from tests.test_starts import FEW, STUB, colab, new_machine, opened, origin, read, setup_cell
from tests.test_train import same, weights

OTHER = {"Kaggle": re.compile("colab|google|drive", re.I), "Colab": re.compile("kaggle", re.I)}
STATUS = {"SHUT": 401, "FORBIDDEN": 403, "BROKEN": 500}


class Secrets(BaseHTTPRequestHandler):
    """Kaggle's Secrets: one that is attached, one that is not, three statuses, and one that never answers."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        label = asked["Label"]
        if label == "SLOW":
            self.server.over.wait()
            return
        self.send_response(STATUS.get(label, 200))
        self.end_headers()
        found = label == "KEY" and asked["JWE"] == "a-token"
        answer = {"wasSuccessful": found, "result": {"secret": "open sesame"}}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(tmp_path, origin, colab, monkeypatch):
    """A new machine of Kaggle, in an image that has all of Colab's; `kaggle/input` is what is attached."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Secrets)
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = {
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
        "KAGGLE_USER_SECRETS_TOKEN": "a-token",
        "KAGGLE_URL_BASE": f"http://127.0.0.1:{server.server_port}",
        "PYTHONPATH": f"{STUB}:{ROOT / 'tests/stub_kaggle'}",
        "STUB_KAGGLE": str(tmp_path / "kaggle"),
        "STUB_TIMEOUT_S": "0.2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "kaggle/input").mkdir(parents=True)
    new_session(tmp_path)
    yield tmp_path
    server.over.set()
    server.shutdown()


def new_session(machine):
    for name in ("working", "temp"):
        shutil.rmtree(machine / "kaggle" / name, ignore_errors=True)
    (machine / "kaggle/working").mkdir()


def attach_output(machine, place):
    """Save a version, attach its output, read-only, under `place`, and begin a new session."""
    target = machine / "kaggle/input" / place
    shutil.copytree(machine / "kaggle/working", target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    new_session(machine)


def contents(folder):
    """What lies there, to be compared: a test that runs as root may write where it should not."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def by_hand(notebook, machine, where="kaggle/working", host="Kaggle"):
    """Run every cell; return what all printed, which speaks of no other host."""
    link(machine / where, machine)
    done, printed = opened(notebook, machine)
    (machine / "content").unlink()
    assert done.returncode == 0, done.stderr
    said = "\n".join([*printed, done.stderr])
    assert_speaks_of(said, machine, host)
    return said


def assert_speaks_of(said, machine, host):
    for place in (str(machine), str(ROOT)):
        said = said.replace(place, "")
    assert not OTHER[host].search(said), OTHER[host].search(said)


def link(folder, machine):
    """Have the machine's folder of work be `folder`."""
    place = machine / "content"
    place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(folder)


def in_batch(notebook, machine, monkeypatch):
    """Save & Run All; return what was printed."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    nbformat.write(notebook, machine / "saved.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", machine / "saved.ipynb"]
    done = subprocess.run(
        [*command, machine / "done.ipynb"],
        cwd=machine / "kaggle/working",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    cells = [c for c in nbformat.read(machine / "done.ipynb", 4).cells if c.cell_type == "code"]
    said = "\n".join(o.get("text", "") for cell in cells for o in cell.outputs)
    assert_speaks_of(said, machine, "Kaggle")
    return said


def test_setup_knows_kaggle_by_its_run_type_and_clones_outside_what_is_kept(kaggle):
    cells = [nbformat.v4.new_code_cell(setup_cell(read("01")).source) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    said = by_hand(notebook, kaggle)
    for word in ("installed", "runtime", "machine", "mirror", "session", "secrets", "next"):
        assert re.search(f"^{word} ", said, re.M), said
    assert f"runs are mirrored to {kaggle}/kaggle/working/{FOLDER}" in said
    assert (kaggle / "kaggle/temp/annalaura-diffusion/helpers").is_dir()
    assert not [*(kaggle / "kaggle/working").iterdir()] and not (kaggle / "asked").exists()


def test_without_internet_the_first_cell_asks_for_it(kaggle, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{kaggle}/nothing.insteadOf")
    link(kaggle / "kaggle/working", kaggle)
    done, [said] = opened(nbformat.v4.new_notebook(cells=[setup_cell(read("01"))]), kaggle)
    assert done.returncode and "is the Internet switched on for this notebook?" in said


SECRET = """
from helpers.core.process import prepare_process
prepare_process()
from helpers.core.errors import RunError
from helpers.core.redact import redact
from helpers.host.here import secret
for name in {names}:
    try:
        print(redact(secret(name)))
    except RunError as error:
        print(error)
"""


def test_each_answer_of_kaggles_secrets_is_told_in_a_line(kaggle, monkeypatch):
    by_hand(nbformat.v4.new_notebook(cells=[setup_cell(read("01"))]), kaggle)
    names = ["KEY", "NONE", *STATUS, "SLOW"]
    code = SECRET.format(names=names)
    here = kaggle / "kaggle/temp/annalaura-diffusion"
    ask = [sys.executable, "-c", code]  # a shell has them as well
    done = subprocess.run(ask, cwd=here, capture_output=True, text=True)
    said = dict(zip(names, done.stdout.splitlines(), strict=True))
    assert said["KEY"] == "[KEY]" and "open sesame" not in done.stdout + done.stderr
    assert said["NONE"].startswith("NONE is not set: attach it to this notebook under *Add-ons*")
    for name in ("SHUT", "FORBIDDEN"):
        assert said[name].startswith(f"{name} is not open to this notebook: attach it")
    assert "did not answer (HTTP 500)" in said["BROKEN"] and "*Internet*" in said["BROKEN"]
    assert "did not answer" in said["SLOW"] and "HTTP" not in said["SLOW"]
    monkeypatch.setenv("BROKEN", "by-hand")
    monkeypatch.delenv("KAGGLE_USER_SECRETS_TOKEN")
    done = subprocess.run(ask, cwd=here, capture_output=True, text=True)
    said = dict(zip(names, done.stdout.splitlines(), strict=True))
    assert said["BROKEN"] == "by-hand"  # the environment goes first
    assert "did not answer (CredentialError)" in said["KEY"]


SMALL = {
    "preview_every_steps": 1000,
    "validate_every_steps": 20,
    "save_every_steps": 3,
    "validation_pairs": 16,
    "num_inference_steps": 2,
    "prior_share": 0.0,
}


def stopped_after_a_checkpoint(notebook, machine, where, kept):
    """Run a notebook until `kept` holds a new checkpoint, and take the machine away."""
    before = {*kept.glob("checkpoints/step-*/manifest.json")}
    link(machine / where, machine)
    nbformat.write(notebook, machine / "opened.ipynb")
    command = [sys.executable, STUB / "jupyter-server", machine / "opened.ipynb"]
    child = subprocess.Popen([*command, machine / "content"], stderr=subprocess.PIPE)
    while not {*kept.glob("checkpoints/step-*/manifest.json")} - before:
        assert child.poll() is None, child.stderr.read().decode()
        threading.Event().wait(0.02)
    for process in [*psutil.Process(child.pid).children(recursive=True), child]:
        process.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    (machine / "content").unlink()


def test_a_run_goes_from_kaggle_to_colab_and_back_and_ends_as_if_undisturbed(
    kaggle, pictures, tiny_base, monkeypatch
):
    typed = {"run": "mine", "base_model": str(tiny_base), "max_steps": 160, "more": SMALL}
    typed |= {"train_batch_size": 2, "resolution_px": 32}
    machine, working = kaggle, kaggle / "kaggle/working"
    first = {"source": "folder", "folder": str(pictures), "run": "mine"}
    by_hand(read("01", **first), machine)
    attach_output(machine, "scraped")
    assert "files restored" in in_batch(read("02", run="mine"), machine, monkeypatch)
    attach_output(machine, "notebooks/me/captioned")
    by_hand(read("03", run="mine", min_side_px=32), machine)
    attach_output(machine, "datasets/me/uploaded")
    stopped_after_a_checkpoint(
        read("04", **typed), machine, "kaggle/working", working / FOLDER / "mine"
    )
    assert not (working / FOLDER / "mine/cache").exists()

    cloud = machine / "cloud" / FOLDER / "mine"  # the output, downloaded and put on Drive
    shutil.copytree(working / FOLDER / "mine", cloud)
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_USER_SECRETS_TOKEN", "STUB_KAGGLE"):
        monkeypatch.delenv(name)
    (machine / "colab").mkdir()
    monkeypatch.setenv("STUB_MOUNT", str(machine / "colab/drive"))
    stopped_after_a_checkpoint(read("04", **typed), machine, "colab", cloud)
    assert (machine / "asked").read_text() == "drive\n"

    monkeypatch.setenv("KAGGLE_USER_SECRETS_TOKEN", "a-token")
    monkeypatch.setenv("STUB_KAGGLE", str(machine / "kaggle"))
    new_session(machine)
    shutil.copytree(
        cloud, working / FOLDER / "mine"
    )  # and uploaded again, where archives are unpacked
    for archive in (working / FOLDER / "mine/parts").glob("*.tar"):
        shutil.unpack_archive(archive, archive.with_suffix(""), filter="data")
        archive.unlink()
    attach_output(machine, "datasets/me/from-elsewhere")
    attached = contents(machine / "kaggle/input")
    said = in_batch(read("04", **typed), machine, monkeypatch)
    assert "datasets/me/from-elsewhere" in said and "it is the output of this version" in said
    assert contents(machine / "kaggle/input") == attached
    attach_output(machine, "trained")
    run = machine / "kaggle/temp/annalaura-diffusion/runs/mine"
    restored = nbformat.v4.new_notebook(cells=read("05", run="mine").cells[:6])
    by_hand(restored, machine)
    assert [row["step"] for row in lines(run / "train_log.jsonl")] == list(range(161))

    with monkeypatch.context() as patch:
        (machine / "undisturbed/runs/mine").mkdir(parents=True)
        patch.chdir(machine / "undisturbed")
        for name in ("config", "dataset"):
            shutil.copytree(run / name, f"runs/mine/{name}")
        Path("runs/mine/config/train.json").unlink()
        given = {name: value for name, value in typed.items() if name != "more"}
        list(train(configure(TrainConfig, SMALL, **given), Run("mine")))
        here = weights(Run("mine"))
        patch.chdir(machine / "kaggle/temp/annalaura-diffusion")
        assert same(here, weights(Run("mine")))

    shutil.rmtree(cloud)  # and once more to Drive, whose words are all that is told there
    shutil.copytree(machine / "kaggle/input/trained" / FOLDER / "mine", cloud)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    for number, given in (("03", {"min_side_px": 32}), ("05", {"more": {"judged_samples": 8}})):
        by_hand(read(number, run="mine", **given), machine, "colab", "Colab")
    assert "<html" in (cloud / "report.html").read_text()


def test_what_was_taken_down_stays_away_though_an_attached_output_has_it(kaggle):
    by_hand(read("01", run="mine", more=FEW), kaggle)
    attach_output(kaggle, "scraped")
    by_hand(nbformat.v4.new_notebook(cells=read("02", run="mine").cells[:7]), kaggle)
    here = kaggle / "kaggle/temp/annalaura-diffusion"
    post = lines(here / "runs/mine/posts.jsonl")[0]["shortcode"]
    take = [sys.executable, "-m", "helpers.dataset.takedown", "mine", post]
    done = subprocess.run(take, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0 and "saved versions keep it" in done.stdout, (
        done.stdout + done.stderr
    )
    code = "from helpers.core.run import Run; from helpers.mirror.sync import restore; print(restore(Run('mine')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert "files restored" in done.stdout, done.stderr
    assert not [*(here / "runs/mine/images").glob(f"{post}_*")]
    assert len([*(here / "runs/mine/images").glob("*.*")]) > 0


def push(machine, *arguments, **options):
    """The notebook that tools/kaggle_batch.py writes, and its metadata."""
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "tools.kaggle_batch", "me", "my_run", *arguments, *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        environment.pop(name, None)
    at_home = machine / "home"
    if not at_home.exists():
        at_home.mkdir()
        (at_home / "notebooks").symlink_to(ROOT / "notebooks")
    done = subprocess.run(command, cwd=at_home, env=environment, capture_output=True, text=True)
    folder = at_home / "build/kaggle/my_run"
    return done, folder


def test_a_pushed_batch_walks_all_five_and_its_output_goes_on(kaggle, monkeypatch):
    done, folder = push(kaggle, "--only", "01,02,03", "-p", "more", str(FEW))
    assert done.returncode == 0 and "kaggle kernels push -p build/kaggle/my_run" in done.stdout
    about = json.loads((folder / "kernel-metadata.json").read_text())
    assert about["id"] == "me/annalaura-my-run" and about["title"] == "annalaura-my-run"
    assert about["is_private"] and about["enable_internet"] and about["enable_gpu"]
    said = in_batch(nbformat.read(folder / about["code_file"], 4), kaggle, monkeypatch)
    assert "[3/3] 03_dataset" in said and "installed  nothing: all is there" in said
    attach_output(kaggle, "annalaura-my-run")
    typed = ["-p", "more", str(SMALL | {"judged_samples": 8}), "-p", "max_steps", "4"]
    done, folder = push(kaggle, "--from", "04", *typed, earlier="me/annalaura-my-run")
    assert done.returncode == 0, done.stderr
    about = json.loads((folder / "kernel-metadata.json").read_text())
    assert about["kernel_sources"] == ["me/annalaura-my-run"]
    said = in_batch(nbformat.read(folder / about["code_file"], 4), kaggle, monkeypatch)
    assert "report.html" in said
    kept = kaggle / "kaggle/working" / FOLDER / "my_run"
    assert "<html" in (kept / "report.html").read_text()  # to be opened in the list of outputs
    assert find_corruption(kept / "model") is None and find_corruption(kept / "export") is None
    for path in (kaggle / "kaggle/temp/annalaura-diffusion/runs/my_run/notebooks").glob("*.ipynb"):
        assert_speaks_of(printed_by(path), kaggle, "Kaggle")


def printed_by(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    return "\n".join(o.get("text", "") for cell in cells for o in cell.outputs)


def test_a_batch_that_would_be_refused_is_not_written(kaggle):
    for words, why in (
        (["-p", "max_stepps", "4"], "no notebook knows the parameter 'max_stepps'"),
        (["-p", "folder", "sk-ant-" + "a" * 40], "secret"),
    ):
        done, folder = push(kaggle, *words)
        assert done.returncode == 1 and why in done.stderr and not folder.exists()


def test_a_batch_that_fails_fails_its_notebook_and_one_that_is_stopped_in_time_does_not(kaggle):
    for hours, arguments, status, words in (
        ("11.5", ["--only", "02"], 1, "status 1"),
        ("0.0001", [], 0, "stopped in time and saved"),
    ):
        done, folder = push(kaggle, *arguments, hours=hours)
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", folder / "batch.ipynb"]
        done = subprocess.run(
            [*command, kaggle / "out.ipynb"],
            cwd=kaggle / "kaggle/working",
            env=os.environ | {"KAGGLE_KERNEL_RUN_TYPE": "Batch"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert words in printed_by(kaggle / "out.ipynb") + done.stderr
