"""Which entries of a file are parts of one weight, and what becomes of it.

A layer computes with a weight that need not be in the file: what is stored may be a length and a
direction (weight norm), a weight and the vectors by which its norm is estimated (spectral norm), a
weight and a mask (pruning), integers and their scales (quantisation), a weight and what is added to
it (adapters).  The names say so:

    conv.weight_g, conv.weight_v                            a suffix for each part, as hooks register them,
    conv.parametrizations.weight.original, ... .0._u        as `torch.nn.utils.parametrize` does,
    conv.weight, conv.weight_scale                          companions, by many libraries.

What the stored numbers define is folded (`gramnorm.report.folds`); what they do not is refused
under the name of the plain weight.  Entries are only taken together under names that no plain layer
has, or where the weight would be wrong.
"""

import re
from dataclasses import replace

import numpy as np

from gramnorm.report.files.companions import refuse_adapted, refuse_normalised, refuse_quantised
from gramnorm.report.files.contents import Contents, Layer, Stored
from gramnorm.report.files.copies import set_copies_aside
from gramnorm.report.files.draft import Draft
from gramnorm.report.files.folds import (
    Fold,
    NotFoldableError,
    masked,
    spectral_norm,
    stored_weight,
    weight_norm,
)
from gramnorm.report.limits import LONGEST_NAME

_PLAIN = "save the plain weights"
_REMOVE = f"call torch.nn.utils.parametrize.remove_parametrizations, then {_PLAIN}"
_LENGTHS, _SPECTRAL, _MASKED = "weight norm", "spectral norm in evaluation", "pruned"
_HOOKS = {
    frozenset(("g", "v")): _LENGTHS,
    frozenset(("orig", "u", "v")): _SPECTRAL,
    frozenset(("orig", "mask")): _MASKED,
}

_PARAMETRIZED = re.compile(r"((?:.*?[./])?)parametrizations[./]([^./]+)[./](.+)")
_MEMBER = re.compile(r"(\d{1,4})[./](.+)")
_HOOKED = re.compile(
    r"((?:.*[./])?[^./]*?[^./_])_((?:g|v|u|orig|mask|bar|mu|sigma|rho|epsilon)"
    r"(?:_(?:g|v|u|orig|mask|bar|mu|sigma|rho|epsilon))*)"
)


def folded(stored: Stored) -> Stored:
    """Replace weights that are stored in parts by what they define, or by why that is unknown.

    Parameters
    ----------
    stored : Stored
        The entries of a file as a reader found them.

    Returns
    -------
    Stored
        The same file as if plain weights had been saved, where their parts define them; `folds`
        says of which that was not so.
    """
    draft = Draft(stored)
    for rule in (
        set_copies_aside,
        _fold_parametrized,
        refuse_quantised,
        refuse_adapted,
        _fold_hooked,
        refuse_normalised,
        _check_masks,
    ):
        rule(draft)
    return draft.stored()


def marked(contents: Contents, stored: Stored) -> Contents:
    """Return the contents with word and error of the fold in each layer that `folded` made."""

    def with_fold(layer: Layer) -> Layer:
        word, error = stored.folds.get(layer.name, (None, 0.0))
        return replace(layer, word=word, error=error)

    layers, spare = (list(map(with_fold, some)) for some in (contents.layers, contents.spare))
    return replace(contents, layers=layers, spare=spare)


def _fold_parametrized(draft: Draft) -> None:
    """Fold what `torch.nn.utils.parametrize` stores, if all parametrizations are known."""
    groups: dict[str, dict[str, str]] = {}
    for name in draft:
        if found := _PARAMETRIZED.fullmatch(name):
            groups.setdefault(found[1] + found[2], {})[found[3]] = name
    for root, parts in groups.items():
        try:
            _refuse_both(draft, root)
            fold, words = _chain(draft, parts)
        except NotFoldableError as error:
            draft.refuse(root, parts.values(), "parametrised", f"{error}; {_REMOVE}")
        else:
            draft.fold(root, parts.values(), ", ".join(words), fold)


def _chain(draft: Draft, parts: dict[str, str]) -> tuple[Fold, list[str]]:
    """Return what the parametrizations make of the original, one after the other."""
    members: dict[int, dict[str, str]] = {}
    for rest, name in parts.items():
        if found := _MEMBER.fullmatch(rest):
            members.setdefault(int(found[1]), {})[found[2]] = name
    originals = {rest: name for rest, name in parts.items() if not _MEMBER.fullmatch(rest)}
    if originals.keys() == {"original0", "original1"}:
        fold = weight_norm(*(draft.numbers(originals[f"original{i}"]) for i in (0, 1)))
        words = [_LENGTHS]
    elif originals.keys() == {"original"}:
        fold, words = stored_weight(draft.numbers(originals["original"]), "its original"), []
    else:
        msg = f"its originals are {', '.join(sorted(originals)) or 'not in the file'}"
        raise NotFoldableError(msg)
    if not members and not words:
        msg = (
            "only the weight before it is stored, and nothing of what makes the weight of it (an orthogonal or a "
            "symmetric one, gramnorm's SpectralBound, a function of your own)"
        )
        raise NotFoldableError(msg)
    if sorted(members) != list(range(len(words), len(words) + len(members))):
        msg = "one of several parametrizations stores nothing, so what it does is unknown"
        raise NotFoldableError(msg)
    for index in sorted(members):
        fold, word = _step(draft, fold, members[index])
        words.append(word)
    return fold, words


def _step(draft: Draft, fold: Fold, parts: dict[str, str]) -> tuple[Fold, str]:
    """Return what one parametrization makes of a weight, known by what it stores."""
    if parts.keys() == {"_u", "_v"}:
        vectors = (draft.numbers(parts[part]) for part in ("_u", "_v"))
        return spectral_norm(fold, *vectors), _SPECTRAL
    if parts.keys() == {"base"}:
        msg = "an orthogonal one, by which of several maps the file does not say"
    else:
        msg = f"a parametrization that stores {', '.join(sorted(parts))} is not known"
    raise NotFoldableError(msg)


def _fold_hooked(draft: Draft) -> None:
    """Fold parts whose names are that of the weight with a suffix."""
    groups: dict[str, dict[str, str]] = {}
    for name in draft:
        if len(name) <= LONGEST_NAME and (found := _HOOKED.fullmatch(name)):
            groups.setdefault(found[1], {})[found[2]] = name
    for root, parts in groups.items():
        kind = _kind(draft, root, parts)
        if kind is None:
            continue
        try:
            _refuse_both(draft, root)
            fold = _hooked(draft, parts, kind)
        except NotFoldableError as error:
            draft.refuse(root, parts.values(), kind, f"{error}; {_PLAIN}")
        else:
            draft.fold(root, parts.values(), kind, fold)


def _kind(draft: Draft, root: str, parts: dict[str, str]) -> str | None:
    """Return how a weight is stored, None if these are arrays of their own."""
    kind = _HOOKS.get(frozenset(parts))
    if "weight" in re.split(r"[./]", root)[-1]:
        beside = parts.keys() == {"mask"} and root in draft
        return None if beside else kind or "stored in parts"
    if kind != _LENGTHS or root.lower().endswith("bias"):
        return kind
    try:  # an attention may well have a w_g and a w_v
        weight_norm(draft.numbers(parts["g"]), draft.numbers(parts["v"]))
    except NotFoldableError:
        return None
    return "weight norm, or two weights"


def _hooked(draft: Draft, parts: dict[str, str], kind: str) -> Fold:
    """Return the weight of the parts."""
    values = {suffix: draft.numbers(name) for suffix, name in parts.items()}
    if kind == _LENGTHS:
        return weight_norm(values["g"], values["v"])
    if kind in (_SPECTRAL, _MASKED):
        fold = stored_weight(values["orig"], "the weight before it")
        if kind == _MASKED:
            return masked(fold, values["mask"])
        return spectral_norm(fold, values["u"], values["v"])
    msg = f"what {', '.join(parts.values())} make of it is not known"
    if parts.keys() & {"mu", "sigma", "rho", "epsilon"}:
        msg += ", or random"
    raise NotFoldableError(msg)


def _check_masks(draft: Draft) -> None:
    """Refuse weights beside which there is a mask that changes them."""
    for name in list(draft):
        found = re.fullmatch(r"((?:.*[./])?)(?:weight_)?mask", name)
        root = found[1] + "weight" if found else ""
        if draft.shape(root) is None or draft.shape(name) is None:
            continue
        weight, mask = draft.numbers(root), draft.numbers(name)
        if mask.dtype.kind not in "biuf" or not _broadcasts(mask.shape, weight.shape):
            continue
        with np.errstate(all="ignore"):
            is_changed = not np.array_equal(weight * mask, weight)
        if is_changed:
            reason = (
                f"{name} stands beside it and would change it: save their product as the weight"
            )
            draft.refuse(root, [name, root], "masked", reason)
        else:
            draft.aside([name], f"a mask that leaves {root} as it is")


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return len(target) > 1 and np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _refuse_both(draft: Draft, root: str) -> None:
    if root in draft:
        msg = f"{root} is stored as well as its parts, and nothing says which is used"
        raise NotFoldableError(msg)
