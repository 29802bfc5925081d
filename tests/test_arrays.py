"""Arrays of other libraries and awkward layouts as the kernels see them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastopt._arrays import Dense, as_view
from fastopt.optim import AdamW


class Dlpack:
    """Nothing but DLPack's protocol around an array."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)


def test_numpy_array_is_returned_as_it_is() -> None:
    a = np.zeros(3)
    assert as_view(a, "x") is a


def test_subclass_becomes_a_plain_view() -> None:
    a = np.zeros(3).view(np.recarray)
    view = as_view(a, "x")
    assert type(view) is np.ndarray
    view[1] = 5
    assert a[1] == 5


def test_dlpack_shares_memory() -> None:
    a = np.zeros(3, np.float32)
    as_view(Dlpack(a), "x")[2] = 7
    assert a[2] == 7


@pytest.mark.peers
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "float16"])
def test_torch_tensor_shares_memory(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3, dtype=getattr(torch, name), requires_grad=True)
    view = as_view(tensor, "x")
    view[1] = 2
    assert view.dtype == np.dtype(getattr(ml_dtypes, name, None) or name)
    assert tensor.tolist() == [0, 2, 0]


@pytest.mark.peers
def test_torch_meta_device_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"params\[1\] is on device meta, expected cpu"):
        as_view(torch.zeros(3, device="meta"), "params[1]")


@pytest.mark.peers
def test_torch_tensors_that_numpy_cannot_view_are_refused_by_name() -> None:
    torch = pytest.importorskip("torch")
    unknown_to_dlpack = torch.zeros(3, dtype=torch.bfloat16)
    wrapped = Dlpack(unknown_to_dlpack, (1, 0))
    for x in (torch.eye(3).to_sparse(), torch.tensor([1j]).conj(), wrapped):
        with pytest.raises(TypeError, match=r"^params\[0\] cannot be viewed as a NumPy array: "):
            as_view(x, "params[0]")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, r"params\[0\] is list, expected an array"),
        (1.0, TypeError, r"params\[0\] is float, expected an array"),
        (np.ma.zeros(3), TypeError, r"params\[0\] is a masked array"),
        (
            Dlpack(np.zeros(1), (10, 1)),
            ValueError,
            r"params\[0\] is on DLPack device \(10, 1\), expected the CPU",
        ),
    ],
)
def test_refused_objects(x: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        as_view(x, "params[0]")


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


LAYOUTS = {
    "C": (lambda a: a, True, False),
    "Fortran": (np.asfortranarray, False, False),
    "permuted": (lambda a: np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1), False, False),
    "strided": (lambda a: np.repeat(a, 2, axis=1)[:, ::2], False, True),
    "negative": (lambda a: a[:, ::-1].copy()[:, ::-1], False, True),
    "misaligned": (misaligned, False, True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_updates_the_source(layout: str) -> None:
    make, plain, copied = LAYOUTS[layout]
    values = np.arange(24.0).reshape(2, 3, 4)
    source = make(values.copy())
    dense = Dense(source)
    assert (dense.plain, dense.copied) == (plain, copied)
    assert dense.array.flags.c_contiguous
    assert dense.array.flags.aligned
    source += 1  # changed behind the copy's back
    dense.load()
    dense.array -= 0.5 * dense.arrange(values)
    dense.store()
    np.testing.assert_array_equal(source, values + 1 - 0.5 * values)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SLICES = [slice(None), slice(None, None, -1), slice(None, None, 2)]


@given(hnp.arrays(np.float64, SHAPES, elements=st.integers(-1000, 1000)), st.data())
def test_dense_of_any_view(a: np.ndarray, data: st.DataObject) -> None:
    if a.ndim:
        a = a.transpose(data.draw(st.permutations(range(a.ndim))))
        a = a[tuple(data.draw(st.sampled_from(SLICES)) for _ in range(a.ndim))]
    a = a if a.flags.owndata else a[...]
    expected = a * 2
    dense = Dense(a)
    dense.load()
    dense.array += dense.arrange(a.copy())
    dense.store()
    np.testing.assert_array_equal(a, expected)


@pytest.mark.parametrize("offset", [0, 4, 16, 64, 4000], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [3000, 2**19 - 512], ids=str)
def test_state_lies_apart_from_its_parameter_in_a_page(offset: int, dtype: str, size: int) -> None:
    raw = np.zeros(2**19 + 4096, dtype)
    p = raw[offset // raw.itemsize :][:size]
    opt = AdamW([p], ema_decay=0.9)
    opt.step([np.ones_like(p)])
    state = opt._state[0]
    arrays = [p, *(state[name] for name in ("exp_avg", "exp_avg_sq", "ema"))]
    places = np.sort([a.ctypes.data % 4096 for a in arrays])
    gaps = np.diff([*places, places[0] + 4096])
    assert gaps.min() >= 512
    assert all(a.ctypes.data % 64 == 0 for a in arrays[1:])
