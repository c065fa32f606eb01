"""The same network in Keras, as a Keras user would write it, with the same weights.

TensorFlow's converter takes no torch module. So the layers come as a list (layers.json and layers.npz: batch
normalization is folded already, as the converter would fold it) and are written in Keras's own layers:
channels last, a ZeroPadding2D where `same` would pad otherwise, as keras.applications has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["save_keras"]

Layer = Mapping[str, Any]
CHECKED = 8


def save_keras(folder: Path) -> None:
    """layers.json, layers.npz -> model.keras; the input is a normalized image, float32 [1, H, W, 3].

    Its answers to the first images are in keras.npy, for a comparison with torch's.
    """
    import keras

    layers = json.loads((folder / "layers.json").read_text())
    weights = np.load(folder / "layers.npz")
    channels, height, width = layers[0]["shape"]
    image = keras.Input((height, width, channels), batch_size=1)
    values = {layers[0]["name"]: image}
    for layer in layers[1:]:
        inputs = [values[name] for name in layer["inputs"]]
        value = _KINDS[layer["kind"]](layer, inputs, weights)
        values[layer["name"]] = _activated(layer, value)
    model = keras.Model(image, values[layers[-1]["name"]])
    model.save(folder / "model.keras")
    images = np.load(folder / "images.npy", mmap_mode="r")[:CHECKED].transpose(0, 2, 3, 1)
    np.save(folder / "keras.npy", np.concatenate([model(part[None]) for part in np.array(images)]))


def _activated(layer: Layer, value: Any) -> Any:
    import keras

    kind = layer.get("activation", "none")
    if kind == "none":
        return value
    return keras.layers.ReLU(max_value={"relu": None, "relu6": 6.0}[kind])(value)


def _conv(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    weight, bias = weights[f"{layer['name']}/weight"], weights[f"{layer['name']}/bias"]  # [O, I/groups, h, w]
    value, same = _padded(layer, inputs[0])
    settings = {"strides": layer["stride"], "padding": "same" if same else "valid"}
    out, per_group, *kernel = weight.shape
    if layer["groups"] == out and per_group == 1:
        made = keras.layers.DepthwiseConv2D(kernel, **settings)
        stored = weight.transpose(2, 3, 0, 1)
    else:
        made = keras.layers.Conv2D(out, kernel, groups=layer["groups"], **settings)
        stored = weight.transpose(2, 3, 1, 0)
    result = made(value)
    made.set_weights([stored, bias])
    return result


def _padded(layer: Layer, value: Any) -> tuple[Any, bool]:
    """The input with its padding, unless the layer can do that itself (`same`): then True."""
    import keras

    top, bottom, left, right = layer["padding"]
    if not any(layer["padding"]):
        return value, False
    kernel = layer["kernel"]
    if layer["stride"] == [1, 1] and top == bottom == kernel[0] // 2 and left == right == kernel[1] // 2:
        return value, True
    return keras.layers.ZeroPadding2D(((top, bottom), (left, right)))(value), False


def _max_pool(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    # Zeros for padding: it comes behind a ReLU in all of these networks.
    value, _ = _padded(layer | {"stride": None}, inputs[0])
    return keras.layers.MaxPooling2D(layer["kernel"], layer["stride"])(value)


def _linear(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    weight, bias = weights[f"{layer['name']}/weight"], weights[f"{layer['name']}/bias"]
    made = keras.layers.Dense(len(bias))
    result = made(inputs[0])
    made.set_weights([weight.T, bias])
    return result


def _average(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    return keras.layers.GlobalAveragePooling2D()(inputs[0])


def _add(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    return keras.layers.Add()(inputs)


def _subsample(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    rows, columns = layer["stride"]
    return inputs[0][:, ::rows, ::columns, :]


def _pad_channels(layer: Layer, inputs: list[Any], weights: Mapping[str, np.ndarray]) -> Any:
    import keras

    return keras.ops.pad(inputs[0], ((0, 0), (0, 0), (0, 0), (layer["before"], layer["after"])))


_KINDS: dict[str, Callable[[Layer, list[Any], Mapping[str, np.ndarray]], Any]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Linear": _linear,
    "GlobalAvgPool": _average,
    "Flatten": lambda layer, inputs, weights: inputs[0],  # the average is flat already
    "Add": _add,
    "Subsample": _subsample,
    "PadChannels": _pad_channels,
}
