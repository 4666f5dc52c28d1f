"""The trials of a search: what is written down of them, and the processes that make them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segzoo._errors import unknown_name
from segzoo._files import write_whole

ALWAYS = ("epoch", "train_loss", "lr", "train_accuracy")  # columns of history.csv that need no evaluation
WORDS = 100  # the last lines of a script's output: torchrun's traceback comes after what the script said
GRACE = 300.0  # seconds in which a script that is asked to stop saves what it has; longer, and it is killed


@dataclass
class Trial:
    """One run of the script.

    Args:
        number: From 0.
        options: What was drawn.
        maximize: Whether more is better.
        state: ``"unfinished"`` (a new start of the search goes on with it), ``"complete"``, ``"pruned"``, ``"failed"``.
        values: Epoch to the metric.
        seconds: How long it ran.
        note: Why it ended, where that is not the script's own end.
    """

    number: int
    options: dict[str, str]
    maximize: bool
    state: str = "unfinished"
    values: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"trial_{self.number:03d}"

    def best(self, until: int | None = None) -> tuple[int, float]:
        """The best epoch until that one, the first of several, and its value. There must be one."""
        known = ((epoch, value) for epoch, value in self.values.items() if until is None or epoch <= until)
        return min(known, key=lambda item: (-item[1] if self.maximize else item[1], item[0]))

    def reached(self, epoch: int) -> bool:
        """Whether it can be compared at that epoch."""
        return bool(self.values) and min(self.values) <= epoch <= max(self.values)

    def is_worse(self, mine: float, theirs: float) -> bool:
        """Whether one value is worse than another."""
        return mine < theirs if self.maximize else mine > theirs


class Book:
    """``trials.json`` and ``trials.csv`` of a search: whole at any time, and enough to go on.

    Args:
        folder: Of the search.
        settings: What must be the same when a search goes on.

    Raises:
        ValueError: If the folder has another search.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.trials: list[Trial] = []
        path = folder / "trials.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            before, trials = found["settings"], [_trial(entry) for entry in found["trials"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no record of a search: {error}") from None
        for name, now in self.settings.items():
            if before.get(name) != now:
                raise ValueError(
                    f"{folder} has a search with another {name}, {_shown(before.get(name))} instead of {_shown(now)}: "
                    "give it as it was to go on, or another --out"
                )
        self.trials = trials

    def write(self) -> None:
        """Both files."""
        whole = {"settings": self.settings, "trials": [asdict(trial) for trial in self.trials]}
        with write_whole(self.folder / "trials.json") as file:
            file.write(json.dumps(whole, indent=1, ensure_ascii=False).encode())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = list(self.trials[0].options) if self.trials else []
        writer.writerow(["trial", "state", self.settings["metric"], "epoch", "seconds", *names, "note"])
        for trial in self.trials:
            epoch, value = trial.best() if trial.values else ("", "")
            seconds = f"{trial.seconds:.1f}"
            writer.writerow([trial.number, trial.state, value, epoch, seconds, *trial.options.values(), trial.note])
        with write_whole(self.folder / "trials.csv") as file:
            file.write(text.getvalue().encode())

    def ranked(self) -> list[Trial]:
        """The best first: of those that are complete, then of those that ended early, then those without a value."""

        def key(trial: Trial) -> tuple[Any, ...]:
            value = trial.best()[1] if trial.values else math.inf
            order = ["complete", "pruned", "unfinished", "failed"].index(trial.state)
            return not trial.values, order, -value if trial.maximize else value, trial.number

        return sorted(self.trials, key=key)


def _trial(entry: dict[str, Any]) -> Trial:
    return Trial(**{**entry, "values": {int(epoch): float(value) for epoch, value in entry["values"].items()}})


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class Process:
    """A trial that runs.

    Args:
        trial: Which.
        command: Script, options and all.
        folder: Of the search: its output goes to ``trial_000.log`` there.
        metric: The column of ``history.csv`` to follow.
        device: What ``CUDA_VISIBLE_DEVICES`` is to be, or None to leave it.
        threads: Of OpenMP, where the environment does not say it.
        passed: File descriptors that it holds.
    """

    def __init__(
        self,
        trial: Trial,
        command: Sequence[str],
        folder: Path,
        metric: str,
        device: str | None = None,
        threads: int | None = None,
        passed: tuple[int, ...] = (),
    ) -> None:
        self.trial, self.metric = trial, metric
        self.history, self.log = folder / trial.name / "history.csv", folder / f"{trial.name}.log"
        self.before, self.started, self.asked = trial.seconds, time.monotonic(), math.inf
        self.said_before = self.log.stat().st_size if self.log.exists() else 0  # by earlier starts
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        if threads:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the search alone, which then stops its trials in good order.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=passed,
                start_new_session=True,
            )

    def poll(self) -> tuple[int | None, list[int]]:
        """The exit code, None while it runs; and the epochs that the trial has come to know since the last time."""
        code = self.process.poll()  # before the file is read: what is there after the end is all there will be
        self.trial.seconds = self.before + time.monotonic() - self.started
        if code is None and time.monotonic() - self.asked > GRACE:
            self.kill()
        new = []
        for epoch, value in read_history(self.history, self.metric, finished=code == 0):
            if epoch not in self.trial.values:
                self.trial.values[epoch] = value
                new.append(epoch)
        return code, new

    def stop(self) -> None:
        """Ask it to save and end."""
        if self.asked == math.inf:
            self.asked = time.monotonic()
            self.process.terminate()

    def kill(self) -> None:
        """End it, and what it started, at once."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """The last line of its output."""
        return next(reversed(self._output()), "it said nothing")

    def was_stopped(self, code: int) -> bool:
        """Whether SIGTERM ended it, by its exit code; torchrun's is 1 then, and its traceback tells, or the script."""
        if code in (143, -signal.SIGTERM):
            return True
        lines = self._output()
        return bool(lines) and (
            "got signal: 15" in lines[-1] or any("stopped by SIGTERM" in line for line in lines[-WORDS:])
        )

    def _output(self) -> list[str]:
        """The lines of this start, without empty ones; of a progress bar's its last state."""
        with self.log.open("rb") as file:
            file.seek(self.said_before)
            text = file.read().decode("utf-8", "replace")
        return [shown for line in text.split("\n") if (shown := line.rpartition("\r")[2].strip())]


def stop_all(processes: Iterable[Process]) -> None:
    """Ask all to save and end, and wait for them."""
    processes = list(processes)
    for process in processes:
        process.stop()
    try:
        for process in processes:
            process.process.wait(GRACE)
    except BaseException:  # it takes too long, or somebody is impatient
        for process in processes:
            process.kill()
        raise


def read_history(path: Path, metric: str, finished: bool = True) -> list[tuple[int, float]]:
    """Epochs and the metric, of the epochs that were evaluated.

    Epoch 0 is before the first step: it says what the weights were, not what the options are worth.

    Raises:
        ValueError: If an evaluation is there, or the script has ended, and there is no such column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))  # a line without its end is being written
    if not rows:
        return []
    header = rows[0]
    if metric not in header:
        if finished or not set(header) <= set(ALWAYS):
            raise unknown_name("metric", metric, [name for name in header if name not in ("epoch", "lr")])
        return []
    found = []
    for row in rows[1:]:
        entry = dict(zip(header, row))
        value = float(entry.get(metric) or "nan")
        if float(entry["epoch"]) >= 1 and math.isfinite(value):
            found.append((int(float(entry["epoch"])), value))
    return found


def python_command(words: Sequence[str]) -> list[str]:
    """The command for a script and its arguments: a .py file with this Python, anything else as it is."""
    return [sys.executable, *words] if words[0].endswith(".py") else list(words)
