"""Layers out of a PyTorch checkpoint, without running what is in it.

``torch.save`` writes a zip of one member per storage and of ``data.pkl``, a pickle: a program whose
instructions name the functions they call.  The names can be read without running anything, so a
file may name only what builds tensors; PyTorch's own restricted loader (``weights_only``) then runs
it.  That loader alone would not do: it also allows functions with which a hundred bytes make a
terabyte.  Members must be stored as they are, so that the file's size bounds memory, and a tensor
that repeats few values through strides of zero counts with all of them.
"""

import pickletools
import re
import warnings
import zipfile
from typing import IO, Any

import numpy as np

from gramnorm import _validate
from gramnorm.report.files.contents import (
    ReadError,
    Stored,
    check_total,
    damage_is,
    one_line,
    printable,
)
from gramnorm.report.files.names import harmless

_PROGRAM = "data.pkl"
_MAY_BE_NAMED = re.compile(
    r"collections OrderedDict|torch Size|torch device|torch\.serialization _get_layout"
    r"|torch\.nn\.parameter Parameter|torch \w+Storage|torch\.storage UntypedStorage"
    r"|torch (u?int\d+|b?float\w+|complex\d+|bool|qu?int\w+|per_\w+_affine)"
    r"|torch\._utils _rebuild_(tensor_v[23]|parameter(_with_state)?|sparse_tensor|qtensor|meta_tensor_no_storage)"
)
_FIRST_SAFE = (
    2,
    10,
)  # before, sizes stated in the file were believed, and memory behind the values read
_NO_CODE = "save only model.state_dict()"


def is_checkpoint(archive: zipfile.ZipFile) -> bool:
    """
    Say whether a zip is one that ``torch.save`` wrote.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Open for reading.

    Returns
    -------
    bool
        Whether the program is in it.
    """
    return any(name.endswith(f"/{_PROGRAM}") for name in archive.namelist())


def read_torch(archive: zipfile.ZipFile, stream: IO[bytes], name: str) -> Stored:
    """Read the tensors of a checkpoint: one, a dict of them, or one such dict within a dict.

    Parameters
    ----------
    archive : zipfile.ZipFile
        The file as a zip.
    stream : binary file
        The file, seekable.
    name : str
        What to call a tensor that has no name of its own.

    Returns
    -------
    Stored
        Tensors, those that are not plain numbers, and entries that are no tensors.

    Raises
    ------
    ReadError
        If the file is damaged, asks for anything but tensors, or torch is missing or too old.
    """
    _check_members(archive)
    loaded = _load(stream)
    stored = Stored(layout="oihw")
    tensors = _dict_of_tensors(loaded, name, stored)
    total = 0
    if len({str(key) for key in tensors}) < len(tensors):  # a number and its digits
        msg = "two entries have the same name"
        raise ReadError(msg)
    for key, tensor in tensors.items():
        if not _is_tensor(tensor):
            kind = type(tensor).__name__
            if "optim" not in str(key) and _within(tensor):
                stored.unusable[str(key)] = (
                    f"a {kind} with tensors in it: save each under a name of its own"
                )
            else:
                stored.others[str(key)] = f"{kind}, not a tensor"
        elif reason := _reason_to_fail(tensor):
            few = harmless(str(key), tensor.ndim)
            (stored.others if few else stored.unusable)[str(key)] = few or reason
        else:
            total += tensor.numel() * max(tensor.element_size(), 4)
            check_total(total)
            stored.arrays[str(key)] = _array(tensor)
    return stored


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuse members that grow when read, and programs that name more than tensors."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            msg = f"a damaged checkpoint: {info.filename!r} is compressed, which torch.save never does"
            raise ReadError(msg)
        if info.filename.rpartition("/")[2] in ("constants.pkl", "code"):
            msg = f"a TorchScript archive, which is code: {_NO_CODE}"
            raise ReadError(msg)
    check_total(sum(info.file_size for info in archive.infolist()))
    (program, *others) = [name for name in archive.namelist() if name.endswith(f"/{_PROGRAM}")]
    if others:
        msg = f"a damaged checkpoint: more than one {_PROGRAM}"
        raise ReadError(msg)
    with damage_is("a damaged checkpoint"):
        for opcode, argument, _ in pickletools.genops(archive.read(program)):
            named = str(argument) if opcode.name in ("GLOBAL", "INST") else opcode.name
            calls_by_name = "GLOBAL" in opcode.name or opcode.name in (
                "INST",
                "EXT1",
                "EXT2",
                "EXT4",
            )
            if calls_by_name and not _MAY_BE_NAMED.fullmatch(named):
                msg = f"it asks for {'.'.join(named.split())}, and only tensors are loaded; nothing was run: {_NO_CODE}"
                raise ReadError(msg)


def _load(stream: IO[bytes]) -> Any:
    """Return what PyTorch's restricted loader makes of the file, on the host."""
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        msg = f"PyTorch checkpoints need the package torch: {_validate.install('torch')}"
        raise ReadError(msg) from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _FIRST_SAFE:
        msg = (
            f"checkpoints are read with torch 2.10 or newer, found {torch.__version__}: older ones believe the sizes "
            "that a file states; upgrade torch, or save the weights as safetensors"
        )
        raise ReadError(msg)
    stream.seek(0)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: whatever the instructions in a damaged file lead to
        msg = f"a damaged checkpoint ({one_line(error)[:200]})"
        raise ReadError(msg) from error


def _dict_of_tensors(loaded: Any, name: str, stored: Stored) -> dict[Any, Any]:
    """Return the dict that holds the tensors, and note it if that is not the whole."""
    if _is_tensor(loaded):
        return {name: loaded}
    if not isinstance(loaded, dict):
        msg = f"it holds a {type(loaded).__name__}, not a dict of tensors: {_NO_CODE}"
        raise ReadError(msg)
    candidates: list[tuple[str, dict[Any, Any]]] = [
        (str(key), value) for key, value in loaded.items() if _holds_weights(value)
    ]
    if _holds_weights(loaded):
        candidates.append(("the whole", loaded))
    if len(candidates) > 1:
        names = ", ".join(printable(key) for key, _ in candidates)
        msg = f"it holds several dicts of tensors ({names}): save the one to report on by itself"
        raise ReadError(msg)
    for key, tensors in candidates:
        if tensors is not loaded:
            stored.notes.append(f"read the entry {key!r} of the checkpoint")
            others = [str(other) for other in loaded if str(other) != key]
            stored.others.update(dict.fromkeys(others, f"beside the entry {key!r}"))
        return tensors
    return loaded


def _holds_weights(value: Any) -> bool:
    """Say whether this is a dict of tensors among which there are layers."""
    return isinstance(value, dict) and any(_is_tensor(v) and v.ndim > 1 for v in value.values())


def _within(value: Any) -> bool:
    """Say whether there are weights at any depth of this, which may hold itself."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        value = rest.pop()
        if _is_tensor(value) and value.ndim > 1:
            return True
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            rest.extend(value.values() if isinstance(value, dict) else value)
    return False


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _reason_to_fail(tensor: Any) -> str | None:
    """Return why a tensor has no plain numbers, or None."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "it has no values (it was saved on the meta device)"
    if str(tensor.layout) != "torch.strided":
        return f"it is sparse ({tensor.layout}): save its to_dense()"
    if tensor.is_quantized or not re.fullmatch(
        r"u?int(8|16|32|64)|b?float(16|32|64)?|complex(32|64|128)|bool", kind
    ):
        return f"type {kind}: such numbers are scaled, so they are not the weight; save it as bfloat16 or wider"
    return None


def _array(tensor: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the values as a NumPy array.

    What NumPy has no type for in the next wider one, which holds it.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    name = str(tensor.dtype)
    if name.endswith("bfloat16"):
        return np.asarray(tensor.float().numpy())
    if name.endswith("complex32"):
        parts = tensor.imag.float().numpy(), tensor.real.float().numpy()
        return np.asarray(parts[1] + 1j * parts[0], dtype=np.complex64)
    return np.asarray(tensor.numpy())
