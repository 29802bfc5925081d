"""The site: programs on its pages run and print what the page says, links lead somewhere, the gallery is whole."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt as fo
from fastopt import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "ext"))

import gallery
import generated
import pages

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "gpu.md" and pages.blocks(page))
TEXTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")) + [ROOT / "benchmarks" / "README.md"]
#: What a page may use, by the package that has to be there for it.
NEEDS = {"torch": "torch", "sklearn": "sklearn", "scipy": "scipy", "fastopt.plot": "matplotlib"}


def _parameter(page: Path) -> object:
    peers = [pytest.mark.peers] if "torch" in pages.imported(pages.blocks(page)) else []
    return pytest.param(page, id=page.stem, marks=peers)


@pytest.mark.parametrize("page", [_parameter(page) for page in PAGES])
def test_programs_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path) -> None:
    used = pages.imported(pages.blocks(page))
    if "load_digits" in page.read_text():
        used.add("sklearn")
    for name, package in NEEDS.items():
        if name in used:
            pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-W", "error", pages.__file__, page], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(rf"!\[.*?\]\(generated/{page.stem}/(.+?)\)", page.read_text())
    assert {file.name for file in tmp_path.glob("*.png")} == set(shown)


def test_a_page_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:8 prints\n2\nwhere the page says\n3"):
        pages.run(page)
    page.write_text(page.read_text().replace("3\n", "2\n"))
    pages.run(page)


# ------------------------------------------------------------------------------------------------- gallery


def test_the_gallery_shows_every_optimizer() -> None:
    exported = {name for name in fo.optim.__all__ if hasattr(getattr(fo.optim, name), "step")}
    assert exported - {"Optimizer", "GradScaler"} == set(gallery.optimizers()) == set(gallery.SETTINGS)


@pytest.mark.parametrize("name", gallery.optimizers())
def test_an_optimizer_has_formula_use_and_paper_and_comes_down(name: str) -> None:
    assert all(gallery.entry(name))
    path = gallery.path(name)
    assert path.shape == (gallery.STEPS + 1, 2)
    assert gallery.valley(path[-1])[0] < gallery.valley(path[0])[0] / 4


def test_an_optimizer_without_a_paper_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    doc = fo.optim.Lion.__doc__ or ""
    for part, message in [("References", "no section References"), ("When to use: ", "does not begin with")]:
        monkeypatch.setattr(fo.optim.Lion, "__doc__", doc.replace(part, "Papers" if part[0] == "R" else ""))
        with pytest.raises(ValueError, match=rf"fastopt.optim.Lion: .*{message}"):
            gallery.entry("Lion")
    monkeypatch.setattr(fo.optim.Lion, "__doc__", doc.replace("math::", "text::").replace(":math:", ""))
    with pytest.raises(ValueError, match=r"fastopt.optim.Lion: the docstring has no formula"):
        gallery.entry("Lion")


def test_the_picture_of_an_optimizer_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gallery.draw("Adam", tmp_path / "Adam.png")
    assert (tmp_path / "Adam.png").read_bytes().startswith(b"\x89PNG")


# ----------------------------------------------------------------------------------------------- reference


def test_the_reference_has_every_module_and_its_names() -> None:
    pytest.importorskip("sklearn")
    for module in ("optim", "nn", "functional", *fo._LAZY_MODULES):
        assert any(name.split(".")[1:2] == [module] for name in generated.MODULES), module
    pages_of = {
        module: {
            name for names in generated.listed(importlib.import_module(module)).values() for name in names
        }
        for module in set(generated.MODULES) - {"fastopt.torch"}
    }
    assert {"compile", "minimize", "Tensor", "zeros", "maximum", "manual_seed"} <= pages_of["fastopt"]
    assert {*gallery.optimizers(), "GradScaler", "rule.Common"} <= pages_of["fastopt.optim"]
    assert {"Linear", "MSELoss", "Module"} <= pages_of["fastopt.nn"]
    assert pages_of["fastopt.functional"] == set(fo.functional.__all__)
    assert "kaiming_normal_" in pages_of["fastopt.nn.init"]


def test_parameters_are_not_taken_for_functions_of_their_name() -> None:
    lines = ["Return `data` as `tensor` says, not ``data``; :class:`data`, `data`_."]
    generated.mark_parameters(None, "", "", fo.as_tensor, None, lines)
    assert lines == ["Return *data* as `tensor` says, not ``data``; :class:`data`, `data`_."]
    generated.mark_parameters(None, "", "", fo.is_grad_enabled, None, lines)
    assert lines[0].startswith("Return *data* as `tensor` says, not ``data``")


def test_the_command_page_has_every_command() -> None:
    text = generated.commands()
    for command in ("train", "compare", "predict", "bench", "info"):
        assert f"## fastopt {command}\n\n```\nusage: fastopt {command}" in text


# --------------------------------------------------------------------------------------------------- links


def _anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"^```(?!{).*?^```$", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or file.startswith("generated/"):
            continue  # the site's build knows the latter
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in _anchors(linked.read_text()), f"{path.name} links to {target}"


def _commands(text: str) -> list[str]:
    """The lines of a text's blocks that call the command."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    shown = "".join([block for kind, block in blocks if kind in ("", "console", "text")])
    return re.findall(r"^(?:\$ )?(fastopt \w.*)$", shown, re.M)


def test_commands_on_the_pages_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    parser = cli._make_parser()
    commands = [line for path in TEXTS for line in _commands(path.read_text())]
    assert len(commands) > 10
    for line in commands:
        assert parser.parse_args(shlex.split(line, comments=True)[1:]).command, line
