"""Programs in the style of the torch tutorials, with only the import changed, against torch's results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo


@pytest.fixture(scope="session")
def cases(shared: Path) -> list[dict]:
    return json.loads((shared / "data" / "tutorial_cases.json").read_text())["cases"]


def named(cases: list[dict], prefix: str) -> list[dict]:
    found = [case for case in cases if case["case"].startswith(prefix)]
    assert found, f"no case {prefix}"
    return found


def close(ours, theirs) -> None:
    """Equal up to a few roundings of float32."""
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs, np.float32), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCELoss", "L1Loss", "MSELoss", "SmoothL1Loss"])
def test_losses(cases: list[dict], name: str) -> None:
    for case in named(cases, name):
        y_pred = fo.tensor(case["input"], requires_grad=True)
        y_true = fo.tensor(case["target"])
        loss = getattr(fo.nn, name)(**case.get("options", {}))(y_pred, y_true)
        loss.backward()
        close(loss.item(), case["loss"])
        close(y_pred.grad, case["grad"])


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "NAdam", "Adadelta"])
def test_optimizers(cases: list[dict], name: str) -> None:
    for case in named(cases, "optim." + name):
        if case["case"] != "optim." + name:
            continue
        w = fo.tensor(case["w0"], requires_grad=True)
        optimizer = getattr(fo.optim, name)([w], **case["options"])
        for step in case["steps"]:
            loss = ((w**2) / 2.0).sum()
            optimizer.zero_grad()
            loss.backward()
            close(w.grad.item(), step["grad"])
            optimizer.step()
            close(w.item(), step["weight"])


@pytest.mark.parametrize("name", ["StepLR", "MultiStepLR", "ExponentialLR"])
def test_schedulers(cases: list[dict], name: str) -> None:
    (case,) = [c for c in cases if c["case"] == "lr_scheduler." + name]
    fo.manual_seed(1)
    x, w, y = fo.ones(1), fo.ones(1, requires_grad=True), fo.zeros(1)
    optimizer = fo.optim.SGD([w], lr=case["lr"], momentum=0.9)
    scheduler = getattr(fo.optim.lr_scheduler, name)(optimizer, **case["options"])
    for epoch in range(case["epochs"]):
        lr = optimizer.param_groups[0]["lr"]
        assert lr == pytest.approx(case["lr_per_epoch"][epoch], rel=1e-12)
        for _ in range(case["iterations_per_epoch"]):
            loss = fo.mean((w * x - y) ** 2 / 2.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
        if str(epoch) in case["weight_after_epoch"]:
            # The weight swings through 0: what rounding did to it is measured against its course.
            expected = case["weight_after_epoch"][str(epoch)]
            assert w.item() == pytest.approx(expected, rel=2e-4, abs=1e-12)


def test_backpropagation_through_two_layers(cases: list[dict]) -> None:
    (case,) = named(cases, "backprop 2-2-2")

    class Net(fo.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = fo.nn.Sequential(
                fo.nn.Linear(2, 2), fo.nn.ReLU(), fo.nn.Linear(2, 2), fo.nn.Sigmoid()
            )

        def forward(self, x):
            return self.layers(x)

    net = Net()
    state = net.state_dict()
    for name, values in case["weights"].items():
        state["layers." + name] = fo.tensor(values, dtype=fo.float32)
    net.load_state_dict(state)
    x, y = fo.tensor(case["input"]), fo.tensor(case["target"])
    optimizer = fo.optim.SGD(net.parameters(), lr=0.01)

    y_pred = net(x)
    loss = fo.nn.MSELoss()(y_pred, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    close(y_pred.detach().numpy(), case["output"])
    close(loss.item(), case["loss"])
    for name, parameter in net.layers.named_parameters():
        close(parameter.grad, case["grads"][name])
        close(parameter.detach(), case["weights_after_step"][name])


def test_the_second_layer_by_hand_with_functional(cases: list[dict]) -> None:
    """The same network as plain arrays: forward, backward and update written out."""
    (case,) = named(cases, "backprop 2-2-2")
    p = {name: np.array(values, np.float32) for name, values in case["weights"].items()}
    x, y = np.array(case["input"], np.float32), np.array(case["target"], np.float32)
    F = fo.functional
    h = F.relu(F.linear(x, p["0.weight"], p["0.bias"]))
    out = F.sigmoid(F.linear(h, p["2.weight"], p["2.bias"]))
    loss, dout = F.mse_loss_with_grad(out, y)
    grads = {}
    dh, grads["2.weight"], grads["2.bias"] = F.linear_backward(F.sigmoid_grad(dout, y=out), h, p["2.weight"])
    _, grads["0.weight"], grads["0.bias"] = F.linear_backward(F.relu_grad(dh, y=h), x, p["0.weight"])
    fo.optim.SGD(p, lr=0.01).step(grads)
    close(out, case["output"])
    close(loss, case["loss"])
    for name in p:
        close(grads[name], case["grads"][name])
        close(p[name], case["weights_after_step"][name])


def test_linear_regression_without_nn() -> None:
    fo.manual_seed(0)
    x = fo.linspace(-1, 1, 50).reshape(-1, 1)
    y = 3 * x + 2 + 0.01 * fo.randn(50, 1)
    w, b = fo.randn(1, 1, requires_grad=True), fo.zeros(1, requires_grad=True)
    for _ in range(200):
        loss = ((x @ w + b - y) ** 2).mean()
        loss.backward()
        with fo.no_grad():
            w -= 0.5 * w.grad
            b -= 0.5 * b.grad
            w.grad.zero_()
            b.grad.zero_()
    design = np.hstack([x.numpy(), np.ones((50, 1), np.float32)])
    exact = np.linalg.lstsq(design, y.numpy(), rcond=None)[0].ravel()
    np.testing.assert_allclose([w.item(), b.item()], exact, rtol=1e-4)


def test_classification_with_a_custom_module() -> None:
    fo.manual_seed(0)

    class Classifier(fo.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = fo.nn.Linear(2, 16)
            self.fc2 = fo.nn.Linear(16, 3)
            self.dropout = fo.nn.Dropout(0.1)

        def forward(self, x):
            x = x.view(-1, 2)
            x = self.dropout(fo.nn.functional.relu(self.fc1(x)))
            return self.fc2(x)

    centres = fo.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    y = fo.randint(0, 3, (300,))
    x = centres[y] + 0.3 * fo.randn(300, 2)
    model = Classifier()
    criterion = fo.nn.CrossEntropyLoss()
    optimizer = fo.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with fo.no_grad():
        predicted = model(x).argmax(dim=1)
        accuracy = (predicted == y).float().mean()
    assert accuracy.item() > 0.98
    assert loss.item() < 0.2


# ------------------------------------------------------- whole programs, run with torch and with fastopt


def softmax_regression(torch, data) -> list:
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    W = torch.zeros((4, 3), requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    losses = []
    for _ in range(20):
        shares = torch.exp(torch.matmul(x.reshape((-1, W.shape[0])), W) + b)
        y_hat = shares / shares.sum(1, keepdim=True)
        loss = -torch.log(y_hat[range(len(y_hat)), y]).mean()
        loss.backward()
        with torch.no_grad():
            for p in (W, b):
                p -= 0.5 * p.grad
                p.grad.zero_()
        losses.append(loss.item())
    hits = y_hat.argmax(axis=1).type(y.dtype) == y
    return [*losses, float(hits.type(y.dtype).sum())]


def relu_by_hand(torch, data) -> list:
    x = torch.tensor(data["x"])
    w1 = torch.tensor(data["w1"], requires_grad=True)
    w2 = torch.nn.Parameter(torch.tensor(data["w2"]))
    losses = []
    for _ in range(10):
        h = torch.max(x @ w1, torch.zeros_like(x @ w1))
        loss = ((h @ w2).squeeze(1) - x[:, 0]).pow(2).mean() + 1e-3 * w1.norm() ** 2 + 1e-3 * w2.abs().sum()
        loss.backward()
        with torch.no_grad():
            w1 -= 0.05 * w1.grad
            w2 -= 0.05 * w2.grad
        w1.grad = None
        w2.grad = None
        losses.append(loss.item())
    return losses


def cubic_fit_of_a_sine(torch, data) -> list:
    x = torch.linspace(-3.0, 3.0, 200)
    y = torch.sin(x)
    powers = x.unsqueeze(-1).pow(torch.tensor([1, 2, 3]))
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0, 1))
    model.load_state_dict({"0.weight": torch.tensor(data["cubic"]), "0.bias": torch.zeros(1)})
    loss_fn = torch.nn.MSELoss(reduction="sum")
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = loss_fn(model(powers), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer = model[0]
    return [loss.item(), layer.bias.item(), *layer.weight.detach().numpy().ravel()]


def binary_classifier(torch, data) -> list:
    nn, F = torch.nn, torch.nn.functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(4, 5)
            self.fc2 = nn.Linear(5, 1)

        def forward(self, x):
            return torch.sigmoid(self.fc2(F.relu(self.fc1(x))))

    net = Net()
    values = zip(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), data["net"], strict=True)
    net.load_state_dict({name: torch.tensor(value) for name, value in values})
    x, y = torch.tensor(data["x"]), (torch.tensor(data["y"]) > 0).float().unsqueeze(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    history = []
    for _ in range(15):
        net.train()
        loss = nn.BCELoss()(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), max_norm=0.5)
        optimizer.step()
        scheduler.step()
        net.eval()
        with torch.no_grad():
            accuracy = ((net(x) > 0.5).float() == y).float().mean()
        history += [loss.item(), float(norm), accuracy.item(), scheduler.get_last_lr()[0]]
    return history


@pytest.mark.peers
@pytest.mark.parametrize(
    "program", [softmax_regression, relu_by_hand, cubic_fit_of_a_sine, binary_classifier]
)
def test_a_program_gives_what_it_gives_with_torch(program) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    x = draw(60, 4)
    data = {
        "x": x,
        "y": x[:, :3].argmax(1),
        "w1": draw(4, 6),
        "w2": draw(6, 1),
        "cubic": 0.1 * draw(1, 3),
        "net": [draw(5, 4), draw(5), draw(1, 5), draw(1)],
    }
    np.testing.assert_allclose(program(fo, data), program(torch, data), rtol=2e-4, atol=1e-6)
