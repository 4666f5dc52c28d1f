"""docs/benchmarks.md, docs/weights.md and marked blocks of other pages, out of templates, results and records.

    python docs/make_benchmarks.py           # writes the pages
    python docs/make_benchmarks.py --check   # says which pages are not what their templates and results make

A template, ``docs/NAME.in.md``, is Markdown with Jinja's ``{{ }}`` and ``{% %}``. It makes the page ``NAME.md``, or
what is between the two lines ``<!-- NAME.in.md -->`` and ``<!-- end of NAME.in.md -->`` of a page or of README.md. What
it can use:

- ``results("distance")``: the content of benchmarks/results/distance.json;
- ``every("semantic_*")``: the contents of all files of that name, each with its ``name``; ``{% if every(…) %}`` leaves
  a section out that has none;
- ``x | f(".2f")``: a number in Python's format; ``values | spread(".1f")``: their mean ± standard deviation, as
  ``spread(".1f", 100)`` in percent;
- ``rows | groups("model", "loss")``: the rows that agree in these, a list for each;
- ``lines | few(10, "MAE")``: of those that say MAE at most so many, evenly chosen, with the first and the last;
- ``weights("u2net*")``: the records of published checkpoints; ``size(record)`` and ``scores(record)`` in words,
  ``parameters("u2net_lite")`` of a model;
- ``about("distance", …)``: command, machine, date and commit of files: the last line of each section.

A name or a file that is not there is an error: no figure is made up, none is left out in silence.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from segzoo import Weights, get_weights, list_weights
from segzoo._files import write_whole
from segzoo.registry import create_untrained

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


class Results:
    """The result files, and which of them were asked for.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path = ROOT / "benchmarks/results") -> None:
        self.folder = folder
        self.used: set[str] = set()

    def one(self, name: str) -> Result:
        self.used.add(name)
        return {"name": name, **json.loads((self.folder / f"{name}.json").read_text("utf-8"))}

    def every(self, pattern: str) -> list[Result]:
        return [self.one(path.stem) for path in sorted(self.folder.glob(f"{pattern}.json"))]

    def about(self, *names: str) -> str:
        """Commands, and under them machine, dates and commits; of several files what they share only once."""
        origins = [origin for name in names for file in [self.one(name)] for origin in [file, *file.get("earlier", [])]]
        commands = ", ".join(f"`{command}`" for command in abbreviated(distinct(origins, "command")))
        runs: dict[str, dict[str, list[str]]] = {}
        for origin in origins:
            commits = runs.setdefault(origin["machine"], {}).setdefault(when(origin), [])
            if commit(origin) not in commits:
                commits.append(commit(origin))
        machines = (
            f"{machine}; {'; '.join(f'{date} {join(commits)}' for date, commits in dates.items())}"
            for machine, dates in runs.items()
        )
        return f"{commands}\n\n<sub>{'. '.join(machines)}.</sub>"


def when(origin: Result) -> str:
    how = "kept in" if origin.get("recorded") == "from history" else "measured at"
    return f"{origin['date'][:10]}, {how}"


def commit(origin: Result) -> str:
    if origin["commit"] is None:
        return "a commit that is not known"
    name, _, dirty = origin["commit"].partition("-")
    return f"{name[:7]} with changes" if dirty else name[:7]


def join(words: Sequence[str]) -> str:
    """With commas, and an "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def distinct(origins: Iterable[Result], key: str) -> list[str]:
    return list(dict.fromkeys(origin[key] for origin in origins))


def abbreviated(commands: Sequence[str]) -> list[str]:
    """All after the first without the options they begin with together."""
    first = commands[0].split(" ")
    short = [commands[0]]
    for words in (command.split(" ") for command in commands[1:]):
        same = next((i for i, (a, b) in enumerate(zip(first, words)) if a != b), min(len(first), len(words)))
        while 0 < same < len(words) and not words[same].startswith("-"):
            same -= 1
        short.append(" ".join(["…", *words[same:]] if same > 1 else words))
    return short


def formatted(value: float, spec: str) -> str:
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises with the name that is not there
    return re.sub(r"e([+-])0+(?=\d)", r"e\1", format(value, spec))  # 1e-5, not 1e-05


def spread(values: Iterable[float], spec: str, times: float = 1) -> str:
    """Mean ± standard deviation of runs that differ in their seed; of one run the value alone."""
    numbers = [times * value for value in values]
    middle = format(statistics.fmean(numbers), spec)
    return middle if len(numbers) == 1 else f"{middle} ± {format(statistics.stdev(numbers), spec)}"


def groups(rows: Iterable[Result], *keys: str) -> list[list[Result]]:
    """Rows that agree in all keys, in the order in which the first of each group comes."""
    found: dict[str, list[Result]] = {}
    for row in rows:
        found.setdefault(json.dumps([row[key] for key in keys]), []).append(row)
    return list(found.values())


def few(lines: Iterable[str], most: int, word: str = "") -> list[str]:
    every = [line for line in lines if word in line]
    if len(every) <= most:
        return every
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def size(record: Weights) -> str:
    """Of a checkpoint's published file."""
    source = record.sources[0]
    if source.kind == "bundled":
        return "in the package"
    return f"{source.size / 1e6:,.0f} MB" if source.size else "not known"


def scores(record: Weights) -> str:
    """What was measured here, with a star, else what was published."""
    measured = bool(record.metrics)
    return "; ".join(
        f"{data}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}{'*' if measured else ''}"
        for data, values in (record.metrics or record.published_metrics).items()
    )


def parameters(name: str) -> str:
    with torch.device("meta"):
        model = create_untrained(name)
    return f"{sum(p.numel() for p in model.parameters()):,}"


def render(template: str, results: Results) -> str:
    """A template's text with the figures in place."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"f": formatted, "spread": spread, "groups": groups, "few": few}
    environment.globals |= {
        "results": results.one,
        "every": results.every,
        "about": results.about,
        "weights": lambda pattern="*": [get_weights(name) for name in list_weights(pattern)],
        "size": size,
        "scores": scores,
        "parameters": parameters,
        "published": lambda model, data: get_weights(model).published_metrics[data],
    }
    return str(environment.from_string(template).render())


def pages(docs: Path = ROOT / "docs", results: Results | None = None) -> dict[Path, str]:
    """Each page that is made, wholly or in part, and its text."""
    results = results or Results()
    made: dict[Path, str] = {}
    for template in sorted(docs.glob("*.in.md")):
        text = render(template.read_text("utf-8"), results)
        page = docs / template.name.replace(".in.md", ".md")
        begin, end = f"<!-- {template.name} -->\n", f"<!-- end of {template.name} -->\n"
        readme = docs.parent / "README.md"
        places = [path for path in [*docs.glob("*.md"), readme] if path.is_file() and begin in path.read_text("utf-8")]
        if not places:
            made[page] = f"<!-- Made by docs/make_benchmarks.py: change {template.name}. -->\n{text}"
        for place in places:
            before, _, rest = made.get(place, place.read_text("utf-8")).partition(begin)
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"{place.name} has the line {begin.strip()} and after it no line {end.strip()}")
            made[place] = f"{before}{begin}{text}{end}{after}"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    args = parser.parse_args()
    changed = {page: text for page, text in pages().items() if not page.exists() or page.read_text("utf-8") != text}
    if args.check and changed:
        names = ", ".join(f"docs/{page.name}" for page in changed)
        sys.exit(f"not what their templates and results make: {names}; run python docs/make_benchmarks.py")
    for page, text in changed.items():
        with write_whole(page) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
