"""Names that show that a network is no chain of linear layers with 1-Lipschitz functions between.

A product of norms bounds the Lipschitz constant of a chain.  Attention and layer normalisation
divide by what they compute of their input, gates and mixtures of experts multiply by it, a table of
embeddings is looked up, a recurrent layer is passed many times, and a shortcut adds a second way.
Their weights have norms, but no product of these is a bound.
"""

import re

from gramnorm.report.files.names import Name

NOT_UNDERSTOOD = "not understood"
SHORTCUT = "a shortcut beside other layers, which are no chain then"
GATE = "a gate, which multiplies the signal by what it computes of it"
BILINEAR = "a bilinear layer, which multiplies two inputs"
SCALED = (
    "float8 numbers as they are stored, which a library that has a scale for them multiplies by it"
)
SECOND = "a second network, which is no part of a chain with the first"

_RECURRENT = re.compile(
    r"(.*_)?(bi|conv)?(lstm|gru|rnn)s?[_\d]*|.*(lstm|gru|rnn|simple|mgu)_?cell.*"
    r"|weight_(ih|hh|hr)(_l\d+)?(_reverse)?|recurrent_kernel|[ih]2h"
)
_ATTENTION = re.compile(
    r".*(attn|attention|qkv|kqv).*|(.*_)?mha(_.*)?"
    r"|(query|key|value|queries|keys|values)(_(conv|proj|projection|layer|linear))?"
    r"|[qkv]_?(proj|conv|lin|linear)|(conv|lin|linear|fc|proj)_[qkv]|to_[qkv](v|kv)?|w_?[qkv]"
)
_EXPERTS = re.compile(r"(.*_)?(experts?|router|moe)(_?\d+)?")
_GATE = re.compile(
    r"se(_?(layer|block|module))?(_?\d+)?|(.*_)?se_(reduce|expand)(_.*)?|(.*_)?squeeze_?(and_?)?excit\w*|cbam|eca"
    r"|(.*_)?(gate|gates|gated|gating|glu)(_.*|\d+)?"
)
_SHORTCUT = re.compile(
    r"(.*_)?(shortcut|skip|residual)(_.*)?|.*res(idual|net)?_?(block|unit)s?(_?\d+)?|(.*_)?res_?conv\d*"
    r"|conv\d_block\d+_0_(conv|bn)|rbr_\w+|identity"  # of Keras and RepVGG
)
_DOWNSAMPLE = re.compile(  # of ResNets in PyTorch
    r".*layer\d+\.\d+\.downsample\.\d+\..*|.*\.blocks\.\d+\.downsample\..*"
)
_BRANCH = re.compile(
    r"(.*_)?branch(es)?(_?\d.*|_.*)?|inception\w*|mixed_?\d\w*|dense_?(block|layer)_?\d*|expand_?\dx\d"
    r"|aux(\d+|_?logits|iliary)?|aux(iliary)?_(classifier|head)\w*"
)
_SECOND = re.compile(
    r"(.*_)?(teacher|student|critic|discriminator)(_?(net|network|model|encoder))?\d*"
    r"|(.*_)?(target|momentum)_?(net|network|model|encoder|critic|actor|policy|q)\w*"
)
_EMBEDDING = re.compile(
    r"(.*_)?(embed|embeds|emb|embedding|embeddings)(_(tokens|positions|in))?(_?\d+)?"
    r"|(.*_)?embed(ding)?s?_(table|user|item|entity|relation)\w*|.*_embedding_table"
    r"|wte|wpe|shared|lut|codebook|relative_attention_bias"
)
_NORM = re.compile(r".*(norm|(^|_)(ln|bn|gn|rms))(_?[a-z\d]{0,2})(_\d+)?|ln\w?|bn\d*|gn\d*")

_RULES = (
    (_RECURRENT, "a recurrent layer, which is passed as often as there are steps"),
    (_ATTENTION, "attention, which multiplies what it computes of its input"),
    (_EXPERTS, "a mixture of experts, which the input chooses"),
    (_GATE, GATE),
    (_SHORTCUT, SHORTCUT),
    (_BRANCH, "a branch beside other layers, which are no chain then"),
    (re.compile(r"(.*_)?bilinear(_?\d+)?"), BILINEAR),
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


def second_network(name: Name) -> bool:
    """Say whether this is an array of a network that comes with another one.

    A teacher, a critic.
    """
    return any(_SECOND.fullmatch(part) for part in name.parts)


def embeds(name: Name) -> bool:
    """Say whether a matrix of this name is a table that is looked up.

    By its layer, or its own word.
    """
    names = (*name.path[-1:], name.word)
    return any("patch" not in text and _EMBEDDING.fullmatch(text) for text in names)


def normalises(name: Name) -> bool:
    """Say whether this is an array of a normalisation."""
    return bool(name.path) and _NORM.fullmatch(name.path[-1]) is not None
