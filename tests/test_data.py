"""data.py: IDX, CSV and npz files, good and damaged; splits."""

import gzip
import math
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastopt import data

IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array):
    """IDX writer straight from the format's description."""
    header = bytes([0, 0, IDX_CODES[array.dtype.name], array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.fixture
def mnist_dir(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 4, 5), dtype=np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        write(tmp_path / f"{part}-images-idx3-ubyte", idx_bytes(images))
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(labels)))
    return tmp_path


# ------------------------------------------------------------------------------------------------ IDX

idx_arrays = st.sampled_from(sorted(IDX_CODES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(array=idx_arrays, compress=st.booleans())
def test_idx_round_trip(tmp_path, array, compress):
    content = idx_bytes(array)
    path = write(tmp_path / "a", gzip.compress(content) if compress else content)
    got = data.read_idx(path)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()  # NaNs included
    assert got.flags.writeable
    assert got.flags.aligned


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", sorted(IDX_CODES))
def test_idx_truncated_at_every_byte(tmp_path, name, compress):
    content = idx_bytes(np.arange(12).reshape(3, 4).astype(name))
    content = gzip.compress(content) if compress else content
    assert data.read_idx(write(tmp_path / "whole", content)).shape == (3, 4)
    for end in range(len(content)):
        path = write(tmp_path / "cut", content[:end])
        with pytest.raises(ValueError, match=r"cut: ") as error:
            data.read_idx(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_idx_trailing_bytes(tmp_path, compress):
    content = idx_bytes(np.zeros((2, 3), np.uint8)) + b"\0"
    path = write(tmp_path / "long", gzip.compress(content) if compress else content)
    with pytest.raises(
        ValueError, match=r"long: shape \(2, 3\) of uint8 needs 6 bytes, the file holds (7|more)"
    ):
        data.read_idx(path)


def test_idx_garbage_after_gzip(tmp_path):
    path = write(tmp_path / "g.gz", gzip.compress(idx_bytes(np.zeros(3, np.uint8))) + b"garbage")
    with pytest.raises(ValueError, match=r"g\.gz: damaged gzip file"):
        data.read_idx(path)


@pytest.mark.parametrize("position", range(4))
def test_idx_gzip_flipped_checksum(tmp_path, position):
    content = bytearray(gzip.compress(idx_bytes(np.arange(9, dtype=np.uint8))))
    content[-8 + position] ^= 1
    with pytest.raises(ValueError, match=r"damaged gzip file: CRC check failed"):
        data.read_idx(write(tmp_path / "crc", bytes(content)))


@pytest.mark.parametrize(
    ("magic", "message"),
    [
        (b"\1\0\x08\1", "magic is 01 00 08 01"),
        (b"\0\1\x08\1", "magic is 00 01 08 01"),
        (b"\0\0\x0a\1", "magic is 00 00 0a 01, expected 00 00, one of 08 09 0b 0c 0d 0e"),
        (b"\x89PNG", "magic is 89 50 4e 47"),
        (b"\0\0\x08\x41", "65 dimensions, NumPy has at most 64"),
    ],
)
def test_idx_wrong_magic(tmp_path, magic, message):
    with pytest.raises(ValueError, match=message):
        data.read_idx(write(tmp_path / "m", magic + struct.pack(">I", 1) * 65 + b"\0"))


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "shape", [(2**32 - 1,), (2**31, 2**31), (2**32 - 1,) * 3, (60000, 2**20, 2**20), (2**32 - 1,) * 64]
)
def test_idx_absurd_dimensions(tmp_path, shape, compress):
    """A header of 300 bytes that claims up to 2**2048 bytes is refused before anything is allocated."""
    content = bytes([0, 0, 0x0E, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"\0" * 64
    path = write(tmp_path / "bomb", gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=rf"bomb: .*needs {math.prod(shape) * 8} bytes, the file holds"):
        data.read_idx(path)


def test_idx_empty_but_unholdable(tmp_path):
    shape = (0,) + (2**32 - 1,) * 3
    with pytest.raises(ValueError, match=r"e: shape \(0, 4294967295"):
        data.read_idx(write(tmp_path / "e", bytes([0, 0, 8, 4]) + struct.pack(">4I", *shape)))


def test_idx_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        data.read_idx(tmp_path / "nothing")


def test_load_mnist(mnist_dir):
    x_train, y_train, x_test, y_test = data.load_mnist(mnist_dir)
    images = data.read_idx(mnist_dir / "train-images-idx3-ubyte")
    assert x_train.dtype == np.float32
    np.testing.assert_array_equal(x_train, (images.reshape(7, 20) / 255.0).astype(np.float32))
    assert y_train.dtype == y_test.dtype == np.int64
    np.testing.assert_array_equal(y_test, data.read_idx(mnist_dir / "t10k-labels-idx1-ubyte.gz"))
    assert x_test.shape == (3, 20)


def test_load_mnist_errors(mnist_dir):
    labels = mnist_dir / "train-labels-idx1-ubyte.gz"
    write(labels, idx_bytes(np.zeros(8, np.uint8)))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte has 7 images, .*labels-idx1-ubyte.gz has 8 labels"
    ):
        data.load_mnist(mnist_dir)
    write(labels, idx_bytes(np.zeros((7, 1), np.uint8)))
    with pytest.raises(ValueError, match=r"labels.*expected \(n,\) uint8, got \(7, 1\) uint8"):
        data.load_mnist(mnist_dir)
    labels.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"none of train-labels-idx1-ubyte, train-labels-idx1-ubyte\.gz"
    ):
        data.load_mnist(mnist_dir)
    write(labels, idx_bytes(np.zeros(7, np.uint8)))
    write(mnist_dir / "t10k-images-idx3-ubyte", idx_bytes(np.zeros((3, 4, 6), np.uint8)))
    with pytest.raises(ValueError, match=r"train images have 20 pixels, test images 24"):
        data.load_mnist(mnist_dir)
    write(mnist_dir / "train-images-idx3-ubyte", idx_bytes(np.zeros((7, 4, 5), np.float32)))
    with pytest.raises(ValueError, match=r"expected \(n, height, width\) uint8, got \(7, 4, 5\) float32"):
        data.load_mnist(mnist_dir)


def test_real_mnist(shared):
    x_train, y_train, x_test, y_test = data.load_mnist(shared / "data" / "mnist")
    assert x_train.shape == (60000, 784)
    assert x_test.shape == (10000, 784)
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.mean(x_train, dtype=np.float64) == pytest.approx(0.1306604762738429, rel=1e-6)
    assert np.std(x_train, dtype=np.float64) == pytest.approx(0.3081078, rel=1e-5)


def test_load_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x_train, y_train, x_test, y_test = data.load_digits()
    assert len(x_test) == round(1797 * 0.2)
    x, y = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    assert x.dtype == np.float32
    assert sorted(map(tuple, np.c_[x * 16, y])) == sorted(map(tuple, np.c_[images, labels]))
    share = np.bincount(y_test, minlength=10) / np.bincount(labels)
    assert np.all(np.abs(share - 0.2) < 0.005)  # one row of 180
    again = data.load_digits()
    np.testing.assert_array_equal(again[2], x_test)


# ------------------------------------------------------------------------------------------------ CSV


def csv(tmp_path, text):
    return write(tmp_path / "t.csv", text.encode() if isinstance(text, str) else text)


IRIS = "sepal,petal,species\n5.1,1.4,setosa\n7.0,4.7,versicolor\n6.3,6.0,virginica\n4.9,1.5,setosa\n"
IRIS_X = np.array([[5.1, 1.4], [7.0, 4.7], [6.3, 6.0], [4.9, 1.5]], np.float32)


@pytest.mark.parametrize("header", [True, None])
def test_csv_header_and_text_labels(tmp_path, header):
    table = data.read_csv(csv(tmp_path, IRIS), header=header)
    np.testing.assert_array_equal(table.x, IRIS_X)
    assert table.x.dtype == np.float32
    assert table.y.tolist() == [0, 1, 2, 0]
    assert table.y.dtype == np.int64
    assert table.classes == ["setosa", "versicolor", "virginica"]
    assert table.features == ["sepal", "petal"]
    assert table.label == 2


@pytest.mark.parametrize(
    "text",
    [
        IRIS.partition("\n")[2],
        IRIS.partition("\n")[2].replace("\n", "\r\n"),
        IRIS.partition("\n")[2].replace(",", ";"),
        IRIS.partition("\n")[2].replace(",", "\t"),
        IRIS.partition("\n")[2].replace(",", ", "),
        "\n\n" + IRIS.partition("\n")[2].replace("\n", "\n\n"),
        b"\xef\xbb\xbf" + IRIS.partition("\n")[2].encode(),
        IRIS.partition("\n")[2].replace("setosa", '"setosa"').replace("5.1", '"5.1"'),
    ],
    ids=["plain", "crlf", "semicolon", "tab", "spaces", "blank lines", "bom", "quoted"],
)
def test_csv_without_header(tmp_path, text):
    table = data.read_csv(csv(tmp_path, text))
    np.testing.assert_array_equal(table.x, IRIS_X)
    assert table.y.tolist() == [0, 1, 2, 0]
    assert table.features is None


@pytest.mark.parametrize("label", ["a", 0, -3])
def test_csv_label_column(tmp_path, label):
    table = data.read_csv(csv(tmp_path, "a,b,c\n3,1.5,2\n4,2.5,inf\n"), label=label)
    assert table.y.tolist() == [3, 4]
    assert table.y.dtype == np.int64
    assert table.classes is None
    assert table.x.tolist() == [[1.5, 2.0], [2.5, math.inf]]
    assert table.features == ["b", "c"]
    assert table.label == 0


def test_csv_without_label_and_fractional_labels(tmp_path):
    path = csv(tmp_path, "1,2\n3,4.5\n")
    table = data.read_csv(path, label=None)
    assert table.y is None
    assert table.x.tolist() == [[1, 2], [3, 4.5]]
    table = data.read_csv(path)
    assert table.y.dtype == np.float32
    assert table.y.tolist() == [2, 4.5]
    assert data.read_csv(csv(tmp_path, "1,2")).x.tolist() == [[1]]


def test_csv_values_are_read_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 4)) * 10.0 ** np.arange(-20, 20, 10)
    text = "\n".join(",".join(map(repr, map(float, row))) + ",1" for row in values)
    np.testing.assert_array_equal(data.read_csv(csv(tmp_path, text)).x, values.astype(np.float32))


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("", {}, "t.csv: empty file"),
        ("\n \n", {}, "t.csv: empty file"),
        ("a,b\n", {}, "t.csv: no rows of data"),
        ("a\n1\n", {}, "t.csv: no feature column"),
        ("a,b,y\n1,2,0\n1,x,0\n", {}, r"t.csv: line 3, column 2 \('b'\): expected a number, got 'x'"),
        ("1,2,0\n1,2,0\n\n3,,0\n", {}, "t.csv: line 4, column 2: expected a number, got ''"),
        ("1,2,0\n1,1_0,0\n", {}, "t.csv: line 2, column 2: expected a number, got '1_0'"),
        ("1,2,0\n1,2\n", {}, "t.csv: line 2 has 2 columns, expected 3"),
        ("1,2,0\n1,2,3,4\n", {}, "t.csv: line 2 has 4 columns, expected 3"),
        ("1,2,3\n1,2\n1,2\n", {}, "t.csv: line 2 has 2 columns, expected 3"),
        ("a,b,c\n1,2\n1,2\n", {}, "t.csv: line 2 has 2 columns, expected 3"),
        ("a,b\n1,\n", {}, "t.csv: row 1 of data has an empty label"),
        ("a,b\n1,2\n", {"label": "z"}, "label: 0 columns named 'z' in .*t.csv: a, b"),
        ("a,a\n1,2\n", {"label": "a"}, "label: 2 columns named 'a'"),
        ("a,b\n1,2\n", {"label": 2}, "label: column 2 is out of range, .*t.csv has 2 columns"),
        ("a,b\n1,2\n", {"label": -3}, "label: column -3 is out of range"),
        ("1,2\n", {"label": "a", "header": False}, "label: 'a' is a name, .*t.csv has no header"),
        ("a,b\n1,2\n", {"header": False}, "t.csv: line 1, column 1: expected a number, got 'a'"),
        (b"1,2\n\xff,3\n", {}, "t.csv: not UTF-8 text"),
        (b"1,2\n" * 5000 + b"\xff,3\n", {}, "t.csv: not UTF-8 text"),
    ],
)
def test_csv_errors(tmp_path, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.read_csv(csv(tmp_path, text), **kwargs)


def test_csv_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        data.read_csv(tmp_path / "gone.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(text=st.text("0123456789.,;-+e\"'\n\r\tab #_ nif", max_size=60))
def test_csv_any_text_is_read_or_refused(tmp_path, text):
    """Whatever the text, the answer is a table of numbers or a ValueError that names the file."""
    try:
        table = data.read_csv(csv(tmp_path, text))
    except ValueError as error:
        message = str(error)
    else:
        message = "t.csv"
        assert len(table.x) == len(table.y) > 0
    assert "t.csv" in message


# ------------------------------------------------------------------------------------------------ npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    x, y = np.arange(6, dtype=np.int16).reshape(3, 2), np.array([0, 1, 0])
    save(tmp_path / "a.npz", x=x, y=y, other=np.zeros(9))
    got = data.read_npz(tmp_path / "a.npz")
    assert len(got) == 2
    np.testing.assert_array_equal(got[0], x)
    assert got[0].dtype == np.int16
    np.testing.assert_array_equal(got[1], y)

    save(tmp_path / "b.npz", x=x, y=y, x_train=x, y_train=y, x_test=x[:1] + 5, y_test=y[1:2])
    got = data.read_npz(tmp_path / "b.npz")
    assert [a.tolist() for a in got[2:]] == [[[5, 6]], [1]]
    save(tmp_path / "c.npz", x=x)
    np.testing.assert_array_equal(data.read_npz(tmp_path / "c.npz")[0], x)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "x has 3 rows, y has 4"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "expected x and y.*; the file has a, b"),
        ({}, "expected x and y.*; the file has nothing"),
        ({"x": np.array([{}]), "y": np.zeros(1)}, "x has dtype object, which only pickle can read"),
        ({"x": np.zeros(3), "y": np.float64(1)}, "y is 0-d"),
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    path = tmp_path / "e.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"e\.npz: {message}"):
        data.read_npz(path)


def test_npz_damaged(tmp_path):
    path = write(tmp_path / "d.npz", b"PK\3\4 no zip")
    with pytest.raises(ValueError, match=r"d\.npz: not an npz file"):
        data.read_npz(path)
    with pytest.raises(FileNotFoundError):
        data.read_npz(tmp_path / "gone.npz")
    np.savez(path, x=np.arange(100.0))
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(50).tobytes()) + 7] ^= 1
    with pytest.raises(ValueError, match=r"d\.npz: damaged npz file: Bad CRC"):
        data.read_npz(write(path, bytes(content)))


def test_npz_that_claims_more_than_it_holds(tmp_path):
    path = tmp_path / "bomb.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1024), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    with pytest.raises(
        ValueError, match=rf"bomb\.npz: x claims {2**40 * 8192} bytes, the file holds at most"
    ):
        data.read_npz(path)


# ---------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize("stratify", [False, True])
def test_split_is_a_partition(stratify):
    x, y = np.arange(101), np.repeat(np.arange(4), [50, 30, 20, 1])
    parts = data.train_test_split(x, y, test_size=0.2, seed=3, stratify=y if stratify else None)
    x_train, x_test, y_train, y_test = parts
    assert len(x_test) == 20
    assert sorted([*x_train, *x_test]) == list(range(101))
    np.testing.assert_array_equal(y[x_train], y_train)
    np.testing.assert_array_equal(y[x_test], y_test)
    assert not np.all(np.diff(x_train) > 0)
    if stratify:
        assert np.bincount(y_test, minlength=4).tolist() == [10, 6, 4, 0]
    again = data.train_test_split(x, y, test_size=0.2, seed=3, stratify=y if stratify else None)
    other = data.train_test_split(x, y, test_size=0.2, seed=4, stratify=y if stratify else None)
    np.testing.assert_array_equal(again[1], x_test)
    assert not np.array_equal(other[1], x_test)


def test_split_in_order():
    assert [p.tolist() for p in data.train_test_split(np.arange(5), test_size=2, shuffle=False)] == [
        [0, 1, 2],
        [3, 4],
    ]


@pytest.mark.parametrize(
    ("arrays", "kwargs", "message"),
    [
        ((), {}, "no arrays"),
        ((np.zeros(3), np.zeros(4)), {}, "array 1 has 4 rows, array 0 has 3"),
        ((np.zeros(()),), {}, "array 0 is 0-d"),
        ((np.zeros(4),), {"test_size": 1.0}, r"test_size as a share must be in \(0, 1\), got 1.0"),
        ((np.zeros(4),), {"test_size": math.nan}, r"got nan"),
        ((np.zeros(4),), {"test_size": 4}, "cannot take 4 test rows out of 4"),
        ((np.zeros(4),), {"test_size": 0}, "cannot take 0 test rows out of 4"),
        ((np.zeros(1),), {}, "cannot take 1 test rows out of 1"),
        ((np.zeros(4),), {"stratify": [1, 2]}, r"stratify has shape \(2,\), expected \(4,\)"),
        ((np.zeros(4),), {"stratify": [1, 2, 1, 2], "shuffle": False}, "stratify needs shuffle=True"),
    ],
)
def test_split_errors(arrays, kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.train_test_split(*arrays, **kwargs)
