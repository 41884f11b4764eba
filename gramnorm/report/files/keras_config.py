"""What Keras' description of a model says: the geometry of its layers, and whether they are a chain.

The description is JSON, as ``config.json`` of a ``.keras`` file: classes with their arguments,
models within models.  Only classes of Keras itself are understood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_CONVOLUTION = re.compile(r"(Depthwise|Separable)?Conv([123])D(Transpose)?")
_NO_CHAIN = "its layers are joined otherwise than in a chain"
_STEEP = "its Lipschitz constant is not counted"
_FLAT = (  # functions of slope 1 at most, by their names in Keras
    *("linear", "relu", "relu6", "leaky_relu", "elu", "sigmoid", "hard_sigmoid", "log_sigmoid"),
    *("tanh", "hard_tanh", "tanh_shrink", "soft_shrink", "softmax", "softplus", "softsign"),
)
_NEUTRAL = re.compile(  # classes of norm 1 at most, whatever their arguments
    r"InputLayer|Flatten|Reshape|Permute|(Spatial|Gaussian|Alpha)?Dropout([123]D)?|GaussianNoise"
    r"|ActivityRegularization|Softmax|ZeroPadding[123]D|Cropping[123]D|Global(Average|Max)Pooling[123]D"
)
_MODELS = ("Sequential", "Functional", "Model")
_COUNTED = re.compile(r"Dense|BatchNormalization|" + _CONVOLUTION.pattern)  # which have rows


@dataclass(frozen=True)
class Stated:
    """A layer of the description: its path in the file of weights, its name, class, arguments."""

    path: str
    name: str
    kind: str
    config: dict[str, Any]
    input_shape: Any = None


def snake_case(name: str) -> str:
    """Return the name of a class as Keras writes it in paths."""
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\W", "", name)).lower()


def stated_layers(model: dict[str, Any]) -> list[Stated]:
    """
    Return the layers of a model and of the models in it, in order.

    Parameters
    ----------
    model : dict
        The description.

    Returns
    -------
    list of Stated
        Without the models themselves.
    """
    return [layer for layer in _walk(model, "", "") if _parts(layer.config) is None]


def _walk(model: dict[str, Any], path: str, name: str) -> Iterator[Stated]:
    """Return layers and inner models, each before what is in it."""
    count: dict[str, int] = {}
    for entry in _parts(model.get("config")) or ():
        kind, config = str(entry.get("class_name")), entry.get("config")
        if not isinstance(config, dict):
            continue
        snake = snake_case(kind)
        number = count.get(snake, 0)
        count[snake] = number + 1
        own = f"{path}layers/{snake}" + f"_{number}" * (number > 0)
        called = f"{name}{config.get('name', entry.get('name'))}"
        built = entry.get("build_config")
        shape = built.get("input_shape") if isinstance(built, dict) else None
        known = kind if _is_of_keras(entry) else "unknown"
        yield Stated(own, called, known, config, shape)
        yield from _walk(entry, f"{own}/", f"{called}/")


def _parts(config: Any) -> list[dict[str, Any]] | None:
    """Return the layers of a model, None for what is none."""
    layers = config.get("layers") if isinstance(config, dict) else None
    return [e for e in layers if isinstance(e, dict)] if isinstance(layers, list) else None


def _is_of_keras(entry: dict[str, Any]) -> bool:
    """Say whether a class is one of Keras itself; older descriptions do not say."""
    return entry.get("registered_name") is None and _comes_with_keras(entry)


def _comes_with_keras(entry: dict[str, Any]) -> bool:
    module = str(entry.get("module", "keras"))
    return re.fullmatch(r"(tf_)?keras(\..*)?", module) is not None


def geometry(layer: Stated, word: str, shape: tuple[int, ...]) -> dict[str, Any] | str | None:
    """
    Return what a layer does with an array, as keywords of `gramnorm.conv_norm_bracket`.

    Parameters
    ----------
    layer : Stated
        The layer.
    word : str
        What the array is to it, such as "kernel".
    shape : tuple of int
        The array's.

    Returns
    -------
    dict, str or None
        The keywords; why they do not fit the array; None where nothing is to say.
    """
    found = _CONVOLUTION.fullmatch(layer.kind)
    if found is None or not word.endswith("kernel"):
        return None
    axes = int(found[2])
    if word == "pointwise_kernel":
        return {"kind": "conv"} if shape[:-2] == (1,) * axes else "its pointwise kernel has taps"
    size, stride, dilation = (
        _numbers(layer.config.get(key, 1), axes)
        for key in ("kernel_size", "strides", "dilation_rate")
    )
    padding, groups = layer.config.get("padding", "valid"), layer.config.get("groups", 1)
    is_known = padding in ("valid", "same", "causal")
    if size is None or stride is None or dilation is None or not is_known:
        return "the description of its layer is damaged"
    if not isinstance(groups, int) or groups < 1 or shape[:-2] != size:
        return f"its layer is described with kernel_size {size} and groups {groups}, but its shape is {shape}"
    stated: dict[str, Any] = {"kind": "conv", "stride": stride, "dilation": dilation}
    if groups > 1:
        stated["groups"] = groups
    if found[3]:
        if layer.config.get("output_padding") is not None:
            return stated | {"transposed": True}
        return (
            stated
            | {"transposed": True}
            | _cut(size, stride, dilation, padding)
            | _size(layer, axes)
        )
    if padding == "causal":
        stated["padding"] = tuple(((k - 1) * d, 0) for k, d in zip(size, dilation, strict=True))
    else:
        stated["padding"] = padding
    return stated | _size(layer, axes)


def _numbers(value: Any, axes: int) -> tuple[int, ...] | None:
    """Return one positive number for each axis, None if these are none."""
    numbers = tuple(value) if isinstance(value, list) else (value,) * axes
    is_sound = len(numbers) == axes and all(isinstance(n, int) and n > 0 for n in numbers)
    return numbers if is_sound else None


def _cut(
    size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], padding: str
) -> dict[str, Any]:
    """Return how much of a transposed convolution's output is cut off, or added."""
    # of (n - 1) s + reach + 1 outputs, "same" keeps n s, "valid" at least n s
    excess = [d * (k - 1) + 1 - s for k, s, d in zip(size, stride, dilation, strict=True)]
    cut = [max(e, 0) if padding == "same" else 0 for e in excess]
    return {
        "padding": tuple((c // 2, c - c // 2) for c in cut),
        "output_padding": tuple(max(-e, 0) for e in excess),
    }


def _size(layer: Stated, axes: int) -> dict[str, Any]:
    """Return the size of the input at which the model was built, if it was one size."""
    shape = layer.input_shape
    if not isinstance(shape, list) or len(shape) != axes + 2:
        return {}
    last = layer.config.get("data_format") != "channels_first"
    size = tuple(shape[1:-1] if last else shape[2:])
    return {"input_shape": size} if _numbers(list(size), axes) else {}


def has_weights(layer: Stated) -> bool:
    """Say whether a layer is of a class whose arrays become rows."""
    return _COUNTED.fullmatch(layer.kind) is not None


def against(model: dict[str, Any]) -> dict[str, str]:
    """
    Return by layer what stands in the way of a product of norms.

    Parameters
    ----------
    model : dict
        The description.

    Returns
    -------
    dict of str to str
        Reasons; empty also where the description does not say what the layers are.
    """
    found = {
        layer.name: f"{layer.kind}: {reason}"
        for layer in stated_layers(model)
        if (reason := _steep(layer)) is not None
    }
    inner = [entry for entry in _models(model) if not _is_chain(entry)]
    return found | {
        str(entry["config"].get("name")): f"{entry.get('class_name')}: {_NO_CHAIN}"
        for entry in inner
    }


def _models(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = _parts(model.get("config"))
    if parts is not None:
        yield model
        for entry in parts:
            yield from _models(entry)


def _steep(layer: Stated) -> str | None:
    """Return why a layer may stretch more than its row says, or None."""
    config = layer.config
    if has_weights(layer):
        function = config.get("activation") or "linear"
        flat = isinstance(function, str) and function in _FLAT
        return None if flat else f"its activation is {function!s:.40}, whose slope is not counted"
    if _NEUTRAL.fullmatch(layer.kind) or _is_flat(layer):
        return None
    return _STEEP


def _is_flat(layer: Stated) -> bool:
    """Say whether a layer has norm 1 at most, by its arguments."""
    config = layer.config
    if layer.kind == "Activation":
        return config.get("activation") in _FLAT
    if layer.kind in ("ReLU", "LeakyReLU"):
        slope = config.get("negative_slope", config.get("alpha", 0)) or 0
        return isinstance(slope, int | float) and abs(slope) <= 1 and not config.get("threshold")
    if found := re.fullmatch(r"(Max|Average)Pooling([123])D", layer.kind):
        # windows that do not overlap: an output for each entry at most
        axes = int(found[2])
        size = _numbers(config.get("pool_size", 2), axes)
        stride = _numbers(config.get("strides") or config.get("pool_size", 2), axes)
        return None not in (size, stride) and all(
            k <= s for k, s in zip(size or (), stride or (), strict=True)
        )
    return False


def _is_chain(model: dict[str, Any]) -> bool:
    """Say whether each layer of a model reads the one output of one other."""
    if not _comes_with_keras(model) or model.get("class_name") not in _MODELS:
        return False  # a class of the user's own may call its layers as it likes
    if model["class_name"] == "Sequential":
        return True
    parts = _parts(model["config"]) or []
    read: list[str] = []
    for entry in parts:
        nodes = entry.get("inbound_nodes")
        names = [*_read_by(nodes)]
        first = entry.get("class_name") == "InputLayer"
        if not isinstance(nodes, list) or (len(nodes), len(names)) != ((0, 0) if first else (1, 1)):
            return False
        read += names
    return len(set(read)) == len(read) == len(parts) - 1


def _read_by(nodes: Any) -> Iterator[str]:
    """Return the names of the layers that a layer reads, in either way of writing them."""
    rest = [nodes]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            history = value.get("keras_history")
            if isinstance(history, list) and history:
                yield str(history[0])
            rest.extend(value.values())
        elif isinstance(value, list):
            if len(value) > 2 and isinstance(value[0], str) and isinstance(value[1], int):
                if len(value) == 4:  # of Keras 2; those of three are histories
                    yield value[0]
            else:
                rest.extend(value)
