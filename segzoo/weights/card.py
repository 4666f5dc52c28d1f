"""The model card: a saved model's README.md, with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from segzoo._errors import unknown_name
from segzoo.weights.saved import SavedModel

__all__ = ["check_license", "model_card"]

# Those of the Hub's list that weights of such models are under; anything else is "other", with a name.
LICENSES = (
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    *("bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    *("cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl"),
    *("gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by"),
    *("openrail", "openrail++", "osl-3.0", "pddl", "unlicense", "wtfpl", "zlib"),
)
_TASKS = {
    "salient": ("salient object detection", ("salient-object-detection", "background-removal")),
    "semantic": ("semantic segmentation", ("semantic-segmentation",)),
    "instance": ("instance segmentation", ("instance-segmentation", "object-detection")),
}


def check_license(license: str, license_name: str | None = None) -> str:
    """The licence as the Hub writes it, in lower case.

    Args:
        license: An SPDX name that the Hub knows, in any case, or ``"other"``.
        license_name: With ``"other"``, and only then: its name.

    Raises:
        ValueError: For an unknown licence, with the nearest one, or a name too many or too few.

    Examples:
        >>> check_license("Apache-2.0")
        'apache-2.0'
    """
    known = license.strip().lower() if isinstance(license, str) else license
    if known == "other":
        if not license_name:
            raise ValueError("license='other' needs a license_name, as license_name='my-own-terms'")
        return known
    if known not in LICENSES:
        error = unknown_name("licence", license, LICENSES)
        raise ValueError(f"{error}; for any other, license='other' with a license_name")
    if license_name is not None:
        raise ValueError(f"license_name is for license='other', got {license_name!r} with license={license!r}")
    return str(known)


def model_card(saved: SavedModel, *, task: str, parameters: int, repo: str | None = None) -> str:
    """The README.md of a saved model: YAML for the Hub, then what people want to know.

    Args:
        saved: The model.
        task: ``"salient"``, ``"semantic"`` or ``"instance"``.
        parameters: How many it has.
        repo: ``"org/repo"``, where it is on the Hugging Face Hub; None: in a folder.

    Examples:
        >>> from segzoo.weights import Preprocessing
        >>> saved = SavedModel("u2net_lite", {}, 1, 3, False, None, Preprocessing(), 0.5, None, "cups", "mit", None,
        ...                    None, {"my cups": "CC0"}, None, {}, None, None, None)
        >>> print(model_card(saved, task="salient", parameters=1128333)[:44])
        ---
        datasets:
        - my-cups
        library_name: segzoo
    """
    kind = _TASKS[task][0]
    made_with = f", saved by segzoo {saved.made_with['segzoo']}" if "segzoo" in saved.made_with else ""
    about = saved.description or f"A model for {kind}{made_with}."
    classes = ", ".join(saved.classes) if saved.classes else "not named"
    facts = [
        ("architecture", f"`{saved.architecture}`, {parameters:,} parameters"),
        *((f"`{name}`", f"`{value!r}`") for name, value in saved.arguments.items() if value is not None),
        ("classes", f"{saved.num_classes} ({classes}){', may overlap' if saved.multilabel else ''}"),
        ("input", f"{saved.in_channels} channels"),
    ]
    sections = [
        f"# {saved.name}\n\n{about}\n\n{_table(('', ''), facts)}",
        _use(saved, task, repo),
        f"## Training data\n\n{_table(('data', 'licence'), saved.training_data.items())}\n\n{_start(saved)}",
        f"## Preprocessing\n\n{_preprocessing(saved)}",
        f"## Metrics\n\n{_metrics(saved)}",
        f"## Limits\n\n{saved.limits or _limits(saved)}",
        f"## Licence\n\n{_licence(saved)}",
    ]
    return f"---\n{_front_matter(saved, task)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(saved: SavedModel, task: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    identifiers = _identifiers(saved.metrics)
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name=_TASKS[task][0],
            dataset_type=identifiers[data_set],
            dataset_name=data_set,
            metric_type=name,
            metric_name=name,
            metric_value=value,
            metric_args={"protocol": saved.protocol},
        )
        for data_set, values in saved.metrics.items()
        for name, value in values.items()
        if value is not None
    ]
    named: dict[str, Any] = {"license_name": saved.license_name, "license_link": saved.license_link}
    data = ModelCardData(
        license=saved.license,
        library_name="segzoo",
        pipeline_tag="image-segmentation",
        tags=["segzoo", "pytorch", "image-segmentation", *_TASKS[task][1], saved.architecture],
        datasets=list(_identifiers(saved.training_data).values()),
        model_name=saved.name,
        eval_results=results or None,
        **{key: value for key, value in named.items() if value is not None},
    )
    return f"{data.to_yaml()}".rstrip("\n") + "\n"


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """Data sets' names as the Hub takes them, no two alike: ``"My pictures, 2020"`` is ``my-pictures-2020``."""
    found: dict[str, str] = {}
    for name in names:
        fits = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII)
        base = name if fits else re.sub(r"[^\w.]+", "-", name.lower(), flags=re.ASCII).strip("-") or "unnamed"
        taken = set(found.values())
        numbered = (f"{base}-{i}" for i in range(2, len(found) + 3))
        found[name] = base if base not in taken else next(other for other in numbered if other not in taken)
    return found


def _table(head: tuple[str, str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _use(saved: SavedModel, task: str, repo: str | None) -> str:
    place = f"hf-hub:{repo}" if repo else "local-dir:PATH"
    one = task == "salient" and saved.num_classes == 1
    call = 'cutout().save("cutout.png")' if one else 'overlay().save("overlay.png")'
    command = "segzoo cutout photo.jpg cutout.png" if one else "segzoo predict photo.jpg overlay.png --kind overlay"
    return (
        f"## Use\n\nWith `pip install segzoo`{'' if repo else ' and this folder on your machine'}:\n\n"
        "```python\nimport segzoo\n\n"
        f'predictor = segzoo.Predictor("{place}"){"" if repo else "  # of this folder"}\n'
        f'predictor("photo.jpg").{call}\n```\n\n'
        f"or `{command} --model {place}`. To train on: "
        f'`model = segzoo.create_model("{place}")`, with another `num_classes`, `in_channels` or `norm` where '
        "you need one."
    )


def _start(saved: SavedModel) -> str:
    return f"Training started from {saved.started_from or 'random weights, as far as segzoo knows'}."


def _preprocessing(saved: SavedModel) -> str:
    p = saved.preprocessing
    if p.size is None:
        size = "keeps its size"
    elif isinstance(p.size, int):
        size = f"is resized ({p.interpolation}) so that its shorter side is {p.size} pixels"
    else:
        size = f"is resized ({p.interpolation}) to {p.size[0]} × {p.size[1]} pixels (height × width)"
    scale = "its own largest value" if p.scale == "max" else "255"
    return (
        f"A picture of 8 bit {size}, is divided by {scale}, and normalised by channel with mean "
        f"{_numbers(p.mean)} and standard deviation {_numbers(p.std)}. `segzoo.Predictor` does all that."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _metrics(saved: SavedModel) -> str:
    if not saved.metrics:
        return "Not measured."
    tables = [
        f"{data_set}:\n\n"
        + _table(("metric", "value"), ((n, "not defined" if x is None else f"{x:.4g}") for n, x in values.items()))
        for data_set, values in saved.metrics.items()
    ]
    return "\n\n".join(tables) + f"\n\nProtocol: {saved.protocol}"


def _limits(saved: SavedModel) -> str:
    seen = "the data above" if saved.metrics else "any data that would tell how good it is"
    measured = f"It was measured on {seen} only" if saved.metrics else f"It was not measured on {seen}"
    return (
        f"{measured}; on pictures unlike its training data expect worse. "
        "Whoever uses it for decisions about people should measure it on their own pictures first."
    )


def _licence(saved: SavedModel) -> str:
    name = f"{saved.license_name} (other)" if saved.license_name else saved.license
    link = f", see {saved.license_link}" if saved.license_link else ""
    return f"The weights: {name}{link}. The training data have licences of their own, above, which may bind you too."
