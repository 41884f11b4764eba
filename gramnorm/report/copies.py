"""Arrays beside a network that look like it: moving averages of its weights, and the moments of an optimizer.

Multiplied with the others they would make a product that is no bound: an average of norm one half halves it.  A copy is
known by its name and by a counterpart of the same name and shape; without a counterpart it may be a part of the network
that happens to be called so, and is refused.
"""

import re
from collections import Counter

from gramnorm.report.draft import Draft

__all__ = ["set_copies_aside"]

_WRAPPERS = re.compile(r"(?:(?:module|model|ema_model|_orig_mod|net|network)[./])+")

_AVERAGE = re.compile(
    r"(?:.*?[./])?(?:ema_model|model_ema|module_ema|ema_module|ema_state_dict|model_state_dict_ema|state_dict_ema"
    r"|ema_params|params_ema|ema_weights|shadow_params|averaged_model|avg_model|swa_model)[./]|ema[./]"
)
_MOMENT = re.compile(
    r"(?:.*[./])?(?:exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|momentum_buffer|square_avg|grad_avg|acc_delta"
    r"|opt_state|optimizer_state|optim_state)(?:[./].*)?|optimizer[./]state[./].*"
)


def set_copies_aside(draft: Draft) -> None:
    """
    List averages and moments as no layers.

    Parameters
    ----------
    draft : Draft
        The entries, changed in place.
    """
    moments = [name for name in draft if _MOMENT.fullmatch(name)]
    draft.aside(moments, "a moment of an optimizer")
    groups: dict[str, list[str]] = {}
    for name in draft:
        if found := _AVERAGE.match(name):
            groups.setdefault(found[0], []).append(name)
    inside = {name for names in groups.values() for name in names}
    if not any(draft.has_weight(name) and name not in inside for name in draft):
        first = next(iter(groups), None)  # nothing but averages: the first of them is the network
        inside -= set(groups.pop(first, []) if first is not None else [])
    for prefix, names in groups.items():
        _one_average(draft, prefix, names, [name for name in draft if name not in inside])


def _one_average(draft: Draft, prefix: str, names: list[str], outside: list[str]) -> None:
    """Set the entries below one prefix aside if each weight has a counterpart, else refuse each."""
    weights = [name for name in names if draft.has_weight(name)]
    if not weights or _have_counterparts(draft, prefix, weights, outside):
        draft.aside(names, "a moving average of weights, beside the network")
        if weights:
            draft.notes.append(
                f"left out {prefix}*, moving averages of weights that are there, too"
            )
        return
    for name in weights:
        reason = (
            f"it is called like a moving average, but nothing beside it has its name and shape; if it is one, "
            f"leave it out with --exclude '{prefix}*'"
        )
        draft.refuse(name, [name], "moving average", reason)


def _have_counterparts(draft: Draft, prefix: str, weights: list[str], outside: list[str]) -> bool:
    """Say whether one other prefix turns every name into that of an array of the same shape."""
    rests = [name.removeprefix(prefix) for name in weights]
    if all(rest.isdecimal() for rest in rests):  # a list: in order, without names
        have = Counter(draft.arrays[name].shape for name in outside if name in draft.arrays)
        return not Counter(draft.shape(name) for name in weights) - have
    shapes = {_key(name): draft.shape(name) for name in outside}
    for trimmed in (rests, [_WRAPPERS.sub("", rest, count=1) for rest in rests]):
        keys = {_key(rest): draft.shape(n) for rest, n in zip(trimmed, weights, strict=True)}
        (first, *_) = keys
        starts = [name.removesuffix(first) for name in shapes if name.endswith(first)]
        for start in starts:
            if all(shapes.get(start + key, ()) == shape for key, shape in keys.items()):
                return True
    return False


def _key(name: str) -> str:
    """Return a name without dots: some averages are stored so."""
    return re.sub(r"[./]", "", name)
