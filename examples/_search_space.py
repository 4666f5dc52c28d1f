"""What a search may draw: options of a script, and which values each can have.

`lr=log:1e-4:1e-2`, `dropout=0:0.5`, `batch-size=int:4:16`, `loss=ce,focal,dice`, `recompute=flag`; a range with a
number of points at its end, `lr=log:1e-4:1e-2:5`, is a row of that many values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Options = dict[str, str]  # what a trial is given: the option's name without dashes to its value as it is written


class Values(Protocol):
    """The values that an option can have. A value is a text, as the script gets it."""

    def points(self) -> Sequence[str]:
        """All values, or none where there are too many to count."""

    def draw(self, rng: random.Random) -> str:
        """Any of them, each as likely."""

    def suggest(self, name: str, trial: Any) -> str:
        """The one that an Optuna trial suggests."""

    def known(self, value: str) -> Any:
        """The value as Optuna knows it."""


@dataclass(frozen=True)
class Choice:
    """One of several words; where they have an order, as numbers have, their neighbours are alike."""

    words: tuple[str, ...]
    ordered: bool = False

    def points(self) -> Sequence[str]:
        return self.words

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self.words)

    def suggest(self, name: str, trial: Any) -> str:
        if self.ordered:
            return self.words[trial.suggest_int(name, 0, len(self.words) - 1)]
        return str(trial.suggest_categorical(name, self.words))

    def known(self, value: str) -> Any:
        return self.words.index(value) if self.ordered else value


@dataclass(frozen=True)
class Flag(Choice):
    """An option without a value, which is given or not."""

    words: tuple[str, ...] = ("off", "on")


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included; evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def points(self) -> Sequence[str]:
        return [str(n) for n in range(int(self.low), int(self.high) + 1)] if self.integer else ()

    def draw(self, rng: random.Random) -> str:
        high = self.high + 1 if self.integer else self.high  # the last integer as likely as the others
        value = math.exp(rng.uniform(math.log(self.low), math.log(high))) if self.log else rng.uniform(self.low, high)
        return self.write(math.floor(value) if self.integer else value)

    def suggest(self, name: str, trial: Any) -> str:
        if self.integer:
            return self.write(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return self.write(trial.suggest_float(name, self.low, self.high, log=self.log))

    def known(self, value: str) -> Any:
        return int(value) if self.integer else float(value)

    def write(self, value: float) -> str:
        """A number with four digits, which is what the script gets: a table can then show all that there is."""
        value = min(max(value, self.low), self.high)
        if self.integer:
            return str(int(value))
        short = f"{value:.4g}"
        return short if self.low <= float(short) <= self.high else repr(value)

    def row(self, count: int) -> Choice:
        """So many of its numbers, evenly spaced, from the first to the last."""
        parts = [i / (count - 1) for i in range(count)]
        if self.log:
            values = [self.low ** (1 - part) * self.high**part for part in parts]
        else:
            values = [self.low + (self.high - self.low) * part for part in parts]
        return Choice(tuple(dict.fromkeys(self.write(round(v) if self.integer else v) for v in values)), ordered=True)


def read_space(words: Sequence[str]) -> dict[str, Values]:
    """The options and their values, as they stand after ``--space``.

    Raises:
        ValueError: For what is none of the forms above.

    Examples:
        >>> read_space(["loss=ce,dice"])
        {'loss': Choice(words=('ce', 'dice'), ordered=False)}
    """
    space: dict[str, Values] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.removeprefix("--")
        if not (name and equals and text):
            raise ValueError(f"--space {word!r}: expected an option and its values, such as lr=log:1e-4:1e-2")
        if name in space:
            raise ValueError(f"--space has {name} twice")
        space[name] = _values(name, text)
    return space


def _values(name: str, text: str) -> Values:
    if text == "flag":
        return Flag()
    *kinds, numbers = _split(text)
    if numbers is None:
        words = tuple(text.split(","))
        if "" in words or len(set(words)) < len(words):
            raise ValueError(f"--space {name}={text}: expected different words with commas between them")
        if kinds:
            raise ValueError(f"--space {name}={text}: expected numbers as in {':'.join([*kinds, '1:10'])}")
        return Choice(words, ordered=_rising(words))
    if not 2 <= len(numbers) <= 3:
        raise ValueError(f"--space {name}={text}: expected low:high, or low:high:points")
    low, high = numbers[:2]
    found = Range(low, high, "log" in kinds, "int" in kinds)
    if not low < high:
        raise ValueError(f"--space {name}={text}: {low:g} is not below {high:g}")
    if found.log and low <= 0:
        raise ValueError(f"--space {name}={text}: a logarithmic range lies above 0")
    if found.integer and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"--space {name}={text}: expected whole numbers")
    if len(numbers) == 2:
        return found
    if not (numbers[2].is_integer() and numbers[2] >= 2):
        raise ValueError(f"--space {name}={text}: the number of points is 2 or more")
    return found.row(int(numbers[2]))


def _split(text: str) -> list[Any]:
    """The words ``log`` and ``int`` before a range, then its numbers; None for what is no range."""
    parts = text.split(":")
    kinds = []
    while len(parts) > 1 and parts[0] in ("log", "int") and parts[0] not in kinds:
        kinds.append(parts.pop(0))
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return [*kinds, None]
    if not all(map(math.isfinite, numbers)):
        return [*kinds, None]
    return [*kinds, numbers if kinds or len(numbers) > 1 else None]  # a number alone is a word


def _rising(words: Sequence[str]) -> bool:
    """Whether these are numbers, the smallest first."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return len(numbers) > 1 and numbers == sorted(numbers)


def combinations(space: Mapping[str, Values]) -> float:
    """How many there are; infinity where a range has no end of them.

    Examples:
        >>> combinations(read_space(["a=1,2", "b=flag"])), combinations(read_space(["a=0:1"]))
        (4, inf)
    """
    counts = [len(values.points()) or math.inf for values in space.values()]
    return math.prod(counts)


def as_words(space: Mapping[str, Values], options: Mapping[str, str]) -> Iterator[str]:
    """The drawn options as words of a command line."""
    for name, value in options.items():
        if isinstance(space[name], Flag):
            if value == "on":
                yield f"--{name}"
        elif value.startswith("-"):  # or it would be taken for an option
            yield f"--{name}={value}"
        else:
            yield from (f"--{name}", value)
