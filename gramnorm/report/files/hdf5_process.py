"""The arrays of an HDF5 file, read in a process of its own.

The HDF5 library believes what a file says: of 6000 damaged ones a dozen made it crash or never
return.  So it runs where neither does harm, under limits of memory and time, and hands over plain
numbers: a line of JSON that lists them, then their bytes.  Only what lies in the file as it is gets
read: no chunks, which a filter may blow up, no other files, no links but those to objects.

This is run as a script and imports nothing of the package.
"""

import json
import sys
from typing import Any

import h5py
import numpy as np

_CONTIGUOUS = (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS)
_TEXTS = ("name", "model_config", "dtype", "layer_names")  # attributes that say something


def main(limits: dict[str, int]) -> None:
    """Read the file on standard input."""
    _limit(limits)
    with h5py.File(sys.stdin.buffer, "r") as file:
        found, datasets = _listed(file, limits)
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        for dataset in datasets:
            values = np.ascontiguousarray(dataset[()])
            values = values.view(np.uint16) if values.dtype.kind == "V" else values
            sys.stdout.buffer.write(np.ascontiguousarray(values, _plain(dataset)).data)
    sys.stdout.buffer.flush()


def _limit(limits: dict[str, int]) -> None:
    """Let the system end this process if it needs too much; where it cannot, the parent waits."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        unlimited = hard == resource.RLIM_INFINITY
        resource.setrlimit(kind, (most if unlimited else min(most, hard), hard))


def _listed(file: Any, limits: dict[str, int]) -> tuple[dict[str, Any], list[Any]]:
    """Return what is in the file by its path, and the datasets to read."""
    found: dict[str, Any] = {"arrays": [], "failed": {}, "others": {}, "texts": {}, "error": None}
    datasets, total, visits = [], 0, 0
    rest = [("", file)]
    while rest:
        path, place = rest.pop()
        visits += 1
        if visits > limits["visits"] or path.count("/") > limits["depth"]:
            found["error"] = "it has too many entries, nested too deep or in themselves"
            return found | {"arrays": []}, []
        if texts := _texts(place, limits):
            found["texts"][path] = texts
        if isinstance(place, h5py.Group):
            inside = [(key, place.get(key, getlink=True)) for key in place]
            for key, link in reversed(inside):
                inner = f"{path}/{key}" if path else key
                if isinstance(link, h5py.HardLink):
                    rest.append((inner, place[key]))
                else:
                    found["failed"][inner] = "a link to elsewhere, which is not followed"
        elif not isinstance(place, h5py.Dataset) or place.shape is None:
            found["others"][path] = "no array"
        elif not _is_numeric(np.dtype(place.dtype)):
            found["others"][path] = f"dtype {np.dtype(place.dtype).kind!r} is not numeric"
        elif reason := _reason_to_fail(place):
            found["failed"][path] = reason
        else:
            total += place.id.get_storage_size()
            if total > limits["bytes"]:
                found["error"] = f"its arrays need more than the limit of {limits['bytes']} bytes"
                return found | {"arrays": []}, []
            found["arrays"].append([path, _plain(place).str, place.shape])
            datasets.append(place)
    return found, datasets


def _texts(place: Any, limits: dict[str, int]) -> dict[str, str]:
    """Return those attributes that are texts."""
    found = {}
    for key in filter(place.attrs.__contains__, _TEXTS):
        if place.attrs.get_id(key).get_storage_size() > limits["text"]:
            continue
        value = place.attrs[key]
        value = value.decode() if isinstance(value, bytes) else value
        found[key] = value if isinstance(value, str) and len(value) <= limits["text"] else ""
    return found


def _plain(dataset: Any) -> np.dtype[Any]:
    """Return the type in which the numbers are handed over, bfloat16 as its bits."""
    dtype = np.dtype(dataset.dtype)
    return np.dtype("<u2") if dtype.kind == "V" else dtype.newbyteorder("<")


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    """Say whether entries are plain numbers, or two bytes each, as those of bfloat16."""
    if dtype.kind == "V":
        return dtype.itemsize == 2 and dtype.names is None
    return dtype.kind in "fciub" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def _reason_to_fail(dataset: Any) -> str | None:
    """Return why the numbers of a dataset are not read, or None."""
    created = dataset.id.get_create_plist()
    if created.get_layout() not in _CONTIGUOUS or created.get_external_count():
        return "stored in chunks or in other files: write it with h5py's create_dataset(name, data=...)"
    stated = dataset.dtype.itemsize * int(np.prod(dataset.shape, dtype=object))
    there = dataset.id.get_storage_size()
    if stated != there:
        return (
            f"it states shape {dataset.shape} of {dataset.dtype}, {stated} bytes, but holds {there}"
        )
    return None


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
