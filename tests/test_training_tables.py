"""Tables of trained models: rows know their runs, and nothing else is taken for them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _training

    return _training


def found(name: str, seed: int, value: float) -> dict[str, Any]:
    return {"row": name, "seed": seed, "device": "cpu", "test": {"last": {"miou": value}}}


def test_a_row_that_was_run_again_stays_in_its_place(training: Any, tmp_path: Path) -> None:
    args = argparse.Namespace(json=tmp_path / "a.json", scale="cpu")
    training.write(args, ["--x"], [found("A", 0, 0.25), found("A", 1, 0.5), found("B", 0, 0.75)])
    training.write(args, ["--x"], [found("A", 0, 0.125)])
    content = json.loads(args.json.read_text())
    assert [(row["row"], row["seed"], row["test"]["last"]["miou"]) for row in content["rows"]] == [
        ("A", 0, 0.125),
        ("A", 1, 0.5),
        ("B", 0, 0.75),
    ]
    assert content["seed"] == [0, 1]
    with pytest.raises(SystemExit, match="rows of other settings"):
        training.write(args, ["--y"], [found("A", 0, 0.5)])
    with pytest.raises(SystemExit, match="rows of other settings"):
        training.write(argparse.Namespace(json=args.json, scale="full"), ["--x"], [found("A", 0, 0.5)])


def test_a_run_with_other_options_is_not_the_rows(training: Any, tmp_path: Path) -> None:
    first = training._origin(tmp_path / "run", ["--epochs", "6"])
    assert training._origin(tmp_path / "run", ["--epochs", "6"]) == first and first["date"]
    with pytest.raises(SystemExit, match="has a run with other options, --epochs 6: expected another --runs"):
        training._origin(tmp_path / "run", ["--epochs", "150"])


def test_a_run_that_is_stopped_is_no_failure(training: Any, tmp_path: Path) -> None:
    assert not training._run([], end=0.0)  # no time is left
    for status, ended in ((143, False), (0, True)):
        script = tmp_path / "script.py"
        script.write_text(f"raise SystemExit({status})")
        assert training._run([str(script)], end=None) is ended
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="exit code 3"):
        training._run([str(script)], end=None)


@pytest.mark.parametrize(("table", "script"), [("salient", "train_salient"), ("semantic", "train_semantic")])
def test_every_rows_options_are_the_scripts(
    table: str, script: str, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module, trained = __import__(table), __import__(script)
    scales = module.SCALES if table == "salient" else {"full": module.full("f.pth"), "cpu": module.cpu("f.pth")}
    for scale in scales.values():
        rows = list(scale)
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            trained.parse(["--data", "d", "--output", "o", *module.COMMON, *row.options])
