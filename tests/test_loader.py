"""DataLoader and TensorDataset: batches, order, resume, errors."""

import numpy as np
import pytest

from fastopt import Tensor, data, manual_seed, tensor


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (1, False, [1] * 10),
        (3, False, [3, 3, 3, 1]),
        (3, True, [3, 3, 3]),
        (5, True, [5, 5]),
        (10, False, [10]),
        (None, False, [10]),
        (64, False, [10]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_loader_batches(batch_size, drop_last, sizes, shuffle):
    x = np.arange(20.0).reshape(10, 2)
    y = np.arange(10)
    loader = data.DataLoader(x, y, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches)
    assert [len(xb) for xb, _ in batches] == [len(yb) for _, yb in batches] == sizes
    rows = np.concatenate([yb for _, yb in batches])
    np.testing.assert_array_equal(np.concatenate([xb for xb, _ in batches]), x[rows])
    assert len(set(rows.tolist())) == sum(sizes)
    assert (rows.tolist() == list(range(sum(sizes)))) == (not shuffle)


def test_loader_defaults_and_kinds_of_input():
    x = np.arange(6.0).reshape(3, 2)
    assert [b.tolist() for b in data.DataLoader(x)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert [type(b) for b in data.DataLoader((x,), batch_size=2)] == [tuple, tuple]
    (a, b, c), _ = data.DataLoader((x, [1, 2, 3]), x + 1, batch_size=2)
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[0, 1], [2, 3]], [1, 2], [[1, 2], [3, 4]])


def test_loader_of_tensors_lists_and_torch():
    x, y = tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), tensor([0, 1, 2])
    batches = list(data.DataLoader(x, y, batch_size=2))
    assert all(isinstance(part, Tensor) for batch in batches for part in batch)
    assert [xb.tolist() for xb, _ in batches] == [[[1, 2], [3, 4]], [[5, 6]]]
    assert [yb.tolist() for _, yb in batches] == [[0, 1], [2]]
    (xb, yb), *_ = data.DataLoader([[0.5], [1.5]], [1, 2], batch_size=2)
    assert (type(xb), xb.dtype, yb.dtype) == (np.ndarray, np.float32, np.int64)  # torch's defaults for lists
    torch = pytest.importorskip("torch")
    shared = torch.arange(6.0)
    first = next(iter(data.DataLoader(shared, batch_size=4)))
    assert isinstance(first, np.ndarray)
    shared[0] = 9
    assert first.tolist() == [9, 1, 2, 3]


def test_tensor_dataset():
    dataset = data.TensorDataset(tensor([[1.0], [2.0], [3.0]]), np.arange(3))
    assert len(dataset) == 3
    assert [part.tolist() for part in dataset[1]] == [[2.0], 1]
    loader = data.DataLoader(dataset, batch_size=2)
    assert loader.dataset is dataset
    assert [(xb.tolist(), yb.tolist()) for xb, yb in loader] == [([[1], [2]], [0, 1]), ([[3]], [2])]
    assert len(data.DataLoader(np.ones((5, 2)), batch_size=2).dataset) == 5


def test_loader_without_seed_follows_manual_seed():
    orders = []
    for seed in (1, 1, 2):
        manual_seed(seed)
        orders.append(order(data.DataLoader(np.arange(50), batch_size=50, shuffle=True)))
    assert orders[0] == orders[1] != orders[2]


def test_loader_slices_share_memory_and_shuffled_batches_stay_valid():
    x = np.arange(12.0)
    plain = list(data.DataLoader(x, batch_size=5))
    assert all(np.shares_memory(b, x) for b in plain)
    loader = data.DataLoader(x, batch_size=5, shuffle=True, seed=1)
    kept = list(loader)
    copies = [b.copy() for b in data.DataLoader(x, batch_size=5, shuffle=True, seed=1)]
    assert not any(np.shares_memory(b, x) for b in kept)
    for a, b in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(a, b)


def order(loader):
    return np.concatenate(list(loader)).tolist()


def test_loader_permutation_is_a_function_of_seed_and_epoch():
    x = np.arange(50)
    loader = data.DataLoader(x, batch_size=7, shuffle=True, seed=5)
    epochs = [order(loader) for _ in range(4)]
    assert len({tuple(e) for e in epochs}) == 4
    loader.set_epoch(2)
    assert order(loader) == epochs[2]
    assert order(data.DataLoader(x, batch_size=9, shuffle=True, seed=5)) == epochs[0]
    assert order(data.DataLoader(x, batch_size=7, shuffle=True, seed=6)) != epochs[0]
    assert epochs[3] == np.random.default_rng([5, 3]).permutation(50).tolist()


def test_loader_left_early_begins_a_new_epoch():
    loader = data.DataLoader(np.arange(50), batch_size=7, shuffle=True, seed=5)
    next(iter(loader))
    assert order(loader) == np.random.default_rng([5, 1]).permutation(50).tolist()
    assert loader.epoch == 2


@pytest.mark.parametrize("stop", range(17))
def test_loader_resumes_exactly(stop):
    """Whatever batch the state was taken after, a new loader gives the batches that were left."""

    def make(seed):
        return data.DataLoader(np.arange(50), batch_size=7, shuffle=True, seed=seed)

    unbroken, broken = make(1), make(1)
    expected = [b.tolist() for _ in range(3) for b in unbroken]
    got, state = [], broken.state_dict()
    for _ in range(3):
        for b in broken:
            if len(got) == stop:
                break
            got.append(b.tolist())
            state = broken.state_dict()
        else:
            continue
        break
    resumed = make(99)
    resumed.load_state_dict(state)
    while resumed.epoch < 3:
        got += [b.tolist() for b in resumed]
    assert got == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: data.DataLoader(np.zeros(3), np.zeros(4)), ValueError, "array 1 has 4 rows, array 0 has 3"),
        (lambda: data.DataLoader(np.zeros((0, 2))), ValueError, "x has 0 rows"),
        (lambda: data.DataLoader(()), ValueError, "empty tuple"),
        (lambda: data.DataLoader(3.0), ValueError, "array 0 is 0-d"),
        (lambda: data.DataLoader(np.zeros(3), batch_size=0), ValueError, "at least 1, got 0"),
        (lambda: data.DataLoader(np.zeros(3), batch_size=-1), ValueError, "at least 1, got -1"),
        (lambda: data.DataLoader(np.zeros(3), batch_size=1.5), TypeError, "an integer, got 1.5"),
        (lambda: data.DataLoader(np.zeros(3), batch_size="a"), TypeError, "an integer, got 'a'"),
        (lambda: data.DataLoader(np.zeros(3), batch_size=np.nan), TypeError, "an integer, got nan"),
        (lambda: data.DataLoader(np.zeros(3), seed=1.5), TypeError, "float"),
        (lambda: data.DataLoader(np.zeros(3), batch_size=True), TypeError, "an integer, got True"),
        (
            lambda: data.DataLoader(np.zeros(3), batch_size=4, drop_last=True),
            ValueError,
            "leaves none of 3 rows",
        ),
        (lambda: data.DataLoader(np.zeros(3), seed=-1), ValueError, "seed must not be negative, got -1"),
        (
            lambda: data.DataLoader(np.zeros(3)).set_epoch(-1),
            ValueError,
            "epoch must not be negative, got -1",
        ),
        (
            lambda: data.DataLoader(np.zeros(3)).load_state_dict({"seed": 1}),
            ValueError,
            "batch, epoch missing",
        ),
        (
            lambda: data.DataLoader(np.zeros(3)).load_state_dict({"seed": 1, "epoch": 0, "batch": 4}),
            ValueError,
            "batch is 4, this loader has 3",
        ),
    ],
)
def test_loader_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("change", [{"seed": "z"}, {"epoch": -1}, {"batch": 9}])
def test_a_refused_state_changes_nothing(change):
    loader = data.DataLoader(np.arange(5), shuffle=True, seed=3)
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(ValueError):  # noqa: PT011
        loader.load_state_dict({"seed": 1, "epoch": 4, "batch": 1, **change})
    assert loader.state_dict() == before


def test_loader_of_text_labels():
    (_, yb), *_ = data.DataLoader(np.zeros((3, 1)), np.array(["a", "b", "a"]), batch_size=2)
    assert yb.tolist() == ["a", "b"]
