"""The mirror on a Drive that errs, and what a fresh machine makes of it."""

import errno
import hashlib
import io
import os
import random
import re
import shutil
import tarfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import append_line, find_corruption, replacing_folder
from helpers.core.run import Run
from helpers.host import here
from helpers.host.interface import FOLDER
from helpers.mirror import archives, drive, index, sync, upload
from helpers.train.checkpoint import latest_step, prune, step_of
from helpers.train.trainer import train
from tests.conftest import ON_EACH_FAMILY, SMALL_TRAINING, lines, make_dataset, photograph
from tests.drive import FAULTS, FaultyDrive, mounted
from tests.kills import kills_at_every_operation

STEPS = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a run that has come as far as 03."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i in range(12):
            photograph(folder / f"in/{i}.jpg", i).with_suffix(".txt").write_text(f"thing {i}")
        make_dataset("pictures", folder / "in")
    return folder / "runs/pictures"


def settings(base):
    more = {"max_steps": STEPS, "save_every_steps": 1, "tracker": "none", "keep_checkpoints": 2}
    quick = {"prior_share": 0.0, "num_inference_steps": 1, "prompts": ("a",)}
    given = {**SMALL_TRAINING, **more, **quick, "run": "pictures", "base_model": str(base)}
    return configure(TrainConfig, given)


def outcome(run):
    """What must be the same however it came about: the last state, the model, and which steps were logged."""
    files = [
        *sorted(run.checkpoint(STEPS).glob("*.safetensors")),
        *sorted(run.model.rglob("*.safetensors")),
    ]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashes, [row["step"] for row in lines(run.train_log)]


@pytest.fixture(scope="module")
def undisturbed(prepared, tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(prepared, folder / "runs/pictures")
        run = Run("pictures")
        list(train(settings(tiny_base), run))
        assert len(outcome(run)[0]) >= 4 and outcome(run)[1] == list(range(STEPS + 1))
        return outcome(run)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lead this machine to a Drive: `machine(cloud)`, or one that errs: `machine(cloud, fault, seed)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "POLL_S", 0.0)
    monkeypatch.setattr(drive, "PATIENCE_S", 0.05)

    def lead(cloud: Path, fault: str = "", seed: int = 0):
        cloud.mkdir(exist_ok=True)
        monkeypatch.setattr(sync, "_mirrors", {})
        if not fault:
            monkeypatch.setattr(here, "MIRROR", mounted(cloud))
            monkeypatch.setattr(sync, "Drive", drive.Drive)
            return None
        mount = tmp_path / "mount"
        shutil.rmtree(mount, ignore_errors=True)
        mount.mkdir()
        made = FaultyDrive(mount, f"{FOLDER}/pictures", cloud, fault, seed)
        monkeypatch.setattr(here, "MIRROR", mounted(mount))
        monkeypatch.setattr(sync, "Drive", lambda root, folder: made)
        return made

    return lead


def claimed_step(line):
    """The step up to which a line says that all is kept, or None."""
    assert ("is kept on Google Drive" in line) != ("is NOT all on Google Drive: " in line), line
    return int(re.search(r"up to step (\d+)", line)[1]) if "up to step" in line else None


def newest_that_verifies(cloud):
    return max((step_of(f) for f in cloud.rglob("checkpoints/step-*") if verifies(f)), default=0)


def verifies(folder):
    """As the manifest says, whatever is left of the manifest."""
    try:
        return find_corruption(folder) is None
    except ValueError:
        return False


def train_for_real(config, run, steps):
    walk = train(config, run)
    for step in walk:
        if step.step == steps:
            break
    walk.close()


def write_checkpoints(run, steps):
    """What training leaves to the mirror, without the training."""
    for step in range(1, steps + 1):
        write_checkpoint(run, step)
        prune(run, run.checkpoint(step), 2, 1)
        sync.sync_soon(run)


def write_checkpoint(run, step, size=3000):
    append_line(run.train_log, f'{{"step": {step}}}')
    with replacing_folder(run.checkpoint(step)) as beside:
        (beside / "weights.safetensors").write_bytes(random.Random(step).randbytes(size))
        (beside / "optimizer.safetensors").write_bytes(b"moments")
        (beside / "state.json").write_text(f'{{"format": 1, "step": {step}}}')
        rows = [f'{{"step": {number}}}\n' for number in range(step + 1)]
        (beside / "train_log.jsonl").write_text("".join(rows))


def live_and_die(run, work, faulty, seed):
    """A machine's life: keep the dataset, do some steps, perhaps keep again; returns what it was told."""
    told = []
    try:
        sync.restore(run)
        told.append(sync.sync(run))
        work(run, 1 + seed % STEPS)
    except RunError as error:
        assert "Google Drive" in str(error)
    if random.Random(seed).random() < 0.7:
        told.append(sync.sync(run))
    faulty.die()
    shutil.rmtree(run.folder)
    return told


def assert_nothing_was_claimed_in_vain(run, told, cloud):
    """Restore on a fresh machine, and compare with what Drive has and with what was said."""
    newest = newest_that_verifies(cloud)
    sync.restore(run)
    assert latest_step(run) >= newest  # one whose files Drive renamed is found as well
    newest = latest_step(run)
    logged = [row["step"] for row in lines(run.train_log)] if run.train_log.is_file() else []
    assert set(range(1, newest + 1)) <= set(logged), "the log is behind its checkpoint"
    assert all(newest >= (claimed_step(line) or 0) for line in told), told
    claims = [line for line in told if "is kept on" in line]
    if claims:
        assert find_corruption(run.dataset) is None, told
    return claims


ALL = [(fault, range(20)) for fault in FAULTS]
IN_FULL = [pytest.param(*given, marks=pytest.mark.soak, id=f"all-{given[0]}") for given in ALL]


@pytest.mark.parametrize(("fault", "seeds"), [*((f, range(2)) for f in FAULTS), *IN_FULL])
def test_whatever_drive_does_nothing_is_claimed_in_vain(fault, seeds, prepared, machine, tmp_path):
    met, claims = 0, []
    for seed in seeds:
        cloud = tmp_path / f"cloud{seed}"
        shutil.copytree(prepared, "runs/pictures")
        run, faulty = Run("pictures"), machine(cloud, fault, seed)
        told = live_and_die(run, write_checkpoints, faulty, seed)
        machine(cloud)
        claims += assert_nothing_was_claimed_in_vain(run, told, cloud)
        shutil.rmtree(run.folder, ignore_errors=True)
        met += faulty.met
    assert met  # the fault was there
    assert claims or len(seeds) < 20  # and not everything was given up


@ON_EACH_FAMILY
@pytest.mark.parametrize(("fault", "seeds"), [("remount", range(1)), *IN_FULL])
def test_a_fresh_machine_with_nothing_but_the_mirror_ends_in_the_same_bits(
    fault, seeds, prepared, undisturbed, tiny_base, machine, tmp_path
):
    config = settings(tiny_base)
    for seed in seeds:
        cloud = tmp_path / f"cloud{seed}"
        shutil.copytree(prepared, "runs/pictures")
        run, faulty = Run("pictures"), machine(cloud, fault, seed)
        told = live_and_die(run, partial(train_for_real, config), faulty, seed)
        machine(cloud)
        assert_nothing_was_claimed_in_vain(run, told, cloud)
        if find_corruption(run.dataset):  # it was said not to be kept
            shutil.rmtree(run.folder, ignore_errors=True)
            shutil.copytree(prepared, run.folder)
        list(train(config, run))
        assert outcome(run) == undisturbed, seed
        shutil.rmtree(run.folder)


@pytest.fixture
def run(prepared, machine, tmp_path):
    """A run at 03 on a machine with a Drive that does what it should."""
    shutil.copytree(prepared, "runs/pictures")
    machine(tmp_path / "cloud")
    return Run("pictures")


@pytest.fixture
def there(run, tmp_path):
    return tmp_path / "cloud" / FOLDER / run.name


@pytest.fixture
def of_another_machine(run, machine, tmp_path):
    """The run on a second machine, after a first one has kept a checkpoint."""
    write_checkpoint(run, 1)
    sync.sync(run)
    run.folder.rename("first machine")
    machine(tmp_path / "cloud")
    return Run("pictures")


def on_a_fresh_machine(run, machine, tmp_path):
    shutil.rmtree(run.folder)
    machine(tmp_path / "cloud")
    return sync.restore(run)


def is_step(run, step):
    content = (run.checkpoint(step) / "weights.safetensors").read_bytes()
    return content == random.Random(step).randbytes(len(content))


def lead_to(monkeypatch, kind):
    """Have the next mirror use this kind of Drive."""
    monkeypatch.setattr(sync, "_mirrors", {})
    made = []
    monkeypatch.setattr(sync, "Drive", lambda *given: made.append(kind(*given)) or made[-1])
    return made


def test_a_folder_that_is_not_whole_here_is_named_and_the_others_are_kept(run, there):
    for step in (1, 2, 3):
        write_checkpoint(run, step)
    (run.checkpoint(1) / "manifest.json").write_text("")
    (run.checkpoint(3) / "state.json").unlink()
    line = sync.sync(run)
    assert claimed_step(line) == 2 and "NOT all" in line and "move that folder away" in line
    shutil.rmtree(run.checkpoint(1))
    line = sync.sync(run)
    assert "step-000003/state.json is missing" in line and claimed_step(line) == 2
    shutil.rmtree(run.checkpoint(3))
    assert "is kept on Google Drive" in sync.sync(run)


def test_a_dataset_that_lacks_an_image_is_not_called_kept(run, there):
    path = run.split_images("train")[0]
    path.unlink()
    line = sync.sync(run)
    assert "NOT all" in line and f"{path} is not what manifest.json says" in line


def test_a_training_that_begins_again_keeps_the_other_and_is_alone_on_a_fresh_machine(
    run, machine, tiny_base, tmp_path
):
    sync.restore(run)
    list(train(settings(tiny_base), run))
    other = replace(settings(tiny_base), learning_rate=0.01)
    with pytest.raises(RunError, match=r"learning_rate was .*set more=\{'begin_again': True\}"):
        list(train(other, run))
    again = replace(other, begin_again=True)
    assert [step.step for step in train(again, run)] == list(range(STEPS + 1))
    assert not list(train(again, run))  # it is done now
    kept = run.sweep / "before-0/checkpoints"
    assert {path.name for path in kept.iterdir()} == {"step-000003", "step-000004"}
    sync.sync(run)
    on_a_fresh_machine(run, machine, tmp_path)
    more = replace(other, max_steps=STEPS + 1)
    assert [step.step for step in train(more, run)] == [STEPS + 1]


def test_a_copy_under_another_name_is_in_nobodys_way(run, there):
    write_checkpoint(run, 1)
    shutil.copytree(run.checkpoint(1), run.checkpoints / "step-000001 (1)")
    write_checkpoint(run, 2)
    line = sync.sync(run)
    assert "is kept on Google Drive" in line and claimed_step(line) == 2


class Scratched(drive.Drive):
    """A Drive that cannot give one file any more."""

    def read(self, name):
        if "step-000001/weights" in name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(name)


def test_a_file_that_drive_cannot_give_keeps_no_other_away(run, monkeypatch):
    for step in (1, 2):
        write_checkpoint(run, step)
    sync.sync(run)
    shutil.rmtree(run.folder)
    lead_to(monkeypatch, Scratched)
    said = sync.restore(run)
    assert "1 did not verify there (checkpoints/step-000001)" in said
    assert latest_step(run) == 2 and run.posts.is_file()


class Tight(drive.Drive):
    """A Drive with room for two checkpoints."""

    def free_bytes(self):
        taken = sum(p.stat().st_size for p in self.folder.rglob("step-*/*"))
        return max(0, 2_500_000 - taken)


def test_on_a_nearly_full_drive_a_fresh_machine_goes_on_mirroring(run, there, monkeypatch):
    lead_to(monkeypatch, Tight)
    for step in (1, 2):
        write_checkpoint(run, step, 1_000_000)
        assert claimed_step(sync.sync(run)) == step
    shutil.rmtree(run.folder)
    lead_to(monkeypatch, Tight)
    sync.restore(run)
    for step in (3, 4):
        write_checkpoint(run, step, 1_000_000)
        prune(run, run.checkpoint(step), 1, 0)
        assert claimed_step(sync.sync(run)) == step


class Silent(drive.Drive):
    """A Drive that answers no more."""

    released = threading.Event()

    def read(self, name):
        self.released.wait(60)
        return super().read(name)


def test_a_drive_that_hangs_is_not_waited_for_for_ever(run, there, monkeypatch):
    sync.sync(run)
    lead_to(monkeypatch, Silent)
    monkeypatch.setattr(upload, "HANG_S", 0.2)
    monkeypatch.setattr(upload, "POLL_S", 0.05)
    assert "it has not answered for" in mirror_of(run).flush()
    Silent.released.set()


def mirror_of(run):
    return sync._mirror(run)


def test_a_second_restore_makes_no_second_mirror(run, there):
    sync.restore(run)
    write_checkpoint(run, 1)
    sync.sync_soon(run)
    first = mirror_of(run)
    sync.restore(run)
    assert mirror_of(run) is first and claimed_step(sync.sync(run)) == 1


class Gate(drive.Drive):
    """A Drive on which a checkpoint's weights wait until they are let through."""

    reached, opened = threading.Event(), threading.Event()

    def write(self, name, chunks):
        if "step-000001/weights" in name:
            self.reached.set()
            assert self.opened.wait(60)
        super().write(name, chunks)


def test_training_goes_on_while_drive_is_slow_and_the_newest_checkpoint_is_next(
    run, there, monkeypatch
):
    lead_to(monkeypatch, Gate)
    write_checkpoint(run, 1)
    sync.sync_soon(run)
    assert Gate.reached.wait(60)
    for step in (2, 3):
        write_checkpoint(run, step)
        prune(run, run.checkpoint(step), 1, 0)
        sync.sync_soon(run)  # returns while the upload stands still
    assert not run.checkpoint(1).exists()
    Gate.opened.set()
    assert claimed_step(sync.sync(run)) == 3
    assert verifies(there / "checkpoints/step-000001")  # begun, so ended, though pruned here
    assert not (there / "checkpoints/step-000002").exists()


class Watched(drive.Drive):
    """Notes how many checkpoints verify on Drive whenever one is removed."""

    left = []

    def remove(self, name):
        if "step-" in name and self.path(name).exists():
            others = [f for f in self.folder.glob("checkpoints/step-*") if f != self.path(name)]
            self.left.append(sum(verifies(folder) for folder in others))
        super().remove(name)


def test_an_old_checkpoint_goes_when_two_newer_were_read_back(run, there, monkeypatch):
    lead_to(monkeypatch, Watched)
    for step in range(1, 6):
        write_checkpoint(run, step)
        prune(run, run.checkpoint(step), 1, 2)
        sync.sync(run)
    assert sorted(f.name for f in there.glob("checkpoints/*")) == [
        "step-000002",  # the best, as here
        "step-000004",
        "step-000005",
    ]
    assert len(Watched.left) == 2 and min(Watched.left) >= 2


def test_what_is_removed_is_cut_to_nothing_first(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("counts in the bin")
    (tmp_path / "bin").hardlink_to(tmp_path / "a/b/c")
    drive.Drive(tmp_path, "a").remove("b")
    assert (tmp_path / "bin").read_text() == "" and not (tmp_path / "a/b").exists()


class Small(drive.Drive):
    def free_bytes(self):
        return 1_200_000


def test_what_will_not_fit_is_told_with_its_size_and_training_goes_on(
    run, there, monkeypatch, caplog
):
    lead_to(monkeypatch, Small)
    sync.sync(run)
    write_checkpoint(run, 1, 3_400_000)
    sync.sync_soon(run)
    words = "checkpoints/step-000001 needs 3.4 MB, Google Drive has 1.2 MB free: free space there"
    line = sync.sync(run)
    assert (
        words in line
        and claimed_step(line) is None
        and "step" not in line.split("Verified there")[1]
    )
    assert [r.message for r in caplog.records if words in r.message]  # told without being asked
    assert not (there / "checkpoints").exists() and find_corruption(run.checkpoint(1)) is None


def test_a_drive_that_is_gone_is_not_replaced_by_the_disk(run, tmp_path):
    sync.sync(run)
    shutil.rmtree(tmp_path / "cloud")
    write_checkpoint(run, 1)
    line = sync.sync(run)
    assert "NOT all on Google Drive: Google Drive is disconnected ([Errno 107])" in line
    assert not (tmp_path / "cloud").exists()


def test_many_small_files_are_few_on_drive_and_only_what_is_new_travels(run, there, monkeypatch):
    monkeypatch.setattr(index, "SMALL", 10_000)
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", 50_000)
    for i in range(300):
        (run.images / f"many_{i}.jpg").write_bytes(random.Random(i).randbytes(1000))
    sync.sync(run)
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    assert len(before) < 20
    (run.images / "one_more.jpg").write_bytes(b"new")
    sync.sync(run)
    after = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    new = [path for path in after if before.get(path) != after[path]]
    assert 2 <= len(new) <= 3 and sum(path.stat().st_size for path in new) < 120_000


def test_a_checkpoint_that_no_longer_verifies_gives_way_to_the_one_before(
    run, there, machine, tmp_path
):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    spoil(there / "checkpoints/step-000002/weights.safetensors")
    line = on_a_fresh_machine(run, machine, tmp_path)
    assert "1 did not verify there (checkpoints/step-000002)" in line
    assert latest_step(run) == 1 and is_step(run, 1) and find_corruption(run.dataset) is None


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_spoilt_index_gives_way_to_the_one_before(run, there, machine, tmp_path):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    spoil(newest_of(there, "kept-*.json"))
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 1 and find_corruption(run.dataset) is None
    assert len(lines(run.train_log)) >= 1


def test_a_spoilt_part_is_named_and_takes_no_checkpoint_along(run, there, machine, tmp_path):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    spoil(newest_of(there, "parts/*"))
    line = on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 2 and is_step(run, 2) and find_corruption(run.dataset) is None
    assert "did not verify there (train_log.jsonl)" in line


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_background(run):
    """Have the mirror copy what is new without reading all back once more."""
    mirror = sync._mirror(run)
    ticket = mirror.schedule()
    with mirror._turn:
        assert mirror._turn.wait_for(lambda: mirror._done >= ticket, 60)


def newest_of(there, pattern):
    return max(there.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("rubbish", ["[" * 200_000, '{"sha256": 1, "index": []}', "null", "1e999"])
def test_an_index_of_any_rubbish_gives_way_to_the_one_before(
    run, there, machine, tmp_path, rubbish
):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    newest_of(there, "kept-*.json").write_text(rubbish)
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 1 and find_corruption(run.dataset) is None


def test_indexes_and_folders_that_drive_renamed_are_found(run, there, machine, tmp_path):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    for path in (*there.glob("kept-*.json"), there / "checkpoints/step-000002"):
        path.rename(path.with_name(f"{path.stem} (1){path.suffix}"))
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 2 and is_step(run, 2)


def test_a_mirror_without_its_index_is_refused_and_stays_as_it_is(run, there, machine, tmp_path):
    write_checkpoint(run, 1)
    sync.sync(run)
    for path in there.glob("kept-*.json"):
        path.unlink()
    before = tree(there)
    with pytest.raises(RunError, match="holds a run, but neither kept-0.json nor kept-1.json"):
        on_a_fresh_machine(run, machine, tmp_path)
    assert tree(there) == before


def test_checkpoints_that_somebody_took_from_drive_are_missed(run, there, machine, tmp_path):
    for step in (1, 2):
        write_checkpoint(run, step)
        sync.sync(run)
    shutil.rmtree(there / "checkpoints")
    assert "did not verify there (checkpoints/step-000002)" in on_a_fresh_machine(
        run, machine, tmp_path
    )


def test_a_small_file_that_is_lost_keeps_no_checkpoint_away(
    run, there, machine, tmp_path, prepared
):
    large = run.folder / "samples/large.png"
    large.parent.mkdir()
    large.write_bytes(random.Random(0).randbytes(9_000_000))
    sync.sync(run)
    spoil(max(there.glob("parts/*"), key=lambda path: path.stat().st_size))
    on_a_fresh_machine(run, machine, tmp_path)
    shutil.copytree(prepared, run.folder, dirs_exist_ok=True)  # 01 to 03 were run again
    write_checkpoint(run, 2)
    line = sync.sync(run)
    assert "NOT all" in line and "1 files that are not here do not verify" in line
    assert claimed_step(line) == 2 and verifies(there / "checkpoints/step-000002")


def test_a_file_that_cannot_be_read_here_is_named_and_keeps_no_other_away(run, there, monkeypatch):
    path, read = run.folder / "samples/x.png", Path.read_bytes
    path.parent.mkdir()
    path.write_bytes(b"on a bad sector")

    def fail(self):
        if self.name == path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    write_checkpoint(run, 1)
    line = sync.sync(run)
    assert f"NOT all on Google Drive: {path} cannot be read here (Input/output error)" in line
    assert claimed_step(line) == 1 and verifies(there / "checkpoints/step-000001")
    monkeypatch.setattr(Path, "read_bytes", read)
    assert "is kept on Google Drive" in sync.sync(run)


def test_what_lies_elsewhere_by_a_link_is_not_called_kept(run, there, tmp_path):
    run.images.rename(tmp_path / "large disk")
    run.images.symlink_to(tmp_path / "large disk")
    line = sync.sync(run)
    assert "NOT all" in line and "images is a link: replace it by what it links to" in line


def test_what_a_link_on_drive_leads_to_is_nobodys_to_remove(tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "precious").write_text("precious")
    place = drive.Drive(tmp_path, "runs")
    (tmp_path / "runs/kept").mkdir(parents=True)
    (tmp_path / "runs/kept/weights").symlink_to(archive / "precious")
    (tmp_path / "runs/step").symlink_to(archive)
    place.remove("kept")
    place.remove("step")
    assert (archive / "precious").read_text() == "precious" and not any(
        (tmp_path / "runs").iterdir()
    )


def test_an_image_lost_here_stays_on_drive_and_comes_back(run, machine, tmp_path):
    sync.sync(run)
    image = run.split_images("train")[0]
    image.unlink()
    for _ in range(2):
        assert "NOT all" in sync.sync(run)
    sync.restore(run)
    assert image.is_file() and find_corruption(run.dataset) is None
    image.unlink()
    sync.sync(run)
    on_a_fresh_machine(run, machine, tmp_path)
    assert find_corruption(run.dataset) is None


def test_a_line_that_was_paid_for_outlives_a_clock_that_was_set_back(run, machine):
    sync.sync(run)
    append_line(run.captions, '{"file_name": "x", "caption": "paid for"}')
    an_hour_ago = run.captions.stat().st_mtime_ns - 3600 * 10**9
    os.utime(run.captions, ns=(an_hour_ago, an_hour_ago))
    sync.restore(run)
    assert "paid for" in run.captions.read_text()


@pytest.mark.parametrize(
    ("end", "kept"), [('{"file_name": "x"}', True), ('{"file_name": "x', False)]
)
def test_a_last_line_is_kept_if_it_is_whole(run, machine, tmp_path, end, kept):
    with run.captions.open("a") as file:
        file.write(end)
    sync.sync(run)
    on_a_fresh_machine(run, machine, tmp_path)
    assert (end in run.captions.read_text()) == kept


def test_a_checkpoint_that_never_ended_goes_into_no_part(run, there):
    for step in (1, 2):
        write_checkpoint(run, step)
    (run.checkpoint(2) / "manifest.json").unlink()
    line = sync.sync(run)
    assert "step-000002 has no manifest.json: move that folder away" in line
    packed = {name for path in there.glob("parts/*") for name in tarfile.open(path).getnames()}
    assert not [name for name in packed if "step-000002" in name]


def test_what_a_kill_left_of_a_restore_is_cleared(run, machine, tmp_path):
    sync.sync(run)
    left = run.folder / ".restore"
    left.mkdir()
    (left / "half.tar").write_bytes(b"half")
    sync.restore(run)
    assert not left.exists()


def test_of_two_checkpoints_neither_goes_while_only_one_is_kept(run, there):
    for step in range(1, 5):
        write_checkpoint(run, step)
        prune(run, run.checkpoint(step), 2, 0)
        sync.sync(run)
    shutil.rmtree(there / "checkpoints/step-000004")
    write_checkpoint(run, 5)
    prune(run, run.checkpoint(5), 2, 0)
    in_background(run)
    assert sum(verifies(path) for path in (there / "checkpoints").iterdir()) >= 2


def test_a_file_that_drive_renamed_is_found_if_it_verifies(run, there, machine, tmp_path):
    write_checkpoint(run, 1)
    sync.sync(run)
    weights = there / "checkpoints/step-000001/weights.safetensors"
    weights.rename(weights.with_name("weights (1).safetensors"))
    weights.write_bytes(b"another")
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 1 and is_step(run, 1)


def test_what_is_newer_here_stays_and_what_is_newer_there_comes(run, machine, tmp_path):
    append_line(run.train_log, '{"step": 1}')
    sync.sync(run)
    append_line(run.train_log, '{"step": 2}')
    sync.restore(run)
    assert len(lines(run.train_log)) == 2
    sync.sync(run)
    older = run.train_log.stat().st_mtime_ns - 10**9
    run.train_log.write_text('{"step": 1}\n')
    os.utime(run.train_log, ns=(older, older))
    sync.restore(run)
    assert len(lines(run.train_log)) == 2


def test_of_two_machines_the_one_that_restored_last_goes_on(run, there, machine, tmp_path):
    write_checkpoint(run, 1)
    sync.restore(run)
    sync.sync(run)
    first = dict(sync._mirrors)
    run.folder.rename("first machine")
    on_second = Run("pictures")
    machine(tmp_path / "cloud")
    sync.restore(on_second)
    write_checkpoint(on_second, 2)
    assert claimed_step(sync.sync(on_second)) == 2

    run.folder.rename("second machine")
    Path("first machine").rename(run.folder)
    sync._mirrors.clear()
    sync._mirrors.update(first)
    write_checkpoint(run, 3)
    assert "NOT all on Google Drive: another machine has taken this run's mirror over" in sync.sync(
        run
    )
    assert (
        verifies(there / "checkpoints/step-000002")
        and not (there / "checkpoints/step-000003").exists()
    )


class Shut(drive.Drive):
    is_shut = True

    def write(self, name, chunks):
        if self.is_shut:
            raise OSError(errno.EROFS, "Read-only file system", name)
        super().write(name, chunks)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_mirror_that_cannot_be_written_is_taken_over_once_it_can(
    of_another_machine, there, monkeypatch, restarted
):
    run = of_another_machine
    monkeypatch.setattr(Shut, "is_shut", True)
    lead_to(monkeypatch, Shut)
    words = "Google Drive cannot be written ([Errno 30])"
    assert f"NOTHING MORE IS MIRRORED: {words}" in sync.restore(run)
    write_checkpoint(run, 2)
    sync.sync_soon(run)
    sync.delete_remote(run)
    assert is_step(run, 1) and f"NOT all on Google Drive: {words}" in sync.sync(run)
    Shut.is_shut = False
    if restarted:
        monkeypatch.setattr(sync, "_mirrors", {})
    assert claimed_step(sync.sync(run)) == 2 and verifies(there / "checkpoints/step-000002")


def test_a_machine_that_fails_to_take_its_mirror_back_is_told_the_true_reason(
    of_another_machine, there, monkeypatch
):
    on_second = of_another_machine
    sync.restore(on_second)
    write_checkpoint(on_second, 2)
    assert claimed_step(sync.sync(on_second)) == 2
    on_second.folder.rename("second machine")
    run = Run("pictures")
    Path("first machine").rename(run.folder)
    monkeypatch.setattr(Shut, "is_shut", True)
    lead_to(monkeypatch, Shut)
    assert "cannot be written" in sync.restore(run) and is_step(run, 2)
    assert "NOT all on Google Drive: Google Drive cannot be written" in sync.sync(run)
    Shut.is_shut = False
    write_checkpoint(run, 3)
    assert claimed_step(sync.sync(run)) == 3 and verifies(there / "checkpoints/step-000003")


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/out-of-the-run.txt", "a/../../out.txt", ".hidden/x"]
)
def test_names_that_lead_out_of_the_run_are_left_where_they_are(name, machine, tmp_path):
    cloud = tmp_path / "cloud"
    machine(cloud)
    kept = drive.Drive(cloud, f"{FOLDER}/art")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    content = made.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    hostile = index.Index(1)
    hostile.files[name] = index.File(4, hashlib.sha256(b"evil").hexdigest(), 1, "parts/x.tar")
    hostile.parts["parts/x.tar"] = index.Archive(len(content), digest, 4)
    hostile.folders["../../out"] = index.Folder("0" * 64, 1, 4)
    kept.write("parts/x.tar", [content])
    kept.write(hostile.slot(), [hostile.dump()])
    sync.restore(Run("art"))
    assert not list(tmp_path.rglob("*out*.txt")) and not Path("/tmp/out-of-the-run.txt").exists()


def killed_anywhere(run, there, machine, tmp_path, step):
    sync.restore(run)
    write_checkpoint(run, 1)
    assert claimed_step(sync.sync(run)) == 1
    write_checkpoint(run, 2)
    sync._mirrors.clear()
    for killed in kills_at_every_operation(tmp_path / "cloud", lambda: sync.sync(run), step):
        yield killed
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(fresh)
            sync._mirrors.clear()
            other = Run("pictures")
            sync.restore(other)
            assert (
                latest_step(other) >= (1 if killed else 2)
                and find_corruption(other.dataset) is None
            )
            assert is_step(other, latest_step(other))
            assert len(lines(other.train_log)) >= latest_step(other)
        shutil.rmtree(fresh)
        sync._mirrors.clear()


def test_a_kill_in_the_middle_leaves_what_was_kept(run, there, machine, tmp_path):
    assert sum(1 for _ in killed_anywhere(run, there, machine, tmp_path, 6)) >= 3


@pytest.mark.soak
def test_a_kill_before_any_operation_leaves_what_was_kept(run, there, machine, tmp_path):
    assert sum(1 for _ in killed_anywhere(run, there, machine, tmp_path, 1)) >= 10
