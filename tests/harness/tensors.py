"""Files of safetensors, written from the words of the format's description."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CODES = {
    **{f"F{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "b1",
    "C64": "c8",
}
"""The types of the format, by the types of NumPy that they are."""


def write_safetensors(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays, or pairs of a type's name and an array of its bits."""
    names = {np.dtype(code): name for name, code in CODES.items()}
    header: dict[str, Any] = {}
    data, end = [], 0
    for name, given in arrays.items():
        kind, values = given if isinstance(given, tuple) else (names[given.dtype], given)
        data.append(np.ascontiguousarray(values).tobytes())
        places = [end, end + len(data[-1])]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": places}
        end += len(data[-1])
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.writelines(data)
    return path
