"""Files that run something when they are opened wrongly, wherever weights or data are looked for: none runs."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from helpers.caption import blip
from helpers.config import ScrapeConfig, TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import write_manifest
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.inference.draw.sampler import Request, Sampler
from helpers.inference.judge.encoders import ClipScore, ImageModel
from helpers.models.pipeline import load_pipeline
from helpers.scrape.ingest import find, take
from helpers.scrape.instagram import login
from helpers.train.limits import refuse_slow
from helpers.train.model import load_components
from helpers.train.resources import latent_side
from helpers.train.trainer import train
from tests.conftest import ROOT, SMALL_TRAINING, photograph
from tests.loopback_hub import Repo, loopback_hub

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
)

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Runs:
    """Whoever unpickles it runs a shell command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Hostile:
    """The files, each of which leaves a mark when what it holds is run."""

    def __init__(self, folder: Path):
        self.mark = folder / "it-ran"
        self.command = f"touch {self.mark}"
        self.code = f"import os\nos.system({self.command!r})\nclass Evil: pass\n"
        self.template = "{{ cycler.__init__.__globals__.os.system('MARK') }}".replace(
            "MARK", self.command
        )

    def torch(self, nested=False, legacy=False) -> bytes:
        value = {"a.weight": torch.zeros(2), "b": [{"c": Runs(self.command)}]}
        buffer = io.BytesIO()
        torch.save(
            value if nested else Runs(self.command),
            buffer,
            _use_new_zipfile_serialization=not legacy,
        )
        return buffer.getvalue()

    def pickle(self, protocol=4) -> bytes:
        return pickle.dumps(Runs(self.command), protocol)

    def numpy(self, kind="npy") -> bytes:
        buffer, array = io.BytesIO(), np.array([Runs(self.command)], dtype=object)
        np.save(buffer, array) if kind == "npy" else np.savez(buffer, weight=array)
        return buffer.getvalue()

    def disguises(self) -> list[bytes]:
        return [
            self.pickle(), self.pickle(0), self.torch(), self.torch(nested=True), self.torch(legacy=True),
            self.numpy(), self.numpy("npz"), zlib.compress(self.pickle()),
        ]  # fmt: skip

    def tar(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for name, content in (("0.pyd", self.pickle()), ("0.pickle", self.pickle()), ("0.pth", self.torch()),
                                  ("0.npy", self.numpy()), ("0.jpg", b"no picture")):  # fmt: skip
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


@pytest.fixture
def hostile(tmp_path):
    """After the test, nothing has run."""
    made = Hostile(tmp_path)
    yield made
    assert not made.mark.exists()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(act, *words: str) -> None:
    """It raises RunError, in a line that says so."""
    with pytest.raises(RunError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """Put a folder into the hub's cache, as a download leaves it, and take it away where it was; returns its id."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def move(folder: Path) -> str:
        hub_id = f"{tmp_path.name}/{folder.name}"  # no other test has it
        repo = cache / f"models--{hub_id.replace('/', '--')}"
        put(repo / "refs/main", REVISION)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            blob = repo / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            put(blob, path.read_bytes())
            link = repo / "snapshots" / REVISION / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        shutil.rmtree(folder)
        return hub_id

    return move


def test_each_file_runs_when_it_is_opened_wrongly(tmp_path):
    hostile = Hostile(tmp_path)
    for content in hostile.disguises():
        file, found = io.BytesIO(content), content
        if (
            content[:2] == b"PK"
            and b"data.pkl" in content
            or content[2:10].startswith(b"\x8a\x0al")
        ):
            torch.load(file, weights_only=False)
        elif content.startswith((b"\x93NUMPY", b"PK")):
            found = np.load(file, allow_pickle=True)
            found["weight"] if content[:2] == b"PK" else found
        else:
            pickle.loads(zlib.decompress(content) if content[0] == 0x78 else content)  # noqa: S301
        assert hostile.mark.exists(), content[:20]
        hostile.mark.unlink()


# a base model's folder, as 04 and 05 load it


def only_bin(part, kind):
    def plant(base, hostile):
        (base / f"{part}.safetensors").unlink()
        name = "text_encoder/pytorch_model" if part == TEXT else part
        put(base / f"{name}.{kind}", hostile.torch(nested=kind == "bin"))

    return plant


def in_place_of(part, number):
    return lambda base, hostile: put(base / f"{part}.safetensors", hostile.disguises()[number])


def damaged_beside_bin(base, hostile):
    path = base / f"{UNET}.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    put(base / f"{UNET}.bin", hostile.torch())


def shards(name, part=UNET):
    def plant(base, hostile):
        (base / f"{part}.safetensors").unlink()
        index = {"metadata": {"total_size": 8}, "weight_map": {"conv_in.weight": "evil.bin"}}
        put(base / f"{part.rpartition('/')[0]}/{name}", json.dumps(index))
        put(base / f"{part.rpartition('/')[0]}/evil.bin", hostile.torch())

    return plant


def custom(file, index=None):
    def plant(base, hostile):
        put(base / file, hostile.code)
        edit(base / "model_index.json", **(index or {}))

    return plant


def from_package(base, hostile):
    put(base.parent / "hostile_package.py", hostile.code)
    edit(base / "model_index.json", unet=["hostile_package", "Evil"])


def nested(base, hostile):
    """A part that is a pipeline, whose own index names a module deep in the folder."""
    edit(base / "model_index.json", safety_checker=["diffusers", "DiffusionPipeline"])
    index = {"_class_name": "DiffusionPipeline", "unet": ["base.safety_checker.deep.own", "Evil"]}
    put(base / "safety_checker/model_index.json", json.dumps(index))
    put(base / "safety_checker/deep/own.py", hostile.code)


def adapter(base, hostile):
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    lora["base_model_name_or_path"] = str(base / "text_encoder")
    put(base / "text_encoder/adapter_config.json", json.dumps(lora))
    put(base / "text_encoder/adapter_model.bin", hostile.torch(nested=True))


WEIGHTS = {
    f"only {kind} in {part.split('/')[0]}": only_bin(part, kind)
    for part in (UNET, VAE, TEXT)
    for kind in ("bin", "ckpt", "pt", "pth")
}
WEIGHTS |= {
    f"disguise {number} as safetensors in {part.split('/')[0]}": in_place_of(part, number)
    for part in (UNET, VAE, TEXT)
    for number in range(8)
}
WEIGHTS |= {
    "damaged safetensors beside a bin": damaged_beside_bin,
    "an index of shards that are pickles": shards("diffusion_pytorch_model.safetensors.index.json"),
    "an index of bins": shards("diffusion_pytorch_model.bin.index.json"),
    "a text encoder's index": shards("model.safetensors.index.json", TEXT),
    "a text encoder's index of bins": shards("pytorch_model.bin.index.json", TEXT),
}
CODE = {
    "pipeline.py": custom("pipeline.py"),
    "None.py": custom("None.py"),
    "a pipeline class of its own": custom("own.py", {"_class_name": ["own", "Evil"]}),
    "a pipeline class by module": custom("my_pipe.py", {"_class_name": ["my_pipe.py", "Evil"]}),
    "a component's module": custom("unet/hostile.py", {"unet": ["hostile", "Evil"]}),
    "a module named as a library": custom("unet/diffusers.py"),
    "a scheduler's module": custom("scheduler/own.py", {"scheduler": ["own", "Evil"]}),
    "a package that can be imported": from_package,
    "a pipeline in a pipeline": nested,
    "a pipeline for a part": custom("own.txt", {"unet": ["diffusers", "DiffusionPipeline"]}),
    "a model of any kind for a part": custom("own.txt", {"vae": ["transformers", "AutoModel"]}),
}


@pytest.fixture
def base(workplace, tiny_base, monkeypatch):
    monkeypatch.syspath_prepend(str(workplace))
    return Path(shutil.copytree(tiny_base, workplace / "base"))


@pytest.mark.parametrize("plant", WEIGHTS.values(), ids=WEIGHTS)
def test_a_base_model_of_anything_but_safetensors_is_refused(base, hostile, plant):
    plant(base, hostile)
    refused(lambda: load_components(str(base), pick_device()), "base_model", "could not be loaded")
    refused(lambda: load_pipeline(str(base), torch.float32), "could not be loaded")


@pytest.mark.parametrize("part", [UNET, VAE, TEXT])
def test_a_base_model_that_has_only_pickles_is_told_so(base, hostile, part):
    only_bin(part, "bin")(base, hostile)
    refused(
        lambda: load_components(str(base), pick_device()), "only pickled weights", "safetensors"
    )


@pytest.mark.parametrize("plant", CODE.values(), ids=CODE)
def test_a_base_model_with_code_of_its_own_is_refused(base, hostile, plant):
    plant(base, hostile)
    refused(lambda: load_components(str(base), pick_device()), "base_model", "which is not run")
    refused(lambda: load_pipeline(str(base), torch.float32), "which is not run")
    assert "hostile_package" not in sys.modules


def test_what_lies_beside_good_weights_is_never_opened(base, hostile):
    names = (
        "pytorch_lora_weights.bin scheduler.bin optimizer.bin optimizer.pt learned_embeds.pt random_states_0.pkl "
        "x.pth x.joblib x.npy x.npz unet/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.ckpt "
        "text_encoder/pytorch_model.bin text_encoder/training_args.bin scheduler/scheduler.bin tokenizer/vocab.pkl"
    )
    for i, name in enumerate(names.split()):
        put(base / name, hostile.disguises()[i % 8])
    put(base / "tokenizer/chat_template.jinja", hostile.template)
    put(base / "tokenizer/tokenization_own.py", hostile.code)
    edit(base / "tokenizer/tokenizer_config.json", chat_template=hostile.template,
         auto_map={"AutoTokenizer": ["tokenization_own.Evil", "tokenization_own.Evil"]})  # fmt: skip
    put(base / "text_encoder/modeling_own.py", hostile.code)
    edit(base / "text_encoder/config.json", auto_map={"AutoModel": "modeling_own.Evil"})
    refused(lambda: load_components(str(base), pick_device()), "which is not run")
    for module in base.rglob("*.py"):
        module.unlink()
    load_components(str(base), pick_device())
    assert load_pipeline(str(base), torch.float32)("a cat", num_inference_steps=1).images


def test_an_adapter_of_pickles_beside_the_text_encoder_is_refused(base, hostile):
    adapter(base, hostile)
    refused(lambda: load_components(str(base), pick_device()), "could not be loaded")
    refused(lambda: load_pipeline(str(base), torch.float32), "could not be loaded")


def linked(part, plant):
    """A part that lies elsewhere, with something in it."""

    def plant_and_link(base, hostile):
        plant(base, hostile)
        shutil.move(base / part, base.parent / "elsewhere")
        (base / part).symlink_to(base.parent / "elsewhere")

    return plant_and_link


LINKED = {
    "nothing hostile": linked("unet", lambda base, hostile: None),
    "a module": linked("unet", custom("unet/diffusers.py")),
    "an adapter": linked("text_encoder", adapter),
    "an index of pickles": linked("text_encoder", shards("model.safetensors.index.json", TEXT)),
    "a pipeline": linked("safety_checker", nested),
}


@pytest.mark.parametrize("plant", LINKED.values(), ids=LINKED)
def test_a_part_that_is_a_link_to_a_folder_is_refused(base, hostile, plant):
    plant(base, hostile)
    refused(lambda: load_components(str(base), pick_device()), "base_model", "a link to a folder")
    refused(lambda: load_pipeline(str(base), torch.float32), "a link to a folder")


def test_a_base_model_whose_folder_or_files_are_links_is_loaded(base, workplace):
    for file in [path for path in base.rglob("*") if path.is_file()]:
        target = workplace / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
        file.symlink_to(target)
    (workplace / "link").symlink_to(base)
    load_components(str(workplace / "link"), pick_device())
    assert load_pipeline(str(workplace / "link"), torch.float32)


# the same by hub id, from the hub's cache

BY_ID = {name: WEIGHTS[name] for name in WEIGHTS if "only bin" in name or "index" in name}
BY_ID |= CODE | {"an adapter of pickles": adapter}


@pytest.mark.parametrize("plant", BY_ID.values(), ids=BY_ID)
def test_a_base_model_by_hub_id_is_kept_to_the_same(base, hostile, on_hub, plant):
    plant(base, hostile)
    name = on_hub(base)
    refused(
        lambda: load_components(name, pick_device()), f"base_model {name!r} could not be loaded"
    )
    refused(lambda: load_pipeline(name, torch.float32), f"{name!r} could not be loaded")
    assert "hostile_package" not in sys.modules


def test_a_good_base_model_by_hub_id_is_loaded_from_the_cache(base, on_hub):
    name = on_hub(base)
    config = configure(TrainConfig, base_model=name)
    refuse_slow(config, pick_device())
    assert latent_side(config) == 64
    load_components(name, pick_device())
    assert load_pipeline(name, torch.float32)("a cat", num_inference_steps=1).images


def test_before_its_weights_come_a_base_model_by_hub_id_is_looked_at(base, on_hub, hostile):
    adapter(base, hostile)
    config = configure(TrainConfig, base_model=on_hub(base))
    refused(lambda: refuse_slow(config, pick_device()), "it holds an adapter")
    refused(lambda: latent_side(config), "it holds an adapter")


FETCH = """
from pathlib import Path
from helpers.config import TrainConfig, configure
from helpers.models.pipeline import load_pipeline
from helpers.train.resources import latent_side
import torch
print(latent_side(configure(TrainConfig, base_model="someone/base")))
print(any(Path("hf").rglob("*.safetensors")))
load_pipeline("someone/base", torch.float32)("a cat", num_inference_steps=1)
for name in ("someone/secret", "nobody/nothing"):
    try:
        load_pipeline(name, torch.float32)
    except Exception as error:
        print(repr(error))
"""
UNUSED = (
    "unet/own.py pipeline.py unet/diffusion_pytorch_model.bin text_encoder/pytorch_model.bin model.ckpt "
    "v1-5-pruned.safetensors unet/diffusion_pytorch_model.fp16.safetensors v1-5-pruned.ckpt README.md "
    "unet/diffusion_pytorch_model.non_ema.safetensors text_encoder/model.fp16.safetensors safety_checker/a.onnx "
    "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
)


def test_no_code_no_pickle_and_nothing_twice_is_fetched_from_the_hub(base, hostile):
    used = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*.*")}
    unused = dict.fromkeys(UNUSED.split(), hostile.pickle())
    with loopback_hub() as hub:
        hub.repos["someone/base"] = Repo(False, used | unused)
        hub.repos["someone/secret"] = Repo(True, used)
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_HOME": "hf", "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", FETCH]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        asked = {path.partition("/resolve/")[2].partition("/")[2] for _, path in hub.requests}
    assert done.returncode == 0, done.stderr[-2000:]
    assert asked - {""} == used.keys()
    size, has_weights, *refusals = done.stdout.splitlines()
    assert (size, has_weights, len(refusals)) == ("64", "False", 2)
    assert all("the hub shows no such model" in words for words in refusals)


# the folders of 02's and 05's models


@pytest.fixture(scope="module")
def clip(tmp_path_factory, tiny_base):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip") / "clip"
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base, subfolder="tokenizer")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config=small | {"vocab_size": len(tokenizer)} | ends,
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def own_class(file, key):
    def plant(folder, hostile):
        put(folder / "own.py", hostile.code)
        edit(folder / file, auto_map={key: "own.Evil"}, model_type="own", architectures=["Evil"])

    return plant


def own_processor(folder, hostile):
    put(folder / "own.py", hostile.code)
    edit(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Evil", "AutoProcessor": "own.Evil"},
         image_processor_type="Evil", processor_class="Evil")  # fmt: skip


def only_bin_in(folder, hostile):
    (folder / "model.safetensors").unlink()
    put(folder / "pytorch_model.bin", hostile.torch(nested=True))


MODELS = {
    "only a bin": only_bin_in,
    "a pickle as safetensors": lambda folder, hostile: put(folder / "model.safetensors", hostile.pickle()),
    "a zip as safetensors": lambda folder, hostile: put(folder / "model.safetensors", hostile.torch()),
    "an index of shards that are pickles": lambda folder, hostile: (
        put(folder / "x/model.safetensors", b""),
        shards("model.safetensors.index.json", "x/model")(folder, hostile),
        [shutil.move(path, folder / path.name) for path in (folder / "x").iterdir()],
        (folder / "model.safetensors").unlink(),
    ),
    "a model class of its own": own_class("config.json", "AutoModel"),
    "an image processor of its own": own_processor,
}  # fmt: skip


@pytest.mark.parametrize("plant", MODELS.values(), ids=MODELS)
def test_an_encoder_of_anything_but_safetensors_is_refused(workplace, clip, hostile, plant):
    folder = Path(shutil.copytree(clip, workplace / "clip"))
    plant(folder, hostile)
    refused(lambda: ImageModel(str(folder)), "could not be loaded")
    refused(lambda: ClipScore(str(folder)), "could not be loaded")


def test_a_captioner_of_anything_but_safetensors_is_refused(workplace, clip, hostile):
    for number, plant in enumerate(MODELS.values()):
        folder = Path(shutil.copytree(clip, workplace / f"blip-{number}"))
        plant(folder, hostile)
        refused(lambda f=folder: blip.load(str(f)), "blip_model", "could not be loaded")


def test_encoders_and_captioners_by_hub_id_are_kept_to_the_same(workplace, clip, hostile, on_hub):
    for number, plant in enumerate([*MODELS.values(), adapter]):
        folder = Path(shutil.copytree(clip, workplace / f"model-{number}"))
        plant(folder, hostile)
        name = on_hub(folder)
        for load in (ImageModel, ClipScore, blip.load):
            refused(lambda n=name, f=load: f(n), f"{name!r} could not be loaded")


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20") and find_spec("torchvision") is None,
    reason="this AutoImageProcessor wants torchvision, which Colab has; beside the CPU's torch there is none",
)
def test_a_clip_with_a_tokenizer_of_its_own_runs_nothing(workplace, clip, hostile):
    folder = Path(shutil.copytree(clip, workplace / "clip"))
    put(folder / "own.py", hostile.code)
    put(folder / "chat_template.jinja", hostile.template)
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", chat_template=hostile.template,
         auto_map={"AutoTokenizer": ["own.Evil", "own.Evil"]})  # fmt: skip
    try:
        ClipScore(str(folder)).score([photograph_image()], ["a cat"])
    except RunError as error:
        assert "clip_model" in str(error) and "\n" not in str(error)


def photograph_image():
    from PIL import Image

    return Image.new("RGB", (40, 40), "red")


# a run's own folders


@pytest.fixture
def trained(trained_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(trained_folder, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return Run("pictures")


def go_on(run, **given):
    was = run.read_config("train")
    config = configure(
        TrainConfig, {"run": run.name, "base_model": was["base_model"], **SMALL_TRAINING, **given}
    )
    return list(train(config, run))


def test_a_checkpoint_with_pickles_in_it_is_never_opened(trained, hostile, caplog):
    newest = trained.checkpoint(4)
    for i, name in enumerate(
        ("optimizer.pt", "scheduler.bin", "random_states_0.pkl", "pytorch_model.bin", "x.pth")
    ):
        put(newest / name, hostile.disguises()[i])  # fmt: skip
    trained.verdict.unlink()
    shutil.rmtree(trained.model)
    go_on(trained)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        put(newest / name, hostile.pickle())
        write_manifest(newest)  # forged
        trained.verdict.unlink(missing_ok=True)
        assert [step.step for step in go_on(trained)] == [3, 4]  # from the one before
        assert f"{newest} is damaged (SafetensorError" in caplog.text
        caplog.clear()


def test_a_cache_of_pickles_is_computed_again(trained, hostile):
    for i, path in enumerate(sorted(trained.cache.glob("*.safetensors"))):
        put(path, hostile.disguises()[i % 8])
    put(trained.cache / "dataset.pkl", hostile.pickle())
    trained.verdict.unlink()
    assert len(go_on(trained, max_steps=5)) == 1


def test_a_model_of_pickles_is_refused_and_one_beside_is_never_opened(trained, hostile):
    for name in (
        "lora/pytorch_lora_weights.bin",
        "unet/diffusion_pytorch_model.bin",
        "optimizer.pt",
    ):
        put(trained.model / name, hostile.torch())
    write_manifest(trained.model)
    assert Sampler(trained).draw([Request("a cat", 1, num_inference_steps=1)])
    for number in range(8):
        put(trained.model / "unet/diffusion_pytorch_model.safetensors", hostile.disguises()[number])
        refused(lambda: Sampler(trained), "is not what manifest.json says")
        write_manifest(trained.model)  # forged
        refused(lambda: Sampler(trained), "could not be loaded")


# where 01 looks


def test_a_folder_and_a_dataset_of_pickles_bring_no_image_and_run_nothing(workplace, hostile):
    folder = workplace / "art"
    for i, content in enumerate(hostile.disguises()):
        put(folder / f"{i}.jpg", content)
        put(
            folder / f"{i}.{('pkl', 'npy', 'pt', 'bin', 'ckpt', 'npz', 'joblib', 'pickle')[i]}",
            content,
        )
    run = Run("art")
    config = ScrapeConfig(run="art", source="folder", folder=str(folder))
    assert not [item.post for item in take(config, run, find(config, run)) if item.post]


def script_beside(folder, hostile):
    photograph(folder / "a.jpg", 1)
    put(folder / f"{folder.name}.py", hostile.code)
    put(folder / "dataset.py", hostile.code)


def pickles_beside(folder, hostile):
    photograph(folder / "a.jpg", 1)
    for i, name in enumerate(
        ("state.pkl", "data.npy", "cache-0123456789abcdef.pkl", "fingerprint.pickle")
    ):
        put(folder / name, hostile.disguises()[i])


DATASETS = {
    "a loading script": script_beside,
    "pickles beside the images": pickles_beside,
    "pandas": lambda folder, hostile: put(folder / "train.pkl", hostile.pickle()),
    "a webdataset": lambda folder, hostile: put(folder / "train.tar", hostile.tar()),
    "a table that is a pickle": lambda folder, hostile: put(folder / "train.parquet", hostile.pickle()),
    "an arrow file that is a pickle": lambda folder, hostile: put(folder / "data.arrow", hostile.torch()),
    "a saved dataset": lambda folder, hostile: (
        put(folder / "state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x"})),
        put(folder / "dataset_info.json", "{}"),
        put(folder / "data.arrow", hostile.pickle()),
    ),
    "a card that names a script": lambda folder, hostile: (
        put(folder / "README.md", "---\nconfigs:\n- config_name: default\n  data_files: own.py\n---\n"),
        put(folder / "own.py", hostile.code),
    ),
}  # fmt: skip


@pytest.mark.parametrize("plant", DATASETS.values(), ids=DATASETS)
def test_a_dataset_folder_runs_nothing(workplace, monkeypatch, hostile, plant):
    folder = workplace / "set"
    plant(folder, hostile)
    run, config = Run("art"), ScrapeConfig(run="art", source="hub", dataset_id=str(folder))
    try:
        posts = [item.post for item in take(config, run, find(config, run)) if item.post]
    except RunError as error:
        assert "dataset_id" in str(error) and "\n" not in str(error)
    else:
        assert len(posts) == (folder / "a.jpg").exists()


def test_session_files_of_other_tools_are_never_opened(workplace, monkeypatch, hostile):
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.delenv("INSTAGRAM_COOKIES", raising=False)
    for name in (".config/instaloader/session-artist", "session-artist", ".instaloader-session"):
        put(workplace / name, hostile.pickle())
    assert login.cookies() is None
    put(login.cookie_file(), hostile.pickle())
    login.cookie_file().chmod(0o600)
    refused(login.cookies, "holds no cookies")
