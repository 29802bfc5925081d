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
