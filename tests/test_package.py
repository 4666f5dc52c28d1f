"""The package as a whole: what an import brings in, what is public, what the documents promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import segzoo
from segzoo.registry import create_untrained


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_nothing_heavy() -> None:
    heavy = ["torch", "timm", "torchvision", "huggingface_hub", "numpy", "PIL", "safetensors"]
    assert run(f"import sys, segzoo; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_using_a_model_does_not_import_what_it_does_not_need() -> None:
    heavy = ["timm", "torchvision", "huggingface_hub"]
    assert run(f"import sys, segzoo; segzoo.u2net_lite(); print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    for name in segzoo.__all__:
        assert getattr(segzoo, name) is not None
    assert set(segzoo.__all__) <= set(dir(segzoo))
    assert set(segzoo.list_models()) <= set(segzoo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'u2net_tiny'"):
        segzoo.u2net_tiny  # noqa: B018


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "segzoo/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(segzoo.__all__)


def test_every_layer_knows_only_those_below() -> None:
    """Imports go one way, as docs/design.md says."""
    allowed = {
        "_errors": set(),
        "_files": set(),
        "_decoding": set(),
        "_maps": {"_decoding"},
        "_pairs": {"_decoding"},
        "_progress": set(),
        "ops": {"_errors"},
        "layers": {"_errors", "ops"},
        "losses": {"_errors", "ops"},
        "encoders": {"_errors", "ops", "layers", "weights"},
        "weights": {"_errors", "_files"},
        "registry": {"_errors", "weights"},
        "models": {"_errors", "ops", "layers", "encoders", "weights", "registry"},
        "metrics": {"_errors", "_files", "ops"},
        "datasets": {"_errors", "_files", "_decoding", "_maps", "_pairs", "_progress"},
        "transforms": {"_errors", "ops"},
        "inference": {
            "_errors",
            "_files",
            "_decoding",
            "_maps",
            "_pairs",
            "_progress",
            "ops",
            "layers",
            "weights",
            "registry",
            "models",
            "metrics",
        },
        "export": {"_errors", "_files", "_pairs", "layers", "weights", "registry", "models", "inference"},
    }
    offline_tools = {"segzoo/weights/calibrate.py"}  # its main() makes the bundled file with the whole library
    for path in (ROOT / "segzoo").rglob("*.py"):
        relative = path.relative_to(ROOT).as_posix()
        part = path.relative_to(ROOT / "segzoo").parts[0].removesuffix(".py")
        if part not in allowed or relative in offline_tools:
            continue
        imported = set(re.findall(r"^\s*(?:from|import) segzoo\.(\w+)", path.read_text(), re.MULTILINE))
        assert imported - {part} <= allowed[part], relative


def test_readme_commands_are_the_ones_ci_runs_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    assert 'pip install -e ".[test]" && pytest' in readme
    assert "pip install . && segzoo cutout examples/images/coffee.jpg out.png" in readme
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/models.md",
        "docs/weights.md",
        "docs/data.md",
        "docs/predictions.md",
        "docs/losses.md",
        "docs/metrics.md",
        pytest.param("docs/export.md", marks=pytest.mark.slow),
    ],
)
def test_python_of_the_documents_runs(document: str) -> None:
    """Every Python block, in order, in the repository's folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    code = "import os, tempfile; here = os.getcwd()\n" + "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_models_is_true() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \|[^|]*\|([^|]*)\|", (ROOT / "docs/models.md").read_text(), re.MULTILINE
    )
    assert [name for name, _, _ in rows] != [] and {name for name, _, _ in rows} == set(segzoo.list_models())
    for name, parameters, published in rows:
        with torch.device("meta"):
            model = create_untrained(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters, name
        tags = [f"{name}.{tag}" for tag in re.findall(r"`(\w+)`", published)]
        count = re.match(r" \[(\d+),", published)  # too many for the cell
        assert len(segzoo.list_weights(name)) == int(count[1]) if count else segzoo.list_weights(name) == tags, name


def test_versions_agree() -> None:
    assert f'version = "{segzoo.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {segzoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_notice_names_what_is_bundled() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for path in [*(ROOT / "examples/images").iterdir(), *(ROOT / "segzoo/weights").glob("*.safetensors")]:
        assert path.relative_to(ROOT).as_posix() in notice


def test_pictures_of_the_data_sets_are_not_in_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert {name for name in tracked if name.endswith((".jpg", ".jpeg", ".png", ".webp"))} == {
        "docs/images/augmentations.jpg",
        "docs/images/before_after.jpg",
        "docs/images/clean_rim.png",
        "docs/images/looks.png",
        "docs/images/mix.jpg",
        "docs/images/rims.png",
        "docs/images/semantic_train.jpg",
        "docs/images/tidied.png",
        "examples/images/astronaut.jpg",
        "examples/images/coffee.jpg",
    }
