"""Values follow numpy: chains of transposes, squeezes and reshapes of axes, without a node."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.errors import GraphError
from edge_resnet.frontends.values import Value, reshaped, squeezed, transposed, unsqueezed


def _held(value: Value, node: np.ndarray) -> np.ndarray:
    """The tensor, from the node's array [1, C, H, W]: what `axes` and `flat` say."""
    if value.flat is not None:
        rest = [axis for axis in range(4) if axis not in value.flat]
        return node.transpose(*rest, *value.flat).reshape(1, -1)
    rest = [axis for axis in range(4) if axis not in value.axes]
    return node.transpose(*value.axes, *rest).reshape(value.shape)


def _apply(value: Value, tensor: np.ndarray, data: st.DataObject) -> tuple[Value, np.ndarray]:
    """One random step, done to both."""
    rank = tensor.ndim
    ones = [i for i in range(1, rank) if tensor.shape[i] == 1 and value.axes[i] != 0]
    kinds = ["transpose", "negative transpose", "reshape", "same"]
    kinds += ["squeeze", "squeeze all"] if ones else []
    kinds += ["unsqueeze", "unsqueeze negative"] if rank < 4 else []
    kind = data.draw(st.sampled_from(kinds))
    if kind in ("transpose", "negative transpose"):
        order = [0, *data.draw(st.permutations(range(1, rank)))]
        given_order = [n - rank for n in order] if kind.startswith("negative") else order
        return transposed(value, given_order), tensor.transpose(order)
    if kind == "squeeze":
        numbers = data.draw(st.lists(st.sampled_from(ones), min_size=1, unique=True))
        return squeezed(value, [n - rank for n in numbers]), np.squeeze(tensor, tuple(numbers))
    if kind == "squeeze all":
        return squeezed(value, None), np.squeeze(tensor, tuple(ones))
    if kind == "unsqueeze":
        at = data.draw(st.integers(1, rank))
        return unsqueezed(value, [at]), np.expand_dims(tensor, at)
    if kind == "unsqueeze negative":
        at = data.draw(st.integers(-rank, -1))
        return unsqueezed(value, [at]), np.expand_dims(tensor, at)
    if kind == "same":
        return reshaped(value, [-1, *tensor.shape[1:]]), tensor
    large = [size for size in tensor.shape if size != 1]
    if len(large) > 3:
        return value, tensor
    shape = large
    for _ in range(data.draw(st.integers(0, 3 - len(large)))):
        shape = list(shape)
        shape.insert(data.draw(st.integers(0, len(shape))), 1)
    shape = [1, *shape]
    asked = list(shape)
    if len(asked) > 1 and data.draw(st.booleans()):
        asked[data.draw(st.integers(1, len(asked) - 1))] = -1
    return reshaped(value, asked), tensor.reshape(shape)


@given(
    sizes=st.tuples(*[st.sampled_from([1, 1, 2, 3, 5])] * 3),
    steps=st.integers(1, 8),
    flatten=st.booleans(),
    data=st.data(),
)
@settings(max_examples=400)
def test_chains_agree_with_numpy(
    sizes: tuple[int, int, int], steps: int, flatten: bool, data: st.DataObject
) -> None:
    node = np.arange(np.prod(sizes)).reshape(1, *sizes)
    value, tensor = Value("x", (0, 1, 2, 3), (1, *sizes)), node
    for _ in range(steps):
        value, tensor = _apply(value, tensor, data)
        assert value.shape == tensor.shape
        assert value.axes[0] == 0
        assert len(set(value.axes)) == len(value.axes)
        assert np.array_equal(_held(value, node), tensor)
    if flatten:
        value, tensor = reshaped(value, [1, -1]), tensor.reshape(1, -1)
        assert value.shape == tensor.shape
        assert np.array_equal(_held(value, node), tensor)
        assert reshaped(value, [-1, tensor.shape[1]]) == value


IMAGE = Value("x", (0, 1, 2, 3), (1, 4, 3, 5))
GATE = Value("x", (0, 1, 2, 3), (1, 4, 1, 1))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: transposed(IMAGE, [0, 1, 1, 2]), "a transpose in the order"),
        (lambda: transposed(IMAGE, [0, 1, 2]), "a transpose in the order"),
        (lambda: transposed(IMAGE, [1, 0, 2, 3]), "moves the batch axis"),
        (lambda: squeezed(IMAGE, [1]), "a squeeze"),
        (lambda: squeezed(GATE, [0]), "a squeeze"),
        (lambda: squeezed(GATE, [9]), "a"),
        (lambda: unsqueezed(GATE, [0]), "axes"),
        (lambda: unsqueezed(squeezed(GATE, [2, 3]), [1, 1]), "axes"),
        (lambda: unsqueezed(IMAGE, [2]), "a tensor of 5 axes"),
        (lambda: reshaped(IMAGE, [1, 12, 5]), "a reshape"),
        (lambda: reshaped(IMAGE, [1, 4, 5, 3]), "a reshape"),
        (lambda: reshaped(IMAGE, [2, -1]), "a reshape"),
        (lambda: reshaped(IMAGE, [60]), "a reshape"),
        (lambda: reshaped(IMAGE, [1, -1, -1]), "a reshape"),
        (lambda: reshaped(IMAGE, [1, 0]), "a reshape"),
        (lambda: reshaped(IMAGE, [1, -7]), "a reshape"),
        (lambda: reshaped(IMAGE, [-1, -60]), "a reshape"),
        (lambda: reshaped(IMAGE, []), "a reshape"),
        (lambda: reshaped(IMAGE, [1, 7]), "a reshape"),
        (lambda: reshaped(GATE, [1, 4, 1, 1, 1]), "a tensor of 5 axes"),
        (lambda: reshaped(reshaped(IMAGE, [1, -1]), [1, 4, 3, 5]), "a flattened image"),
        (lambda: transposed(reshaped(IMAGE, [1, -1]), [0, 1]), "was flattened"),
        (lambda: squeezed(reshaped(IMAGE, [1, -1]), None), "was flattened"),
        (lambda: IMAGE.axis(4), "axis 4"),
        (lambda: IMAGE.axis(-5), "axis -5"),
    ],
)
def test_what_has_no_meaning_is_refused(step: object, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        step()  # type: ignore[operator]


def test_a_flattened_image_knows_the_order_of_its_axes() -> None:
    channels_last = transposed(IMAGE, [0, 2, 3, 1])
    assert reshaped(channels_last, [1, -1]).flat == (2, 3, 1)
    assert reshaped(IMAGE, [-1, 60]).flat == (1, 2, 3)
