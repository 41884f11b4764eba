"""Arrays beside a network that look like it.

Moving averages of its weights, and the moments of an optimizer.

Multiplied with the others they would make a product that is no bound: an average of norm one half
halves it.  A copy is known by its name and by a counterpart of the same name and shape; without a
counterpart it may be a part of the network that happens to be called so, and is refused.
"""

import re
from collections import Counter

from gramnorm.report.files.draft import Draft

_WRAPPERS = re.compile(r"(?:(?:module|model|ema_model|_orig_mod|net|network)[./])+")

_Shapes = dict[str, tuple[int, ...] | None]

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
    if groups and not any(draft.has_weight(name) and name not in inside for name in draft):
        inside -= set(groups.pop(next(iter(groups))))  # nothing but averages: they are the network
    shapes = {name: draft.shape(name) for name in draft if name not in inside}
    for prefix, names in groups.items():
        _one_average(draft, prefix, names, shapes)


def _one_average(draft: Draft, prefix: str, names: list[str], others: _Shapes) -> None:
    """Set the entries below a prefix aside if all have counterparts elsewhere; else refuse."""
    weights = {
        name.removeprefix(prefix): draft.shape(name) for name in names if draft.has_weight(name)
    }
    if not weights or _have_counterparts(weights, others):
        draft.aside(names, "a moving average of weights, beside the network")
        if weights:
            draft.notes.append(
                f"left out {prefix}*, moving averages of weights that are there, too"
            )
        return
    for rest in weights:
        reason = (
            "it is called like a moving average, but nothing beside it has its name and shape; if it is one, leave it "
            f"out with --exclude '{prefix}*', else save it under another name"
        )
        draft.refuse(prefix + rest, [prefix + rest], "moving average", reason)


def _have_counterparts(weights: _Shapes, others: _Shapes) -> bool:
    """Say whether one other prefix turns every name into that of an array of the same shape."""
    if all(rest.isdecimal() for rest in weights):  # a list: in order, without names
        return not Counter(weights.values()) - Counter(others.values())
    shapes = {_key(name): shape for name, shape in others.items()}
    unwrapped = {_WRAPPERS.sub("", rest, count=1): shape for rest, shape in weights.items()}
    for names in (weights, unwrapped):
        wanted = {_key(name): shape for name, shape in names.items()}
        first = next(iter(wanted))
        starts = [name.removesuffix(first) for name in shapes if name.endswith(first)]
        for start in starts:
            if all(shapes.get(start + key, ()) == shape for key, shape in wanted.items()):
                return True
    return False


def _key(name: str) -> str:
    """Return a name without dots: some averages are stored so."""
    return re.sub(r"[./]", "", name)
