"""The notebooks on Kaggle: an image that says it is Colab's, its Secrets on loopback, outputs that are read-only."""

# ruff: noqa: F401, F811  (fixtures of another file)
import json
import os
import re
import shlex
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
from safetensors.torch import load_file

from helpers.config import TrainConfig, configure
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.host.interface import FOLDER
from helpers.scrape.api_token import SECRET
from helpers.train.trainer import train
from tests.conftest import ROOT, SMALL_TRAINING, lines
from tests.loopback_graph import TOKEN, Graph
from tests.test_instagram_api import assert_no_canary, assert_whole
from tests.test_starts import FEW, STUB, bare, colab, opened, origin, read, setup_cell, shown
from tests.test_train import same

OTHER = {"Kaggle": re.compile("colab|google|drive", re.I), "Colab": re.compile("kaggle", re.I)}
STATUS = {"SHUT": 401, "FORBIDDEN": 403, "BROKEN": 500}


class Secrets(BaseHTTPRequestHandler):
    """Kaggle's Secrets: `values` that are attached, others that are not, three statuses, and one that never answers."""

    values = {"KEY": "open sesame"}

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        label = asked["Label"]
        if label == "SLOW":
            self.server.over.wait()
            return
        self.send_response(STATUS.get(label, 200))
        self.end_headers()
        found = label in self.values and asked["JWE"] == "a-token"
        answer = {"wasSuccessful": found, "result": {"secret": self.values.get(label)}}
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
    """Run every cell; return all that they show, which speaks of no other host."""
    link(machine / where, machine)
    done, _ = opened(notebook, machine)
    (machine / "content").unlink()
    assert done.returncode == 0, done.stderr
    said = shown(machine / "opened.ipynb") + done.stderr
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


def in_batch(notebook, machine):
    """Save & Run All; return all that the saved version shows."""
    done = subprocess.run(**saved(notebook, machine), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = shown(machine / "done.ipynb")
    assert_speaks_of(said, machine, "Kaggle")
    return said


def saved(notebook, machine):
    """What runs a notebook as a saved version."""
    nbformat.write(notebook, machine / "saved.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", machine / "saved.ipynb"]
    return {
        "args": [*command, machine / "done.ipynb"],
        "cwd": machine / "kaggle/working",
        "env": os.environ | {"KAGGLE_KERNEL_RUN_TYPE": "Batch"},
    }


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


ASK = """
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
    code = ASK.format(names=names)
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
    "prior_share": 0.0,
}
STEPS = 240
WALK = {
    "01": {"source": "folder", "run": "mine"},
    "02": {"run": "mine"},
    "03": {"run": "mine", "min_side_px": 32},
    "04": {
        "run": "mine",
        "max_steps": STEPS,
        "train_batch_size": 2,
        "resolution_px": 32,
        "more": SMALL | {"num_inference_steps": 2},
    },
    "05": {"run": "mine", "num_inference_steps": 2, "more": {"judged_samples": 8}},
}


def opened_by_hand(notebook, machine, where):
    link(machine / where, machine)
    nbformat.write(notebook, machine / "opened.ipynb")
    command = [sys.executable, STUB / "jupyter-server", machine / "opened.ipynb"]
    return {"args": [*command, machine / "content"]}


def killed_after_a_checkpoint(begin, kept):
    """Begin a notebook, and take its machine away once `kept` holds a new checkpoint; return that step."""
    before = steps_in(kept)
    child = subprocess.Popen(**begin, stderr=subprocess.PIPE)
    while not steps_in(kept) - before:
        assert child.poll() is None, child.stderr.read().decode()
        threading.Event().wait(0.02)
    for process in [*psutil.Process(child.pid).children(recursive=True), child]:
        process.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    return max(steps_in(kept))


def steps_in(kept):
    return {int(p.parent.name[5:]) for p in kept.glob("checkpoints/step-*/manifest.json")}


def as_undisturbed(folder, typed, base):
    """The run `mine` as a plain machine walks it in one go; its folder."""
    for name in ("helpers", "notebooks", "assets"):
        (folder / name).symlink_to(ROOT / name)
    for number, given in typed.items():
        nbformat.write(read(number, **given), folder / f"{number}.ipynb")
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"{number}.ipynb", "-"]
        alone = {n: v for n, v in os.environ.items() if not n.startswith(("KAGGLE", "COLAB"))}
        alone.pop("PYTHONPATH")
        done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "runs/mine"


def assert_same_run(here, there, steps=STEPS):
    """Down to the bits: texts, losses and weights."""
    first, second = (
        [(row["step"], row.get("loss")) for row in lines(run / "train_log.jsonl")]
        for run in (here, there)
    )
    assert first == second and [step for step, _ in first] == list(range(steps + 1))
    for name in ("train/metadata.csv", "validation/metadata.csv"):
        assert (here / "dataset" / name).read_bytes() == (there / "dataset" / name).read_bytes()
    name = "model/unet/diffusion_pytorch_model.safetensors"
    assert same(load_file(here / name), load_file(there / name))


@pytest.mark.soak
@pytest.mark.parametrize("way", ["by hand", "in a batch"])
def test_a_run_goes_from_kaggle_to_colab_and_back_and_ends_as_if_undisturbed(
    kaggle, pictures, tiny_base, monkeypatch, way
):
    typed = {number: dict(given) for number, given in WALK.items()}
    typed["01"]["folder"], typed["04"]["base_model"] = str(pictures), str(tiny_base)
    machine, working = kaggle, kaggle / "kaggle/working"
    kept, cloud = (place / FOLDER / "mine" for place in (working, machine / "cloud"))
    attached = machine / "kaggle/input"

    def walk(number):
        before, notebook = contents(attached), read(number, **typed[number])
        said = (by_hand if way == "by hand" else in_batch)(notebook, machine)
        assert contents(attached) == before
        assert "is kept on" in said and number == "01" or "files restored, " in said
        return said

    def stop(place, on):
        notebook = read("04", **typed["04"])
        if way == "by hand" or place != "kaggle/working":
            return killed_after_a_checkpoint(opened_by_hand(notebook, machine, place), on)
        return killed_after_a_checkpoint(saved(notebook, machine), on)

    walk("01")
    attach_output(machine, "scraped")  # as outputs lay once
    walk("02")
    attach_output(machine, "notebooks/me/captioned")  # as they lie now
    walk("03")
    attach_output(machine, "notebooks/me/built")
    first = stop("kaggle/working", kept)
    assert 0 < first < STEPS and not (kept / "cache").exists()
    attach_output(machine, "notebooks/me/stopped")
    second = stop("kaggle/working", kept)
    assert first < second < STEPS

    shutil.copytree(kept, cloud)  # the output, downloaded and put on Drive
    with monkeypatch.context() as on_colab:
        leave_kaggle(on_colab, machine)
        third = stop("colab", cloud)
    assert second < third < STEPS and (machine / "asked").read_text() == "drive\n"

    new_session(machine)
    shutil.copytree(cloud, kept)  # and uploaded, which unpacks archives
    for archive in (kept / "parts").glob("*.tar"):
        shutil.unpack_archive(archive, archive.with_suffix(""), filter="data")
        archive.unlink()
    attach_output(machine, "datasets/me/from-elsewhere")
    said = walk("04")
    assert "datasets/me/from-elsewhere" in said
    assert ("it is the output of this version" in said) == (way == "in a batch")
    attach_output(machine, "notebooks/me/trained")
    walk("05")
    assert_speaks_of((kept / "report.html").read_text(), machine, "Kaggle")

    here = machine / "kaggle/temp/annalaura-diffusion/runs/mine"
    (machine / "undisturbed").mkdir()
    there = as_undisturbed(machine / "undisturbed", typed, tiny_base)
    assert_same_run(here, there)

    shutil.rmtree(cloud)  # and once more to Drive
    shutil.copytree(attached / "notebooks/me/trained" / FOLDER / "mine", cloud)
    with monkeypatch.context() as on_colab:
        leave_kaggle(on_colab, machine)
        for number in ("03", "04", "05"):
            by_hand(read(number, **typed[number]), machine, "colab", "Colab")
    assert_speaks_of((cloud / "report.html").read_text(), machine, "Colab")


def leave_kaggle(monkeypatch, machine):
    """From here on the machine is one of Colab, whose work lies in `colab`."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_USER_SECRETS_TOKEN", "STUB_KAGGLE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("STUB_MOUNT", str(machine / "colab/drive"))
    (machine / "colab").mkdir(exist_ok=True)


@pytest.mark.soak
def test_all_five_by_hand_in_a_browser(kaggle, pictures, tiny_base, monkeypatch):
    """Each in a session of its own, with what the last one left attached."""
    walk = pytest.importorskip("tests.browser.walk", reason="no playwright: see make browser")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no chromium")
    typed = {number: dict(given) for number, given in WALK.items()}
    typed["01"]["folder"], typed["04"]["base_model"] = str(pictures), str(tiny_base)
    typed["04"]["max_steps"] = 40
    monkeypatch.chdir(kaggle / "kaggle")
    monkeypatch.setattr(walk, "OUT", kaggle / "seen")
    with walk.jupyterlab(chromium, {"width": 1280, "height": 1000}) as (page, tree):
        for number, given in typed.items():
            path = Path("working", f"{number}.ipynb")
            nbformat.write(read(number, **given), path)
            walk.run_notebook(page, f"{tree}/{path}?reset", 900)
            if number == "05":
                walk.draw_in_the_prompt_box(page)
            walk.picture_of(page, number)
            page.evaluate("jupyterapp.commands.execute('docmanager:save')")
            page.evaluate("jupyterapp.commands.execute('kernelmenu:shutdown')")
            assert_speaks_of(shown(path), kaggle, "Kaggle")
            path.unlink()
            attach_output(kaggle, f"notebooks/me/{number}")
    kept = kaggle / "kaggle/input/notebooks/me/05" / FOLDER / "mine"
    assert "<html" in (kept / "report.html").read_text()


@pytest.mark.soak
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


@pytest.fixture
def ask(kaggle, origin):
    """Run a line of Python where the project is on Kaggle; return what it prints."""
    given = (
        "from helpers.core.errors import RunError",
        "from helpers.config import *",
        "from helpers.core.run import Run",
        "from helpers.mirror.sync import restore, sync",
        "from helpers.scrape.ingest import ingest, list_items",
        "from helpers.train.trainer import train",
    )

    def run(code, **more):
        (kaggle / "kaggle/temp").mkdir(exist_ok=True)
        lines_of_it = [*given, "try:", f"    {code}", "except RunError as error: print(error)"]
        path = f"{origin}:{os.environ['PYTHONPATH']}:{ROOT}"
        environment = {**os.environ, "PYTHONPATH": path, **more}
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines_of_it)],
            cwd=kaggle / "kaggle/temp",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.soak
def test_a_training_goes_from_kaggle_to_a_drive_and_back_to_the_same_bits(
    kaggle, ask, pictures, tiny_base, monkeypatch
):
    """The short one; by the notebooks themselves in `make soak`."""
    drive = kaggle / "content/drive/MyDrive"  # mounted
    kept, cloud = kaggle / "kaggle/working" / FOLDER / "mine", drive / FOLDER / "mine"
    given = SMALL_TRAINING | {"run": "mine", "base_model": str(tiny_base), "max_steps": 12}
    make = f"from tests.conftest import *; make_dataset('mine', Path({str(pictures)!r})); print(sync(Run('mine')))"
    goes_on = "from tests.conftest import *; r = Run('mine'); print(restore(r)); "
    goes_on += f"c = configure(TrainConfig, {given}); TRAINS; print(sync(r))"
    ask(make)
    attach_output(kaggle, "notebooks/me/built")
    assert "up to step 2," in ask(goes_on.replace("TRAINS", "train_until(c, r, 3)"))
    shutil.copytree(kept, cloud)
    with monkeypatch.context() as on_colab:
        on_colab.delenv("KAGGLE_KERNEL_RUN_TYPE")
        new_session(kaggle)
        said = ask(goes_on.replace("TRAINS", "train_until(c, r, 7)"))
    assert "is kept on Google Drive, up to step 6," in said
    new_session(kaggle)
    shutil.copytree(cloud, kept)
    attach_output(kaggle, "datasets/me/from-drive")
    said = ask(goes_on.replace("TRAINS", "list(train(c, r))"))
    assert f"from {kaggle}/kaggle/input/datasets/me/from-drive" in said and "up to step 12," in said
    here = kaggle / "kaggle/temp/runs/mine"
    there = kaggle / "undisturbed/runs/mine"
    for name in ("config", "dataset"):
        shutil.copytree(here / name, there / name)
    monkeypatch.chdir(kaggle / "undisturbed")
    list(train(configure(TrainConfig, given), Run("mine")))
    assert_same_run(here, there, 12)


SCRAPE = """c = ScrapeConfig(run="{}", source="folder", folder="{}"); r = Run("{}"); print(restore(r)); \
    print(len(list(ingest(c, r, list_items(c, r))))); print(sync(r))"""


def scraped(ask, pictures, run="mine"):
    said = ask(SCRAPE.format(run, pictures, run))
    assert "is kept on" in said, said
    return said


@pytest.mark.soak
def test_a_run_that_is_not_attached_is_told_with_those_that_are(kaggle, ask, pictures):
    said = scraped(ask, pictures)
    assert "0 files restored; if mine was begun in another notebook, *Add Input*" in said
    assert "begun" not in ask('print(restore(Run("mine")))')
    attach_output(kaggle, "notebooks/me/scraped")
    said = ask('print(restore(Run("mime")))')
    assert said.endswith("*Add Input*, *Your Work*, its version (attached: mine)")
    assert "begun" not in ask('print(restore(Run("mine")))')


@pytest.mark.soak
def test_an_attached_output_that_is_not_whole_is_told_and_another_one_completes_it(
    kaggle, ask, pictures
):
    scraped(ask, pictures)
    whole = kaggle / "whole"
    shutil.copytree(kaggle / "kaggle/working", whole)
    shutil.rmtree(kaggle / "kaggle/working" / FOLDER / "mine/parts")
    attach_output(kaggle, "cut-short")
    said = ask('print(restore(Run("mine")))')
    assert "did not verify there (" in said and "cut-short" not in said, said
    shutil.copytree(whole, kaggle / "kaggle/working", dirs_exist_ok=True)
    attach_output(kaggle, "whole")
    said = ask('print(restore(Run("mine")))')
    assert "did not verify" not in said and "input/whole" in said


@pytest.mark.soak
def test_of_two_attached_versions_the_newer_one_counts_whatever_their_names(kaggle, ask, pictures):
    scraped(ask, pictures)
    attach_output(kaggle, "notebooks/me/zzz-first")
    (pictures / "Holiday 03.txt").unlink()
    (pictures / "Holiday 03.JPG").unlink()
    scraped(ask, pictures)
    newer = (kaggle / "kaggle/temp/runs/mine/posts.jsonl").read_text()
    attach_output(kaggle, "aaa-second")
    said = ask('print(restore(Run("mine")))')
    assert "input/aaa-second" in said and "zzz-first" not in said
    assert (kaggle / "kaggle/temp/runs/mine/posts.jsonl").read_text() == newer


@pytest.mark.soak
def test_a_folder_that_is_not_where_one_thought_is_found_by_what_is_attached(kaggle, ask, pictures):
    inputs = kaggle / "kaggle/input"
    listing = 'list_items(ScrapeConfig(run="a", source="{}", folder="{}"), Run("a"))'
    for source in ("folder", "export"):
        assert "nothing is attached: *Add Input*" in ask(listing.format(source, inputs / "my-art"))
    shutil.copytree(pictures, inputs / "datasets/me/my-art")
    (inputs / "old-way").mkdir()
    for source in ("folder", "export"):
        said = ask(listing.format(source, inputs / "my-art"))
        assert said.endswith(f"attached are {inputs}/datasets/me/my-art, {inputs}/old-way"), said
    assert "attached" not in ask(listing.format("folder", "/elsewhere"))
    said = scraped(ask, inputs / "datasets/me/my-art")
    assert "\n12\n" in said


@pytest.mark.parametrize("run_type", ["Interactive", "Batch"])
def test_a_training_longer_than_a_session_says_what_to_do_in_time(ask, run_type):
    said = ask(
        "from helpers.host.here import HOST; print(HOST.if_longer)", KAGGLE_KERNEL_RUN_TYPE=run_type
    )
    assert ("tools/kaggle_batch.py, which stops in time" in said) == (run_type == "Batch")
    assert ("*Save Version* with its output before that" in said) == (run_type != "Batch")


@pytest.mark.soak
def test_04_trains_on_both_gpus_by_the_command_that_it_prints_as_on_one(
    kaggle, pictures, tiny_base, monkeypatch
):
    """The GPUs are two workers on the CPU; a run trained in one process is what there is to equal."""
    by_hand(nbformat.v4.new_notebook(cells=[setup_cell(read("01"))]), kaggle)
    here = kaggle / "kaggle/temp/annalaura-diffusion"
    to_03 = [sys.executable, "-m", "helpers.batch", "mine", "--only", "01,02,03"]
    to_03 += ["-p", "source", "folder", "-p", "folder", pictures, "-p", "min_side_px", "32"]
    subprocess.run(to_03, cwd=here, check=True, capture_output=True)
    typed = WALK["04"] | {"base_model": str(tiny_base), "max_steps": 40}
    typed |= {"gradient_accumulation_steps": 2}
    shutil.copytree(here / "runs/mine", here / "runs/alone")
    alone = typed | {"run": "alone"}
    in_batch(read("04", **alone), kaggle)
    monkeypatch.setenv("STUB_GPUS", "2")
    said = in_batch(read("04", **typed), kaggle)
    command = re.search(r"^2 processes: (accelerate launch .*)$", said, re.M)[1]
    for name in ("config", "dataset"):
        shutil.copytree(here / "runs/mine" / name, here / "runs/again" / name)
    words = shlex.split(command.replace(" helpers.train mine ", " helpers.train again "))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run(words, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, both, again = (
        [(row["step"], row.get("loss")) for row in lines(here / f"runs/{name}/train_log.jsonl")]
        for name in ("alone", "mine", "again")
    )
    assert both == again and [step for step, _ in both] == list(range(41))
    apart = max(abs(a - b) for (_, a), (_, b) in zip(one[1:], both[1:], strict=True))
    print(f"losses apart: {apart:.2e}")
    assert apart < 1e-6


def test_ones_own_posts_come_by_a_token_among_kaggles_secrets_which_nothing_shows(
    kaggle, serve, monkeypatch
):
    site = serve(8, kind=Graph)
    monkeypatch.setattr(Secrets, "values", {SECRET: TOKEN})
    said = by_hand(read("01", run="mine", source="api", permission="own work"), kaggle)
    assert "@artist by Instagram's API" in said and f"{len(site.images())} images" in said
    here = kaggle / "kaggle/temp/annalaura-diffusion"
    monkeypatch.chdir(here)
    assert_whole(Run("mine"), site)
    refresh = [sys.executable, "-m", "helpers.scrape.api_token"]
    done = subprocess.run(refresh, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("keep it on a computer of yours"), done.stderr
    monkeypatch.chdir(kaggle)
    assert_no_canary(said, done.stdout, done.stderr)
    monkeypatch.setattr(Secrets, "values", {})
    monkeypatch.setenv("HOME", str(kaggle / "another"))
    link(kaggle / "kaggle/working", kaggle)
    done, printed = opened(read("01", run="mine", source="api"), kaggle)
    assert done.returncode and "INSTAGRAM_ACCESS_TOKEN is not set: attach it" in done.stderr
    assert_speaks_of("".join(printed), kaggle, "Kaggle")


def push(machine, *arguments, run="my_run", **options):
    """The notebook that tools/kaggle_batch.py writes, and its metadata."""
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "tools.kaggle_batch", "me", run, *arguments, *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        environment.pop(name, None)
    at_home = machine / "home"
    if not at_home.exists():
        at_home.mkdir()
        (at_home / "notebooks").symlink_to(ROOT / "notebooks")
    done = subprocess.run(command, cwd=at_home, env=environment, capture_output=True, text=True)
    folder = at_home / "build/kaggle" / run
    return done, folder


@pytest.mark.soak
def test_a_pushed_batch_walks_all_five_and_its_output_goes_on(kaggle):
    done, folder = push(kaggle, "--only", "01,02,03", "-p", "more", str(FEW))
    assert done.returncode == 0 and "kaggle kernels push -p build/kaggle/my_run" in done.stdout
    about = json.loads((folder / "kernel-metadata.json").read_text())
    assert about["id"] == "me/annalaura-my-run" and about["title"] == "annalaura-my-run"
    assert about["is_private"] and about["enable_internet"] and about["enable_gpu"]
    said = in_batch(nbformat.read(folder / about["code_file"], 4), kaggle)
    assert "[3/3] 03_dataset" in said and "installed  nothing: all is there" in said
    attach_output(kaggle, "annalaura-my-run")
    typed = [
        "-p",
        "more",
        str(SMALL | {"num_inference_steps": 2, "judged_samples": 8}),
        "-p",
        "max_steps",
        "4",
    ]
    done, folder = push(kaggle, "--from", "04", *typed, earlier="me/annalaura-my-run")
    assert done.returncode == 0, done.stderr
    about = json.loads((folder / "kernel-metadata.json").read_text())
    assert about["kernel_sources"] == ["me/annalaura-my-run"]
    said = in_batch(nbformat.read(folder / about["code_file"], 4), kaggle)
    assert "report.html" in said
    kept = kaggle / "kaggle/working" / FOLDER / "my_run"
    assert "<html" in (kept / "report.html").read_text()  # to be opened in the list of outputs
    assert find_corruption(kept / "model") is None and find_corruption(kept / "export") is None
    for path in (kaggle / "kaggle/temp/annalaura-diffusion/runs/my_run/notebooks").glob("*.ipynb"):
        assert_speaks_of(shown(path), kaggle, "Kaggle")


def test_a_pushed_notebook_has_a_name_that_is_its_address(kaggle):
    done, folder = push(kaggle, run="My__run-_2_")
    about = json.loads((folder / "kernel-metadata.json").read_text())
    assert about["title"] == "annalaura-my-run-2" and about["id"] == "me/annalaura-my-run-2"
    assert f"-p {folder.relative_to(kaggle / 'home')} " in done.stdout


def test_a_batch_that_would_be_refused_is_not_written(kaggle):
    for words, why in (
        (["-p", "max_stepps", "4"], "no notebook knows the parameter 'max_stepps'"),
        (["-p", "folder", "sk-ant-" + "a" * 40], "secret"),
    ):
        done, folder = push(kaggle, *words)
        assert done.returncode == 1 and why in done.stderr and not folder.exists()


@pytest.mark.soak
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
        assert words in shown(kaggle / "out.ipynb") + done.stderr
