"""Access to Kaggle: its Secrets, the folder that becomes a notebook's output, and outputs that are attached.

This is the only module that knows Kaggle. Its image is made from Colab's and says so, which is why it is asked first.
"""

import os
from pathlib import Path

from helpers.core.errors import RunError
from helpers.host.interface import FOLDER, Host, Place

ROOT = Path("/kaggle")
WORKING, INPUT = ROOT / "working", ROOT / "input"
RUN_TYPE = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")  # Interactive or Batch
# an input is input/SLUG or input/notebooks/USER/SLUG; an upload's run may lie less deep than an output's
INPUTS = ("*", "*/*/*")
ATTACHED = [f"{top}/{inside}" for top in INPUTS for inside in (FOLDER, "runs", "")]
KINDS = ("datasets", "notebooks")  # folders of INPUT that are no input themselves
SWITCH_ON = "in the panel at the right, under *Session options*, switch *Internet* on"
ATTACH = "attach it to this notebook under *Add-ons*, *Secrets*"
IN_BATCH = "; it is the output of this version, which another notebook takes by *Add Input*"
BY_HAND = "; it stays if you *Save Version* with its output, and ends with this session if not"
IF_LONGER = (
    "a session lasts 12 hours at most, and a saved version that takes longer may keep nothing: lower max_steps, or "
    "train by tools/kaggle_batch.py, which stops in time and goes on in the next version"
    if RUN_TYPE == "Batch"
    else "a session lasts 12 hours at most: *Save Version* with its output before that, attach it by *Add Input*, "
    "and run this notebook again: it resumes"
)


def attached(run: str) -> list[Path]:
    """Return the folders under /kaggle/input that may hold a mirror of the run."""
    places = [f"{place}/{run}".replace("//", "/") for place in ATTACHED]
    return sorted({path for place in places for path in INPUT.glob(place)})


def why_none_attached(run: str) -> str:
    """Return how to attach a run, with the names of those that are attached."""
    runs = sorted({path.name for top in INPUTS for path in INPUT.glob(f"{top}/{FOLDER}/*")})
    others = f" (attached: {', '.join(runs)})" if runs else ""
    return (
        f"; if {run} was begun in another notebook, *Add Input*, *Your Work*, its version{others}"
    )


def why_missing(path: Path) -> str:
    """Return what is attached if a path under /kaggle/input is not there, and "" for other paths."""
    if INPUT not in path.absolute().parents:
        return ""
    inputs = [path for path in INPUT.glob("*") if path.name not in KINDS]
    inputs += [path for kind in KINDS for path in INPUT.glob(f"{kind}/*/*")]
    listed = ", ".join(map(str, sorted(inputs)))
    return f"; attached are {listed}" if listed else "; nothing is attached: *Add Input*, *Upload*"


def ask_secret(name: str) -> str:
    """Return a value from Kaggle's Secrets, or "" if it is not attached. Raises RunError if it cannot be read."""
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret(name)
    except Exception as error:  # its own, and ConnectionError for whatever HTTP status
        status = getattr(error.__cause__, "code", None)
        if type(error).__name__ == "BackendError" and status is None:
            return ""
        if status in (401, 403):
            raise RunError(
                f"{name} is not open to this notebook: {ATTACH}, and run this cell again"
            ) from None
        why = f"HTTP {status}" if status else type(error).__name__
        raise RunError(
            f"{name}: Kaggle's Secrets did not answer ({why}): {SWITCH_ON} and run this cell again, or set "
            f"the environment variable {name}"
        ) from None


HOST = Host(
    name="Kaggle",
    is_here=lambda: RUN_TYPE is not None,
    is_rented=True,
    place=Place(
        WORKING,
        name=str(WORKING),
        note=IN_BATCH if RUN_TYPE == "Batch" else BY_HAND,
        if_full="it takes 20 GB; lower keep_checkpoints, or delete what else lies there",
        if_gone="restart the session",
        if_taken_down="the outputs of this notebook's saved versions keep it: delete those versions",
    ),
    why_missing=why_missing,
    earlier=attached,
    why_none_earlier=why_none_attached,
    ask_secret=ask_secret,
    how_to_set=lambda name: ATTACH,
    session_hours=12,
    if_longer=IF_LONGER,
    if_offline=f"; {SWITCH_ON}",
    if_it_fails="under *Session options* choose another *Environment*",
    advice=(
        "session    of 12 hours at most, about 30 hours of GPU a week; what is in /kaggle/working stays with a saved "
        "version alone",
        "copy       a notebook opened by its badge is yours; *Save Version* keeps what you type",
        "headless   *Save Version*, *Save & Run All* runs this notebook without you, as it stands",
        f"pictures   a folder of yours: *Add Input*, *Upload*; give its path under {INPUT} (in the list at the right)",
        "secrets    under *Add-ons*, *Secrets*, each one attached to this notebook",
        "GPU        under *Session options*, *Accelerator*, *GPU T4 x2*: 04 trains on both",
        "next       in the next notebook *Add Input*, *Your Work*, and this notebook's saved version: it finds this "
        "run there",
    ),
    badge="[![Open In Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    "(https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/notebooks/{notebook})",
)
