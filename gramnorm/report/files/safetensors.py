"""Layers out of a safetensors file.

Such a file is the length of a header, the header (JSON with dtype, shape and place of each tensor)
and the raw values. The library checks that the places cover the file exactly and fit the shapes, so
memory is bounded by the file's size; no code can be in it.  The order in the file is the writer's,
by alignment: layers are listed by name, numbers in names by value.  NumPy has no bfloat16: its bits
are the upper half of a float32, which therefore holds it exactly.
"""

import json
import re
import sys
from typing import IO, Any

import numpy as np

from gramnorm import _validate
from gramnorm.report.files.contents import ReadError, Stored, check_total, one_line, widened
from gramnorm.report.files.names import harmless

_TYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
    "C64": "<c8",
}
_FORMATS = {"pt": "oihw", "mlx": "ohwi", "tf": "hwio", "flax": "hwio", "keras": "hwio"}


def is_safetensors(head: bytes, size: int) -> bool:
    """
    Say whether a file is one of safetensors: there is no magic, but a length, and JSON behind it.

    Parameters
    ----------
    head : bytes
        The first nine bytes of the file, or more.
    size : int
        Bytes of the file.

    Returns
    -------
    bool
        Whether the header begins and can end within the file.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(stream: IO[bytes]) -> Stored:
    """Read the tensors of a safetensors file; of its metadata only "format", the writer's library.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its beginning.

    Returns
    -------
    Stored
        Tensors, and those whose type is not a number by itself.

    Raises
    ------
    ReadError
        If the file is damaged or the library is missing.
    """
    try:
        import safetensors  # noqa: PLC0415
    except ImportError as error:
        msg = f"safetensors files need the package safetensors: {_validate.install('safetensors')}"
        raise ReadError(msg) from error
    content = stream.read()
    try:
        tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        msg = f"a damaged safetensors file ({one_line(error)})"
        raise ReadError(msg) from error
    stored = Stored(layout=_FORMATS.get(_format(content)))
    # bfloat16 doubles in size
    check_total(sum(len(t["data"]) * (1 + (t["dtype"] == "BF16")) for _, t in tensors))
    for name, tensor in sorted(tensors, key=lambda entry: _by_number(entry[0])):
        if tensor["dtype"] == "BF16" or tensor["dtype"] in _TYPES:
            stored.arrays[name] = _values(tensor)
        elif reason := harmless(name, len(tensor["shape"])):
            stored.others[name] = reason
        else:
            stored.unusable[name] = (
                f"type {tensor['dtype']}, shape {tuple(tensor['shape'])}: such numbers are scaled by what stands "
                "elsewhere, so they are not the weight; save it as bfloat16 or wider"
            )
    return stored


def _format(content: bytes) -> str:
    """Return the text "format" of the metadata in a file that has been checked, or none."""
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    return str(metadata.get("format", ""))


def _values(tensor: dict[str, Any]) -> Any:
    """Return the values of a tensor in the machine's byte order."""
    if tensor["dtype"] == "BF16":
        flat: np.ndarray[Any, np.dtype[Any]] = widened(np.frombuffer(tensor["data"], "<u2"))
    else:
        flat = np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]])
        flat = flat if sys.byteorder == "little" else flat.astype(flat.dtype.newbyteorder("="))
    return flat.reshape(tensor["shape"])


def _by_number(name: str) -> tuple[Any, ...]:
    """Return a key that sorts "layer2" before "layer10"."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)  # texts and digits in turn
    digits = [part.lstrip("0") for part in parts[1::2]]
    return [(t, len(d), d) for t, d in zip(parts, [*digits, ""], strict=False)], name
