"""ICC profiles made from primaries, so that none of a vendor's lies in the repository (ICC.1:2001-04)."""

import struct
from collections.abc import Callable

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
WHITES = {"D65": (0.3127, 0.3290), "D50": (0.3457, 0.3585), "D60": (0.32168, 0.33767)}
PRIMARIES = {  # xy of red, green and blue, and the white
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), "D65"),
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), "D65"),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), "D65"),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), "D50"),
    "Rec. 2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), "D65"),
    "wide gamut": ((0.7347, 0.2653), (0.1152, 0.8264), (0.1566, 0.0177), "D50"),
    "ACEScg": ((0.713, 0.293), (0.165, 0.830), (0.128, 0.044), "D60"),
    "ColorMatch": ((0.63, 0.34), (0.295, 0.605), (0.15, 0.075), "D50"),
}
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def rgb_profile(primaries: tuple, gamma: float) -> bytes:
    """A matrix profile whose three channels follow one gamma."""
    *corners, white = primaries
    columns = np.stack([_xyz(xy) for xy in corners], 1)
    source = _xyz(WHITES[white])
    matrix = columns * np.linalg.solve(columns, source)
    cone = np.diag((BRADFORD @ D50) / (BRADFORD @ source))
    adapted = np.linalg.inv(BRADFORD) @ cone @ BRADFORD @ matrix
    tags = {name: _xyz_tag(adapted[:, i]) for i, name in enumerate(("rXYZ", "gXYZ", "bXYZ"))}
    tags |= {name: _gamma(gamma) for name in ("rTRC", "gTRC", "bTRC")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _gamma(gamma)})


def cmyk_profile(ink: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A table profile. `ink` gives Lab (N, 3) for inks (N, 4) from 0 to 1."""
    steps = np.linspace(0, 1, 9)
    inks = np.stack(np.meshgrid(*[steps] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = ink(inks)
    codes = np.stack(
        [lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], 1
    )  # of lut16Type, version 2
    table = codes.round().clip(0, 65535).astype(">u2").tobytes()
    line = struct.pack(">2H", 0, 65535)
    head = b"mft2\0\0\0\0" + bytes([4, 3, len(steps), 0])
    head += struct.pack(">9i", *(np.eye(3) * 65536).astype(int).ravel())
    lut = head + struct.pack(">2H", 2, 2) + line * 4 + table + line * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": lut, "A2B1": lut})


def press(inks: np.ndarray) -> np.ndarray:
    """Lab of inks on paper, as a press roughly has it: each ink takes light away."""
    light = np.array([[0.0, 0.6, 0.9], [0.85, 0.05, 0.45], [0.95, 0.9, 0.0], [0.05, 0.05, 0.05]])
    rgb = np.prod(1 - inks[:, :, None] * (1 - light), axis=1)
    grey = rgb.mean(1)
    return np.stack([20 + 75 * grey, 90 * (rgb[:, 0] - rgb[:, 1]), 90 * (rgb[:, 1] - rgb[:, 2])], 1)


def _xyz(xy: tuple[float, float]) -> np.ndarray:
    x, y = xy
    return np.array([x / y, 1, (1 - x - y) / y])


def _xyz_tag(xyz: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in xyz))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(kind: bytes, space: bytes, between: bytes, tags: dict[str, bytes]) -> bytes:
    words = b"made for a test\0"
    tags = {
        "desc": b"desc\0\0\0\0" + struct.pack(">I", len(words)) + words + bytes(78),
        "cprt": b"text\0\0\0\0none\0",
        "wtpt": _xyz_tag(D50),
    } | tags
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", at + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, kind, space, between)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(v * 65536) for v in D50)) + bytes(48)
    assert len(head) == 128
    return head + struct.pack(">I", len(tags)) + table + body
