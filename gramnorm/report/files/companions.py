"""Layers whose weight is not the array of that name, since something beside it takes part.

Scales, or an adapter.

Quantised weights are integers, or narrow floats, and scales and offsets that stand elsewhere; how
they are packed differs from library to library.  Adapters add a product of two thin matrices, times
a factor that the file does not hold.  Neither is undone here: the layer is refused by name.
"""

import re

from gramnorm.report.files.draft import Draft

_PATH = r"(?P<path>(?:.*?[./])?)"
# A suffix of a name shows that the weight without it is quantised, ...
_SCALES = re.compile(
    rf"{_PATH}(?P<weight>[^./]+?)_(?:scales?|scale_inv|scale_2|global_scale|zero_points?|zeros|packed|blocks|qdata"
    r"|g_idx|shape)"
)
# ... these are entries of a layer that is, ...
_LAYER_IS = re.compile(
    rf"{_PATH}(?:SCB|CB|qweight|qzeros|g_idx|W_q|scale_weight|weights?_scaling_factor|_packed_params(?:[./].*)?|weight_fake_quant[./].*|weight_quant[./].*"
    r"|\w*weight_quantizer[./].*)"
)
# ... these of a tensor that is, ...
_TENSOR_IS = re.compile(
    r"(?P<tensor>.*?)(?:[./](?:(?:nested_)?(?:absmax|quant_map)|quant_state[./].*|_data|_scale|_shift|_zeropoint)"
    r"|:(?:_?q?data|scale|zero_point|_.*))"
)
# ... and these only beside a weight: in the first case of any type, in the second of integers.
_BESIDE = re.compile(
    rf"{_PATH}(?:zero_point|scale_input|activation_scaling_factor|(?:input|output|act|activation)_(?:(?:global_)?scale|zero_point|amax))"
)
_BESIDE_INTEGERS = re.compile(rf"{_PATH}(?:scales?|biases|zeros?|zero_points?)")
_PACKED = ("packed", "blocks", "qdata")

_ADAPTER = re.compile(
    r"(?P<path>.*?)[._/]?(?:(?<![^._/])lora_(?:[ABEab]|up|down|mid|embedding_[AB]|magnitude_vector)"
    r"|(?<![^._/])lora[._/](?:up|down|linear_layer[./](?:up|down))|(?<![^._/])(?:hada_w[12]_[ab]|lokr_w[12](?:_[ab])?"
    r"|lokr_t2|hada_t[12]|ia3_l|oft_\w+|boft_\w+|vera_\w+|dora_scale))(?:[._/].*)?"
)
# vectors by which a spectral norm is estimated at each use; the gain of standardised weights has
# all axes of them
_ESTIMATES = re.compile(rf"{_PATH}(?:(?:u|sv)\d*|(?P<gain>gain))")
_FLAX = re.compile(r"(?:.*[./])?(?P<tail>[^./]+[./](?:kernel|embedding|w))[./](?:u|sigma|scale)")
_TAIL = re.compile(r"(?:.*[./])?([^./]+[./][^./]+)")

_PLAIN = "save the weight that the layer uses"
_DEQUANTISE = "save the weight itself, in bfloat16 or wider"
_MERGE = "merge the adapter (merge_and_unload), then save"


def refuse_quantised(draft: Draft) -> None:
    """
    Refuse layers beside whose weight there are scales, offsets or codes.

    Parameters
    ----------
    draft : Draft
        The entries, changed in place.
    """
    found: dict[str, list[str]] = {}
    for name in draft:
        if root := _quantised(draft, name):
            found.setdefault(root, []).append(name)
    for name in list(draft):
        for pattern, is_scaled in (
            (_BESIDE, draft.has_weight),
            (_BESIDE_INTEGERS, draft.is_integer),
        ):
            if (beside := pattern.fullmatch(name)) and name not in found:
                root = f"{beside['path']}weight"
                if root in found or is_scaled(root):
                    found.setdefault(root, []).append(name)
                    break
    for root, parts in found.items():
        reason = f"{', '.join(part for part in parts if part != root)} belong to it; {_DEQUANTISE}"
        draft.refuse(root, parts, "quantised", reason)


def _quantised(draft: Draft, name: str) -> str | None:
    """Return the name of the weight that an entry shows to be quantised."""
    if found := _LAYER_IS.fullmatch(name):
        return f"{found['path']}weight"
    if found := _TENSOR_IS.fullmatch(name):
        root = found["tensor"]
        is_tensor = root in draft or root.endswith("weight")
        return root if is_tensor else None
    if found := _SCALES.fullmatch(name):
        root = found["path"] + found["weight"]
        packed = any(f"{root}_{suffix}" in draft for suffix in _PACKED)
        if found["weight"] == "weight" or packed or draft.has_weight(root):
            return root
    return None


def refuse_adapted(draft: Draft) -> None:
    """
    Refuse layers to whose weight something is added or multiplied.

    Parameters
    ----------
    draft : Draft
        The entries, changed in place.
    """
    found: dict[str, list[str]] = {}
    for name in draft:
        if adapter := _ADAPTER.fullmatch(name):
            found.setdefault(adapter["path"], []).append(name)
    for path, parts in found.items():
        names = [f"{path}.{rest}" for rest in ("weight", "base_layer.weight", "linear.weight")]
        bases = [n for n in (*names, path, f"{path}/kernel") if n in draft and n not in parts]
        alone = "" if bases else ", and the weight that it changes is not in the file"
        for base in bases or names[:1]:
            reason = f"{', '.join(parts)} change it by a factor that the file does not say{alone}; {_MERGE}"
            draft.refuse(base, parts, "with an adapter", reason)


def refuse_normalised(draft: Draft) -> None:
    """
    Refuse layers that normalise their weight anew at each use, as what stands beside it shows.

    Parameters
    ----------
    draft : Draft
        The entries, changed in place.
    """
    names = list(draft)
    by_tail: dict[str, list[str]] = {}
    for name in names:
        if tail := _TAIL.fullmatch(name):
            by_tail.setdefault(tail[1], []).append(name)
    for name in names:
        if found := _FLAX.fullmatch(name):
            roots = by_tail.get(found["tail"], [])
        elif (found := _ESTIMATES.fullmatch(name)) and (
            not found["gain"] or draft.has_weight(name)
        ):
            roots = [f"{found['path']}weight"]
        else:
            continue
        for root in filter(draft.has_weight, roots):
            draft.refuse(root, [name], "normalised", f"{name} takes part in it; {_PLAIN}")
