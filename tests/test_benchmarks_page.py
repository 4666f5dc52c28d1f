"""docs/benchmarks.md is made from benchmarks/results, whose files say where their figures come from."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import segzoo

FILES = sorted((ROOT / "benchmarks/results").glob("*.json"))
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_"))
TEMPLATES = sorted((ROOT / "docs").glob("*.in.md"))
FOLDER = re.compile(r"""(?:^|[\s"'=:,(\[])(?:~?/[\w.]|[A-Za-z]:[\\/](?!/)|\.\./)""")


def load(folder: str, name: str) -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / folder))


@pytest.fixture(scope="module")
def made() -> Iterator[ModuleType]:
    yield from load("docs", "make_benchmarks")


@pytest.fixture(scope="module")
def writing() -> Iterator[ModuleType]:
    yield from load("benchmarks", "_results")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


# The pages


def test_the_pages_are_what_templates_and_results_make(made: ModuleType) -> None:
    results = made.Results()
    pages = made.pages(results=results)
    assert {page.name for page in pages} == {"benchmarks.md", "predictions.md", "weights.md", "README.md"}
    for page, text in pages.items():
        assert page.read_text("utf-8") == text, f"docs/{page.name}: run python docs/make_benchmarks.py"
    assert results.used == {path.stem for path in FILES}, "a file that no page uses"


def test_no_figure_in_a_table_is_written_by_hand() -> None:
    for template in TEMPLATES:
        for line in template.read_text("utf-8").splitlines():
            cells = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", line)
            assert not (line.startswith("|") and re.search(r"\d\.\d", cells)), line


def test_a_row_of_the_page_is_the_figures_of_the_file() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    distance = json.loads((ROOT / "benchmarks/results/distance.json").read_text("utf-8"))
    row = distance["1024×2048 blobs, indices"]
    assert f"| {row['scipy_ms']:.1f} | {row['ours_ms']:.1f} | {row['ratio']:.2f} |" in page
    sizes = json.loads((ROOT / "benchmarks/results/losses.json").read_text("utf-8"))["sizes"].values()
    found = dict(re.findall(r"^\| `(\w+)`(?: \|)([^\n]*)\|$", page, re.MULTILINE))
    for loss in ("CrossEntropyLoss", "BCELoss", "DiceLoss", "TverskyLoss", "HybridSaliencyLoss"):
        names, cells = [], []
        for size in sizes:
            name = min(set(size[loss]) - {"segzoo"}, key=lambda peer, of=size[loss]: of[peer]["ms"])
            ours, peer = size[loss]["segzoo"], size[loss][name]
            names.append(name)
            cells += [f"{peer['ms']:,.0f} → {ours['ms']:,.0f}", f"{peer['time_ratio']:.2f}"]
            cells += [f"{peer['mib']:,.0f} → {ours['mib']:,.0f}", f"{peer['memory_ratio']:.2f}"]
        expected = [" / ".join(dict.fromkeys(names)), *cells]
        assert [cell.strip() for cell in found[loss].split("|")] == expected


def test_every_section_says_when_and_on_what() -> None:
    sections = (ROOT / "docs/benchmarks.md").read_text("utf-8").split("\n## ")[1:]
    assert len(sections) > 10
    for section in sections:
        elsewhere = "(predictions.md#" in section
        assert elsewhere or re.search(r"`python benchmarks/\w+\.py.*`\n\n<sub>.*; \d{4}-\d\d-\d\d, ", section), section


def test_the_site_leaves_templates_and_scripts_out() -> None:
    excluded = (ROOT / "mkdocs.yml").read_text().split("exclude_docs: |")[1].split()
    for path in [*(ROOT / "docs").glob("*.py"), *TEMPLATES]:
        assert any(path.match(pattern) for pattern in excluded), path.name


def test_check_is_quiet_when_all_is_as_it_should_be_and_names_what_is_not(
    made: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "a.md"
    monkeypatch.setattr(made, "pages", lambda: {page: "new\n"})
    monkeypatch.setattr(sys, "argv", ["make_benchmarks.py", "--check"])
    with pytest.raises(SystemExit, match=r"docs/a\.md; run python docs/make_benchmarks\.py"):
        made.main()
    assert not page.exists()
    monkeypatch.setattr(sys, "argv", ["make_benchmarks.py"])
    made.main()
    assert page.read_text() == "new\n"
    monkeypatch.setattr(sys, "argv", ["make_benchmarks.py", "--check"])
    made.main()


@pytest.fixture
def some(made: ModuleType, tmp_path: Path) -> Any:
    """Results of two models, one of them with two seeds."""
    origin = {"versions": {}, "machine": "a machine", "date": "2026-11-21T10:00:00+00:00"}
    for i, (model, seed, miou) in enumerate([("unet", 0, 0.61), ("unet", 1, 0.63), ("fpn", 0, 0.6)]):
        content = {"model": model, "miou": miou, "seed": seed, "commit": f"{i}" * 40, **origin}
        content["command"] = f"python benchmarks/x.py --data D --model {model} --seed {seed}"
        (tmp_path / f"semantic_{i}.json").write_text(json.dumps(content))
    return made.Results(tmp_path)


TABLE = """\
| model | mIoU |
{% for runs in every("semantic_*") | groups("model") %}
| {{ runs[0].model }} | {{ runs | map(attribute="miou") | spread(".3f") }} |
{% endfor %}
"""


def test_a_table_of_many_files(made: ModuleType, some: Any) -> None:
    assert made.render(TABLE, some) == "| model | mIoU |\n| unet | 0.620 ± 0.014 |\n| fpn | 0.600 |\n"
    assert some.used == {"semantic_0", "semantic_1", "semantic_2"}
    absent = '{% if every("speed*") %}## Speed{% else %}Not measured.{% endif %}'
    assert made.render(absent, some) == "Not measured."


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ('{{ results("nothing").x }}', FileNotFoundError),
        ('{{ results("semantic_0").mious | f(".2f") }}', jinja2.UndefinedError),
        ('{{ results("semantic_0").mious }}', jinja2.UndefinedError),
        ('{% for row in results("semantic_0").rows %}{% endfor %}', jinja2.UndefinedError),
        ('{{ every("semantic_*") | groups("encoder") }}', KeyError),
        ('{{ every("nothing_*") | map(attribute="miou") | spread(".2f") }}', ValueError),
        ('{{ none | f(".2f") }}', TypeError),
        ("{{ figures }}", jinja2.UndefinedError),
    ],
)
def test_what_is_not_there_is_an_error(made: ModuleType, some: Any, template: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        made.render(template, some)


def test_tables_of_trained_models(made: ModuleType, tmp_path: Path) -> None:
    """The sections that are left out while nothing was trained, from files as benchmarks/_training.py writes them."""
    template = (ROOT / "docs/benchmarks.in.md").read_text("utf-8")
    begin, end = template.index('{% for it in every("salient*") %}'), template.index("## What calibrating")
    assert made.render(template[begin:end], made.Results(tmp_path)) == ""
    origin = {"machine": "a GPU", "commit": "a" * 40, "date": "2026-11-21T10:00:00+00:00", "command": "python b/s.py"}
    rows: list[dict[str, Any]] = []
    for seed in (0, 1):
        log = [f"[epoch: {i}] train_loss: 1.1 lr: 0.001 MAE: 0.1{i:02d} maxF1: 0.7" for i in range(1, 31)]
        iou = {"sky": 0.9, "pole": 0.1 + 0.2 * seed}
        last = {"mae": 0.05 + 0.01 * seed, "max_f": 0.9, "miou": 0.5 + 0.1 * seed, "pixel_accuracy": 0.9, "iou": iou}
        row = {
            "row": "from scratch",
            "seed": seed,
            "options": "--epochs 30",
            "device": "cuda",
            "log": ["start", "[epoch: 0] MAE: nan", *log],
        }
        rows.append(row | {"test": {"last": last, "best": last}})
    rows.append({**rows[0], "row": "other", "test_mst": rows[1]["test"]})
    content = {"scale": "full", "common": "--batch-size 8", "rows": rows, **origin}
    for name in ("salient", "semantic_full"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "semantic_cpu.json").write_text(json.dumps({**content, "scale": "cpu"}))
    text = made.render(template[begin:end], made.Results(tmp_path))
    assert text.count("\n## ") + text.startswith("## ") == 2 and text.count("Scaled down") == 1
    assert "| from scratch | `--epochs 30` | 0, 1 | 0.0550 ± 0.0071 | 0.9000 ± 0.0000 | 0.0550 ± 0.0071 |" in text
    assert "| from scratch | `--epochs 30` | 0, 1 | 55.0 ± 7.1 | 90.0 ± 0.0 |  | 55.0 ± 7.1 |\n" in text
    assert "| other | `--epochs 30` | 0 | 50.0 | 90.0 | 60.0 | 50.0 |\n" in text
    assert "| | sky | pole |\n|---|---|---|\n| from scratch | 90.0 ± 0.0 | 20.0 ± 14.1 |\n| other |" in text
    logged = re.findall(r"^    \[epoch: (\d+)\]", text, re.MULTILINE)
    assert len(logged) == 16 and logged[0] == "1" and logged[7] == "30" and "    start" not in text
    assert text.count("`python b/s.py`\n\n<sub>a GPU; 2026-11-21, measured at aaaaaaa.</sub>\n") == 3


def test_about_says_shared_things_once(made: ModuleType, some: Any) -> None:
    assert some.about("semantic_0", "semantic_1") == (
        "`python benchmarks/x.py --data D --model unet --seed 0`, `… --seed 1`\n\n"
        "<sub>a machine; 2026-11-21, measured at 0000000 and 1111111.</sub>"
    )
    file = some.folder / "semantic_2.json"
    content = json.loads(file.read_text())
    before = {**content, "recorded": "from history", "date": "2026-11-20T23:00:00+00:00", "machine": "an older one"}
    file.write_text(
        json.dumps({**content, "commit": "2" * 40 + "-dirty", "earlier": [before, {**content, "commit": None}]})
    )
    assert some.about("semantic_2") == (
        "`python benchmarks/x.py --data D --model fpn --seed 0`\n\n"
        "<sub>a machine; 2026-11-21, measured at 2222222 with changes and a commit that is not known. "
        "an older one; 2026-11-20, kept in 2222222.</sub>"
    )


def test_commands_are_shortened_by_whole_options(made: ModuleType) -> None:
    first = "python b/x.py --data D --rows 12 --loss a"
    others = ["python b/x.py --data D --rows 13 --loss a", "python b/y.py --data D", "python b/x.py --data D"]
    assert made.abbreviated([first, *others])[1:] == ["… --rows 13 --loss a", "python b/y.py --data D", "…"]


def test_formats(made: ModuleType) -> None:
    assert made.formatted(3.14e-5, ".1e") == "3.1e-5" and made.formatted(2e10, ".1e") == "2.0e+10"
    assert made.formatted(1234.5, ",.0f") == "1,234"


def test_a_block_replaces_only_what_is_between_its_lines(made: ModuleType, some: Any, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "block.in.md").write_text('{{ results("semantic_2").miou | f(".1f") }}\n')
    (docs / "other.in.md").write_text("text\n")
    (docs / "page.md").write_text("above\n<!-- block.in.md -->\nold\n<!-- end of block.in.md -->\nbelow\n")
    pages = made.pages(docs, some)
    assert pages[docs / "page.md"] == "above\n<!-- block.in.md -->\n0.6\n<!-- end of block.in.md -->\nbelow\n"
    assert pages[docs / "other.md"].endswith("change other.in.md. -->\ntext\n")
    (docs / "page.md").write_text("above\n<!-- block.in.md -->\nold\nbelow\n")
    with pytest.raises(ValueError, match=r"page\.md has the line <!-- block\.in\.md --> and after it no line"):
        made.pages(docs, some)


# The files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_file_says_where_it_comes_from(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    for origin in [content, *content.get("earlier", [])]:
        assert {"machine", "versions", "commit", "date", "command", "seed"} <= set(origin)
        assert datetime.datetime.fromisoformat(origin["date"]).utcoffset() == datetime.timedelta(0)
        assert origin["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", origin["commit"])
        assert {"python", "torch"} <= set(origin["versions"])
        script = re.match(r"(?:python|torchrun.*?) ((?:benchmarks|examples)/\w+\.py)", origin["command"])
        assert script and (ROOT / script[1]).exists()
    assert not [text for text in strings(content) if FOLDER.search(text)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_leaves_the_writing_to_one_function(path: Path) -> None:
    code = path.read_text("utf-8")
    if "from _training import" in code:  # the option and the writing are there
        code += (path.parent / "_training.py").read_text("utf-8")
    assert re.search(r'"--json",\s+type=result_file', code) and "write_results(args.json" in code
    assert "args.json.write_text" not in code


def test_what_is_added_to_the_figures(writing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/x.py"), "--data", str(tmp_path / "my data"), "--n", "3"])
    path = tmp_path / "x.json"
    results = {
        "a": 0.1,
        "b": math.nan,
        "c": [np.float32(0.5), -math.inf, torch.tensor([1.5, 2])],
        "place": tmp_path / "model.pt",
        "é": f"of {tmp_path}/x.png",
        4: True,
    }
    writing.write_results(path, results, seed=(0, 1), peers=["pytest", "no such package"])
    text = path.read_text("utf-8")
    content = json.loads(text)
    assert list(content) == ["a", "b", "c", "place", "é", "4", *writing.PROVENANCE] and text.endswith("}\n")
    assert "H200; " not in content["machine"]
    writing.write_results(tmp_path / "gpu.json", {}, gpu="H200")
    assert writing.read_results(tmp_path / "gpu.json")["machine"] == f"H200; {content['machine']}"
    assert content["a"] == 0.1 and content["b"] is None and content["c"] == [0.5, None, [1.5, 2.0]]
    assert (content["place"], content["é"], content["4"], content["seed"]) == ("model.pt", "of x.png", True, [0, 1])
    assert content["command"] == "python benchmarks/x.py --data 'my data' --n 3"
    versions = content["versions"]
    assert versions["torch"] == torch.__version__ and versions["segzoo"] == segzoo.__version__
    assert versions["pytest"] == pytest.__version__ and versions["no such package"] is None
    assert {"python", "torchvision", "numpy", "timm"} <= set(versions)
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(content["date"])
    assert datetime.timedelta(seconds=-1) < age < datetime.timedelta(seconds=60)


def test_a_failure_leaves_the_older_file(writing: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        writing.write_results(path, {"a": object()})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_figures_that_stay_keep_their_origin(writing: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert writing.read_results(path) == {} and writing.read_results(None) == {}
    writing.write_results(path, {"n": 9, "ratio": 1.0, "cases": {"a": 0.11, "b": 0.22}}, seed=3)
    old = writing.read_results(path)
    writing.write_results(path, {"n": 9, "ratio": 1.0, "cases": {"a": 0.33, "b": 0.22}}, seed=4, kept=old)
    content = writing.read_results(path)
    assert content["seed"] == 4 and content["earlier"] == [{name: old[name] for name in writing.PROVENANCE}]
    writing.write_results(path, {"versions": {}, "seed": 5, "cases": {"a": 0.44, "b": 0.22}}, kept=content)
    assert writing.read_results(path)["seed"] == 5 and writing.read_results(path)["versions"]["python"]
    assert [origin["seed"] for origin in writing.read_results(path)["earlier"]] == [3, 4]
    writing.write_results(
        path, {"n": 9, "ratio": 1.0, "cases": {"a": 0.5, "b": 0.6}}, kept=old
    )  # nothing of it is left
    assert "earlier" not in writing.read_results(path)


@pytest.mark.parametrize(
    ("given_word", "expected"),
    [
        (f"{ROOT}/benchmarks/results/x.json", "benchmarks/results/x.json"),
        ("benchmarks/x.py", "benchmarks/x.py"),
        ("/data/ECSSD", "ECSSD"),
        ("/data/ECSSD/", "ECSSD"),
        ("/home/some one/my data", "my data"),
        ("~/data/duts", "duts"),
        ("../../data/camvid", "camvid"),
        ("--data=/mnt/x/ecssd", "--data=ecssd"),
        ("camvid:/mnt/x/camvid", "camvid:camvid"),
        ("/a/b,/c/d", "b,d"),
        ("a=~/b/c;e", "a=c;e"),
        ("C:\\Users\\me\\data", "data"),
        ("file:///home/me/x.json", "x.json"),
        ("https://host/a/b", "https://host/a/b"),
        ("hf-hub:me/model", "hf-hub:me/model"),
        ("ms / picture, 3/4, and/or, a//b", "ms / picture, 3/4, and/or, a//b"),
        ("1e-4:1e-2", "1e-4:1e-2"),
        ("//server/share/x", "x"),
        ("/", "/"),
    ],
)
def test_commands_do_not_name_folders_of_this_machine(
    writing: ModuleType, monkeypatch: pytest.MonkeyPatch, given_word: str, expected: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [given_word])
    assert writing.command().removeprefix("python ").strip("'") == expected


@given(st.lists(st.sampled_from(["/data/a", "~/b", "../c", "d/e", "=", ",", ":", " ", "x", "C:\\f", "/"]), max_size=8))
def test_no_combination_leaves_a_folder(writing: ModuleType, parts: list[str]) -> None:
    text = "".join(parts)
    cleaned = writing.without_folders(text)
    assert not re.search(r"(?:^|[\s=,])(?:/data|~/b|C:\\f)", cleaned), (text, cleaned)
    assert writing.without_folders("plain words, 3/4") == "plain words, 3/4"


def test_a_run_of_several_processes_says_so(writing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["examples/train.py", "--lr", "0.1"])
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert writing.command() == "torchrun --nproc-per-node 4 examples/train.py --lr 0.1"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert writing.command() == "torchrun --nnodes 2 --nproc-per-node 4 examples/train.py --lr 0.1"


def test_the_commit_is_the_one_of_this_very_folder(
    writing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    root = tmp_path.resolve()
    monkeypatch.delenv("SEGZOO_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert writing.commit(root) is None
    monkeypatch.setenv("SEGZOO_COMMIT", "f" * 40)
    assert writing.commit(root) == "f" * 40
    monkeypatch.delenv("SEGZOO_COMMIT")
    git("init", "-q")
    (root / "segzoo").mkdir()
    (root / "benchmarks/results").mkdir(parents=True)
    (root / "segzoo/a.py").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").strip()
    assert writing.commit(root) == head and re.fullmatch("[0-9a-f]{40}", head)
    (root / "benchmarks/results/x.json").write_text("{}")  # what the run itself writes
    (root / "notes.txt").write_text("no figure depends on them")
    assert writing.commit(root) == head
    (root / "segzoo/new.py").write_text("not added yet, and measured all the same")
    assert writing.commit(root) == f"{head}-dirty"
    (root / "segzoo/new.py").unlink()
    (root / "segzoo/a.py").write_text("b")
    assert writing.commit(root) == f"{head}-dirty"
    assert writing.commit(root / "segzoo") is None  # a folder inside some other clone
    monkeypatch.setenv("PATH", "")
    assert writing.commit(root) is None


def test_a_file_that_cannot_be_written_is_an_error_before_the_measuring(writing: ModuleType, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--json", type=writing.result_file)
    path = tmp_path / "x.json"
    assert parser.parse_args(["--json", str(path)]).json == path
    with pytest.raises(argparse.ArgumentError, match="there is no folder"):
        parser.parse_args(["--json", str(tmp_path / "no folder" / "x.json")])
    with pytest.raises(argparse.ArgumentError, match="is a folder, expected a file"):
        parser.parse_args(["--json", str(tmp_path)])


@pytest.mark.slow
def test_a_benchmark_run_twice_adds_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for overlap in ("0", "0.5"):
        options = ["--models", "three convolutions", "--windows", "64", "--side", "200", "--overlap", overlap]
        command = [sys.executable, "benchmarks/sliding_window.py", *options, "--json", str(path)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    content = json.loads(path.read_text("utf-8"))
    assert len(content["cases"]) == 4 and len(content["earlier"]) == 1
    assert content["command"].startswith("python benchmarks/sliding_window.py --models 'three convolutions' --windows")
    assert str(tmp_path) not in path.read_text("utf-8") and content["command"].endswith("--json x.json")
