"""Names that show that a network is no chain of linear layers with 1-Lipschitz functions between.

A product of norms bounds the Lipschitz constant of a chain.  Attention and layer normalisation divide by what they
compute of their input, gates and mixtures of experts multiply by it, a table of embeddings is looked up, a recurrent
layer is passed many times, and a shortcut adds a second way.  Their weights have norms, but no product of these is a
bound.
"""

import re

from gramnorm.report.names import Name

__all__ = ["NOT_UNDERSTOOD", "SHORTCUT", "embeds", "normalises", "obstacle", "recurs"]

NOT_UNDERSTOOD = "not understood"
SHORTCUT = "a shortcut beside other layers, which are no chain then"

_RECURRENT = re.compile(
    r"(.*_)?(bi)?(lstm|gru|rnn)s?[_\d]*|.*(lstm|gru|rnn)_?cell.*"
    r"|weight_(ih|hh|hr)(_l\d+)?(_reverse)?|recurrent_kernel"
)
_ATTENTION = re.compile(
    r".*(attn|attention|qkv|kqv).*|(.*_)?mha(_.*)?"
    r"|query|key|value|queries|keys|values|[qkv]_?proj|to_[qkv](v|kv)?|w[qkv]|[qkv]_lin"
)
_EXPERTS = re.compile(r"(.*_)?(experts?|router|moe)(_?\d+)?")
_GATE = re.compile(r"se(_?(layer|block|module))?(_?\d+)?|(.*_)?squeeze_?(and_?)?excit\w*|cbam|eca")
_SHORTCUT = re.compile(r"(.*_)?(shortcut|skip|residual)(_.*)?")
_DOWNSAMPLE = re.compile(r".*layer\d+\.\d+\.downsample\.\d+\..*")  # of ResNets in PyTorch
_EMBEDDING = re.compile(
    r"(.*_)?(embed|embeds|emb|embedding|embeddings)(_(tokens|positions|in))?(_?\d+)?"
    r"|wte|wpe|shared|lut|codebook|relative_attention_bias"
)
_NORM = re.compile(r".*(norm|(^|_)(ln|bn|gn|rms))(_?[a-z\d]{0,2})(_\d+)?|ln\w?|bn\d*|gn\d*")

_RULES = (
    (_RECURRENT, "a recurrent layer, which is passed as often as there are steps"),
    (_ATTENTION, "attention, which multiplies what it computes of its input"),
    (_EXPERTS, "a mixture of experts, which the input chooses"),
    (_GATE, "a gate, which multiplies the signal by what it computes of it"),
    (_SHORTCUT, SHORTCUT),
)


def obstacle(name: Name) -> str | None:
    """
    Return why a network with such an array is no chain, or None if its name does not say so.

    Parameters
    ----------
    name : Name
        The name of an array.

    Returns
    -------
    str or None
        What it belongs to.
    """
    for rule, reason in _RULES:
        if any(rule.fullmatch(part) for part in name.parts):
            return reason
    return SHORTCUT if _DOWNSAMPLE.fullmatch(".".join(name.parts)) else None


def recurs(name: Name) -> bool:
    """Say whether this is an array of a recurrent layer."""
    return any(_RECURRENT.fullmatch(part) for part in name.parts)


def embeds(name: Name) -> bool:
    """Say whether a matrix of this name is a table that is looked up: by its layer, or its own word."""
    names = (*name.path[-1:], name.word)
    return any("patch" not in text and _EMBEDDING.fullmatch(text) for text in names)


def normalises(name: Name) -> bool:
    """Say whether this is an array of a normalisation."""
    return bool(name.path) and _NORM.fullmatch(name.path[-1]) is not None
