"""Files to be damaged: whole ones of each format, and hostile ones made for their readers."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from functools import cache
from typing import Any

import numpy as np

from campaign import mutations, training
from fastopt import checkpoint

Rng = np.random.Generator

KINDS = ("idx", "csv", "npz", "run", "object")


class Marker:
    """An object whose unpickling can be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("FASTOPT_CAMPAIGN_WAS_EXECUTED", "1")


@cache
def idx() -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for code, dtype in {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}.items():
        for shape in [(5,), (3, 4, 4), (2, 0), ()]:
            values = rng.integers(0, 100, shape).astype(dtype)
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
            files.append(header + values.tobytes())
    return files


@cache
def csv() -> list[bytes]:
    lines = [b"a,b,label", b"1,2.5,x", b"-3e2,0,y", b"7,.5,x"]
    table = b"\n".join(lines)
    return [
        table,
        table.replace(b",", b";"),
        table.replace(b",", b"\t").replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + table,
        b"1,2,0\n3,4,1\n\n5,6,0\n",
        b'"1","2","a, b"\n"3","4","c ""d"" e"\n',
        b"\n".join(b"%d,%d.25,%d" % (i, i, i % 3) for i in range(60)),
        b"x,y\n1e300,1\n-1e39,2.5\nnan,3\ninf,4\n",
        b'"' + b"a" * 140_000 + b'",1\n2,3\n',
        b"1," * 3000 + b"1",
    ]


#: Texts in place of an array's header, ``{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }``.
NPY_HEADERS = [
    *[
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 4), }",
        "{'descr': '|O', 'shape': (1,)}",
        "",
        "{",
    ],
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (4611686018427387904, 4, 0), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1, " * 80 + "), }",
    "{'descr': [('a', '<f8'), ('b', '|O')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': [('a', '<f8', (1000000,))] , 'fortran_order': False, 'shape': (0,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 4L), }",
    "{'descr': '<f8', 'fortran_order': 7, 'shape': 3, }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (12,), }",
    "__import__('os').putenv('FASTOPT_CAMPAIGN_WAS_EXECUTED', '1')",
    "-" * 4000 + "1",
    "(" * 150 + ")" * 150,
    "(" * 3000 + ")" * 3000,
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), 'shape': (3, 4), 'more': 1}",
    "[" * 80 + "'''",
    "{'descr': 'f" + "8" * 2000 + "', 'fortran_order': False, 'shape': (3, 4), }",
]


def npy(a: Any, header: str | None = None, version: tuple[int, int] = (1, 0)) -> bytes:
    """A NumPy file of an array, with another header if one is given."""
    if header is None:
        file = io.BytesIO()
        np.lib.format.write_array(file, np.asarray(a), version=version, allow_pickle=True)
        return file.getvalue()
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + np.asarray(a).tobytes()


def archive(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return file.getvalue()


@cache
def _arrays() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    return {"x": x, "y": y, "x_train": x[:4], "y_train": y[:4], "x_test": x[4:], "y_test": y[4:]}


@cache
def npz() -> list[bytes]:
    arrays = _arrays()
    every = [(f"{name}.npy", npy(a)) for name, a in arrays.items()]
    evil = pickle.dumps(Marker())
    return [
        archive(every[:2]),
        archive(every[2:]),
        archive(every[:1]),
        archive(every[:2], zipfile.ZIP_DEFLATED),
        archive(every[:2], zipfile.ZIP_BZIP2),
        archive(every[:2], zipfile.ZIP_LZMA),
        archive([("x.npy", npy(np.asfortranarray(arrays["x"]), version=(2, 0))), every[1]]),
        archive([("x.npy", npy(arrays["x"].astype(">f4"))), every[1]]),
        archive([("x.npy", npy(np.array([Marker(), Marker()], dtype=object)))]),
        archive([("x.npy", evil), every[1]]),
        archive([("x.npy", npy(np.zeros((1000, 1000)))), every[1]], zipfile.ZIP_DEFLATED),
        npy(arrays["x"]),
        evil,
    ]


@cache
def checkpoints(kind: str, folder: str) -> list[bytes]:
    """A training run, or single objects."""
    path = os.path.join(folder, "seed")
    if kind == "run":
        run = training.make()
        training.train(run, 9)
        checkpoint.save(path, **run, epoch=1, extra={"history": [0.5, 0.25]})
        with open(path, "rb") as file:
            return [file.read()]
    files = []
    values: list[Any] = [
        {"w": np.ones((2, 3)), "n": 3, (1, 2): None},
        [np.float32(0.5), float("nan")],
        "text",
    ]
    for value in values:
        checkpoint.save_object(value, path)
        with open(path, "rb") as file:
            files.append(file.read())
    return [*files, pickle.dumps(Marker()), pickle.dumps({"state": Marker()})]


# --- damage that knows the format ---------------------------------------------------------------------


def _idx(rng: Rng) -> bytes:
    files = idx()
    content = files[rng.integers(len(files))]
    kind = rng.integers(4)
    if kind == 0:
        dims = [int(rng.choice([0, 1, 2, 3, 2**16, 2**31, 2**32 - 1])) for _ in range(rng.integers(0, 5))]
        code = int(rng.choice([8, 9, 11, 12, 13, 14, 10, 0, 255]))
        content = struct.pack(f">BBBB{len(dims)}I", 0, 0, code, len(dims), *dims) + rng.bytes(
            int(rng.integers(40))
        )
    elif kind < 3:
        content = mutations.damage(content, rng)
    return gzip.compress(content, 1) if rng.random() < 0.3 else content


def _csv(rng: Rng) -> bytes:
    files = csv()
    content = files[rng.integers(len(files))]
    if rng.random() < 0.5:
        return content
    cells = [
        b"1",
        b"-2.5",
        b"",
        b" ",
        b"x",
        b'"',
        b'""',
        b"nan",
        b"1e400",
        b"1_0",
        b"\0",
        b"\xff",
        b"\xef\xbc\x91",
    ]
    rows = [b",".join(rng.choice(cells, rng.integers(1, 5))) for _ in range(rng.integers(1, 6))]
    return bytes(rng.choice([b"\n", b"\r\n", b"\r"])).join(rows)


def _npz(rng: Rng) -> bytes:
    files = npz()
    if rng.random() < 0.5:
        return files[rng.integers(len(files))]
    arrays = _arrays()
    x = npy(
        arrays["x"],
        NPY_HEADERS[rng.integers(len(NPY_HEADERS))],
        ((1, 0), (2, 0), (3, 0), (9, 9))[rng.integers(4)],
    )
    members = [("x.npy", x if rng.random() < 0.5 else mutations.damage(x, rng)), ("y.npy", npy(arrays["y"]))]
    if rng.random() < 0.1:
        members.append(("x", npy(arrays["x"][:2])))
    return archive(members, int(rng.choice([0, 8, 8, 12])))


def _tensors(content: bytes, rng: Rng) -> bytes:
    """Distort the header of a safetensors file, or the checkpoint's document in it."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.7:
        document = mutations.distort(json.loads(header["__metadata__"]["fastopt"]), rng)
        text = json.dumps(document) if rng.random() < 0.99 else "[" * 100_000
        header["__metadata__"]["fastopt"] = text
    else:
        header = mutations.distort(header, rng)
    text = json.dumps(header).encode() if rng.random() < 0.99 else b'{"a":' * 100_000
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def damaged(kind: str, rng: Rng, folder: str) -> bytes:
    """A file of a kind that is hostile, damaged or, at times, whole."""
    if kind in ("run", "object"):
        files = checkpoints(kind, folder)
        content = files[rng.integers(len(files))]
        if rng.random() < 0.6 and content[8:9] == b"{":
            return _tensors(content, rng)
    else:
        content = {"idx": _idx, "csv": _csv, "npz": _npz}[kind](rng)
    way = rng.integers(40)
    if way == 0:
        return content
    if way == 1:
        return rng.bytes(int(rng.integers(300)))
    if way == 2:
        return (gzip.compress, bz2.compress)[rng.integers(2)](content)
    return mutations.damage(content, rng)
