"""Layers out of a PyTorch checkpoint, without running what is in it.

``torch.save`` writes a zip of one member per storage and of ``data.pkl``, a pickle: a program whose
instructions name the functions they call.  The names can be read without running anything.  Those
that build tensors are left to PyTorch's own restricted loader (``weights_only``); each other name
is bound, for that loader, to a class of ours that only keeps what it is given, so that a
configuration or a NumPy scalar beside the weights is passed over.  The loader alone would not do:
it also knows functions with which a hundred bytes make a terabyte, and a file that names them is
refused.  Members must be stored as they are, so that the file's size bounds memory, and a tensor
that repeats few values through strides of zero counts with all of them.
"""

import _compat_pickle
import codecs
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from gramnorm import _validate
from gramnorm.report.files.contents import (
    ReadError,
    Stored,
    check_total,
    damage_is,
    one_line,
)
from gramnorm.report.files.names import SCALES, VARIANCES, harmless, parsed
from gramnorm.report.files.tree import chosen, leaves, picked

_PROGRAM = "data.pkl"
_BUILDS_TENSORS = re.compile(
    r"collections OrderedDict|collections Counter|torch Size|torch device|torch\.serialization _get_layout"
    r"|torch\.nn\.parameter Parameter|torch \w+Storage|torch\.storage UntypedStorage"
    r"|torch (u?int\d+|b?float\w+|complex\d+|bool|qu?int\w+|per_\w+_affine)"
    r"|torch\._utils _rebuild_(tensor_v[23]|parameter(_with_state)?|sparse_tensor|qtensor|meta_tensor_no_storage)"
)
_BYTES = "_codecs encode"  # as which old pickles spell bytes, those of NumPy scalars among them
_PLAIN_CODECS = ("iso8859-1", "ascii", "utf-8")  # do not make more of a text than it is
_BLOCKED = ("sys", "os", "posix", "nt", "builtins", "__builtin__")  # no data has such a class
_IS_DICT = re.compile(r"(.*\.)?\w*[Dd]ict")
_HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|numpy\.(_?core\.)multiarray\.scalar"
)
_FIRST_SAFE = (
    2,
    10,
)  # before, sizes stated in the file were believed, and memory behind the values read
_NO_CODE = "save only model.state_dict()"
_OF_SCRIPTS = ("constants.pkl", "bytecode.pkl")


def is_checkpoint(archive: zipfile.ZipFile) -> bool:
    """
    Say whether a zip is one that PyTorch wrote.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Open for reading.

    Returns
    -------
    bool
        Whether a program is in it.
    """
    return any(
        re.fullmatch(rf"[^/]+/({_PROGRAM}|archive_format)", name) for name in archive.namelist()
    )


def read_torch(
    archive: zipfile.ZipFile, stream: IO[bytes], name: str, *, entry: str | None = None
) -> Stored:
    """Read the tensors of a checkpoint: one, a dict of them, or one such dict within dicts.

    Parameters
    ----------
    archive : zipfile.ZipFile
        The file as a zip.
    stream : binary file
        The file, seekable.
    name : str
        What to call a tensor that has no name of its own.
    entry : str or None
        Which dict to read, if there are several: its keys with dots between.

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
    loaded = _load(stream, _names(archive))
    stored = Stored(layout="oihw")
    total = 0
    for key, value in _entries(loaded, name, entry, stored).items():
        if not _is_tensor(value):
            reason = _about_object(key, value)
            (stored.unusable if reason else stored.others)[key] = (
                reason or f"{_kind(value)}, not a tensor"
            )
        elif reason := _reason_to_fail(value):
            few = harmless(key, value.ndim)
            (stored.others if few else stored.unusable)[key] = few or reason
        else:
            total += value.numel() * max(value.element_size(), 4)
            check_total(total)
            stored.arrays[key] = _array(value)
    return stored


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuse programs of other kinds, and members that grow when read."""
    for path in archive.namelist():
        member = path.rpartition("/")[2]
        if member in _OF_SCRIPTS:
            msg = (
                "a TorchScript archive, which is a program (nothing was run): "
                "save torch.jit.load(FILE).state_dict() with torch.save"
            )
            raise ReadError(msg)
        if member == "archive_format":
            msg = (
                "an archive of torch.export, which is a program (nothing was run): "
                "save torch.export.load(FILE).state_dict with torch.save"
            )
            raise ReadError(msg)
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            msg = f"a damaged checkpoint: {info.filename!r} is compressed, which torch.save never does"
            raise ReadError(msg)
    check_total(sum(info.file_size for info in archive.infolist()))


def _names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names in the program that build no tensors, such as "argparse Namespace"."""
    (program, *others) = [name for name in archive.namelist() if name.endswith(f"/{_PROGRAM}")]
    if others:
        msg = f"a damaged checkpoint: more than one {_PROGRAM}"
        raise ReadError(msg)
    named, texts, calls = dict[str, None](), {""}, 0
    # pickletools warns of odd escapes in names, which PyTorch reads as they are, and then refuses
    with damage_is("a damaged checkpoint"), warnings.catch_warnings(action="ignore"):
        for opcode, argument, _ in pickletools.genops(archive.read(program)):
            if opcode.name == "GLOBAL":
                named[str(argument)] = None
            elif "GLOBAL" in opcode.name or opcode.name in ("INST", "EXT1", "EXT2", "EXT4"):
                _refuse(opcode.name)
            calls += opcode.name == "REDUCE"
            if isinstance(argument, str | bytes):
                texts.add(argument if isinstance(argument, str) else argument.decode("latin1"))
    if _BYTES in named:
        _check_texts(texts, calls)
    return [n for n in named if n != _BYTES and not _BUILDS_TENSORS.fullmatch(n)]


def _check_texts(texts: set[str], calls: int) -> None:
    """Refuse texts that encoding might make longer again and again."""
    check_total(calls * max(map(len, texts)))
    for text in texts:
        try:
            plain = codecs.lookup(text).name in _PLAIN_CODECS
        except (LookupError, ValueError, UnicodeError):
            continue
        if not plain:
            _refuse(f"encoding as {text}")


def _refuse(name: str) -> None:
    msg = f"it asks for {name}, and only tensors are loaded; nothing was run: {_NO_CODE}"
    raise ReadError(msg)


class _Unloaded:
    """What stands in for an object of a class that is not loaded, with what it would be made of."""

    label = ""

    def __new__(cls, *parts: Any) -> "_Unloaded":
        made = super().__new__(cls)
        made.parts = list(parts)
        if parts and isinstance(parts[0], type) and issubclass(parts[0], _Unloaded):
            made.label = parts[0].label  # the function makes an object of this class
        return made

    parts: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)


def _as_dict(*parts: Any) -> Any:
    """Return the plain dict in place of a dict of another kind, which the loader fills."""
    return OrderedDict(pair for part in parts if isinstance(part, dict) for pair in part.items())


def _stand_ins(named: list[str], unknown: set[str]) -> Iterator[tuple[Any, str]]:
    """Return what to call in the place of each name; refuse those that PyTorch would call."""
    foreign = [name for name in named if not _HARMLESS.fullmatch(name.replace(" ", "."))]
    for name in named:
        module, _, rest = name.partition(" ")
        path = ".".join(_compat_pickle.NAME_MAPPING.get((module, rest), (module, rest)))
        if path not in unknown or (module in _BLOCKED and path != "builtins.int"):
            _refuse((foreign or [name])[0].replace(" ", "."))  # this one may be a detail of it
        if _IS_DICT.fullmatch(path):
            yield type(path, (), {"__new__": lambda _, *parts: _as_dict(*parts)}), path
        else:
            yield type(path, (_Unloaded,), {"label": path}), path


def _load(stream: IO[bytes], named: list[str]) -> Any:
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
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
        stand_ins: list[Any] = [*_stand_ins(named, unknown)]
        stream.seek(0)
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(stand_ins),
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # of many kinds: whatever the instructions in a damaged file lead to
        msg = f"a damaged checkpoint ({one_line(error)[:200]})"
        raise ReadError(msg) from error


def _entries(loaded: Any, name: str, entry: str | None, stored: Stored) -> dict[str, Any]:
    """Return the dict to read, and note it if that is not the whole."""
    if _is_tensor(loaded):
        return {name: loaded}
    if not isinstance(loaded, dict) or _hides(loaded):
        msg = f"it holds a {_kind(loaded)}, not a dict of tensors (nothing was run): {_NO_CODE}"
        raise ReadError(msg)
    ends = leaves(loaded, lambda key, value: not (_is_optimizer(key, value) or _hides(value)))
    dicts = {path[:depth] for path, _ in ends for depth in range(len(path))}
    prefix = chosen(dicts, dict.fromkeys(p[:-1] for p, v in ends if _is_weight(p[-1], v)), entry)
    if prefix:
        stored.notes.append(f"read the entry {'.'.join(prefix)!r} of the checkpoint")
    own, beside = picked(ends, prefix, ".")
    stored.others.update(beside)
    return own


def _is_optimizer(key: str, value: dict[Any, Any]) -> bool:
    return "optim" in key or {"state", "param_groups"} <= value.keys()


def _hides(value: dict[Any, Any]) -> bool:
    """Say whether there are weights among the attributes of what is read as a plain dict."""
    return _within([part for name, part in _attributes(value).items() if name != "_metadata"])


def _attributes(value: Any) -> dict[str, Any]:
    return vars(value) if isinstance(value, OrderedDict) else {}


def _is_weight(key: str, value: Any) -> bool:
    """Say whether a dict with such an entry is one of layers, or of one layer."""
    if _is_tensor(value):
        return value.ndim > 1 or (value.ndim == 1 and parsed(key).word in (*SCALES, *VARIANCES))
    return isinstance(value, _Unloaded) and _within(value)


def _about_object(key: str, value: Any) -> str | None:
    """Return why something that is no tensor leaves a hole among the layers, or None."""
    if "optim" in key or (isinstance(value, dict) and _is_optimizer(key, value)):
        return None
    kind = _kind(value)
    if isinstance(value, _Unloaded) and not _HARMLESS.fullmatch(kind):
        return f"a {kind}, which is not loaded: save its numbers as a tensor, of a model only model.state_dict()"
    return (
        f"a {kind} with tensors in it: save each under a name of its own"
        if _within(value)
        else None
    )


def _kind(value: Any) -> str:
    return value.label if isinstance(value, _Unloaded) else type(value).__name__


def _within(value: Any) -> bool:
    """Say whether there are weights at any depth of this, which may hold itself."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        value = rest.pop()
        if _is_tensor(value) and value.ndim > 1:
            return True
        if isinstance(value, dict | list | tuple | _Unloaded) and id(value) not in seen:
            seen.add(id(value))
            rest.extend(_attributes(value).values())
            value = value.parts if isinstance(value, _Unloaded) else value
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
