"""The laws of the house, read off the code itself."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "helpers").rglob("*.py"))
STAGES = ("scrape", "caption", "dataset", "train", "inference")
# each room imports from those before it, never from one after; the five stages never from one another
ROOMS = ("core", "config", "host", "mirror", "models", "figures", "demo", STAGES, "batch.py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT / "helpers").parts[0]


def height(room: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS) if room == rooms or room in rooms)


def import_graph() -> dict[str, set[str]]:
    """What each module imports when it is imported itself, of this project."""
    names = {module_name(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        found = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
        taken = {f"{n.module}.{a.name}" for n in found for a in n.names} | {n.module for n in found}
        graph[name] = {other for other in taken if other in names}
    return graph


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_house_is_seen_at_a_glance():
    entries = [p for p in (ROOT / "helpers").iterdir() if p.name != "__pycache__"]
    assert len(entries) <= 14, sorted(p.name for p in entries)


def test_a_step_is_read_in_four_files():
    files = [f"helpers/train/{name}.py" for name in ("trainer", "data", "loss", "optim")]
    named = (ROOT / "CONTRIBUTING.md").read_text().split("## How one step is read")[1]
    assert all(name in named.split("## ")[0] for name in files)
    assert sum(len((ROOT / name).read_text().splitlines()) for name in files) <= 700


def test_no_two_files_share_a_name_but_the_doors():
    names = [path.name for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
    assert sorted(names) == sorted(set(names))


def test_no_module_imports_itself_by_way_of_others():
    graph = import_graph()
    for name in graph:
        reached, new = set(), graph[name]
        while new:
            reached |= new
            new = set().union(*(graph[other] for other in new)) - reached
        assert name not in reached


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
class TestEveryModule:
    def test_a_room_imports_from_lower_ones_alone(self, path):
        if room(path) == "__init__.py":
            return
        named = [name.split(".")[1] for name in imports(path) if name.startswith("helpers.")]
        others = {other for other in named if other != room(path)}
        assert all(height(other) < height(room(path)) for other in others), others

    def test_each_host_is_imported_by_its_module_alone(self, path):
        if path.name != "colab.py":
            assert not any(name.startswith("google") for name in imports(path))
        if path.name != "kaggle.py":
            assert not any(name.startswith("kaggle") for name in imports(path))

    def test_nothing_is_pickled(self, path):
        assert not {"pickle", "dill", "shelve", "joblib"} & imports(path)
        assert "torch.load" not in path.read_text()

    def test_it_says_what_it_is_for(self, path):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body

    def test_every_signature_is_typed(self, path):
        for node in ast.walk(ast.parse(path.read_text())):
            is_kernel = "triton.jit" in str(
                [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
            )
            if isinstance(node, ast.FunctionDef) and not is_kernel:
                untyped = [a.arg for a in node.args.args + node.args.kwonlyargs if not a.annotation]
                assert set(untyped) <= {"self", "cls"} and node.returns, node.name


@pytest.mark.parametrize(
    "name", ["scrape.ingest", "caption.ledger", "dataset.build", "dataset.curate"]
)
def test_the_first_three_rooms_load_without_torch(name):
    code = f"import sys, helpers.{name}; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_each_host_is_known_to_one_module():
    """What a user is told, too: no text of another module names a host, its Drive or its folders."""
    for path in MODULES:
        texts = [
            node.value
            for node in ast.walk(_without_docstrings(ast.parse(path.read_text())))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for word in ("Colab", "/content", "Kaggle", "/kaggle", "Drive"):
            known = path.name in ("colab.py", "kaggle.py") and word.lower().strip("/") in path.stem
            known |= path.name == "colab.py" and word in ("/content", "Drive")
            assert known or not any(word in text for text in texts), (path, word)
    for path in (ROOT / "helpers").rglob("*.j2"):
        assert not re.search("colab|kaggle|google|drive", path.read_text(), re.IGNORECASE), path


def test_nothing_is_named_for_which_colab_ends_a_free_runtime():
    """Web interfaces in a tunnel, keep-alive tricks, and the name of A1111's repository."""
    shown = [*MODULES, *(ROOT / "helpers").rglob("*.j2"), ROOT / "README.md"]
    banned = "stable-diffusion-" + "webui|automatic1111|a1111|ngrok|cloudflared|gradio|setInterval"
    for path in (*shown, *(ROOT / "notebooks").glob("*.ipynb")):
        assert not re.search(banned, path.read_text(), re.IGNORECASE), path


def test_the_run_folder_is_known_to_one_module():
    names = (
        "posts.jsonl",
        "captions.jsonl",
        "train_log.jsonl",
        "report.html",
        "metadata.csv",
        "runs/",
    )
    for path in MODULES:
        if path.name != "run.py":
            code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
            found = [name for name in names if f"/ '{name}'" in code or f"Path('{name}')" in code]
            assert not found, path


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def test_no_cuda_package_is_pinned():
    pins = (ROOT / "tests/constraints.txt").read_text()
    assert not re.search(r"nvidia|cuda|triton", pins.split("\n", 1)[1], re.IGNORECASE)
    assert "torch==2.13.0\n" in pins


def test_the_base_model_is_small_and_what_its_hashes_say():
    from helpers.core.files import find_corruption

    base = ROOT / "assets/tiny-sd"
    assert find_corruption(base) is None
    assert sum(f.stat().st_size for f in base.rglob("*") if f.is_file()) <= 10e6
    assert not [f for f in base.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt")]
    index = json.loads((base / "model_index.json").read_text())
    assert {index[part][1] for part in ("vae", "text_encoder", "unet")} == {
        "AutoencoderKL",
        "CLIPTextModel",
        "UNet2DConditionModel",
    }
