"""Search the options of a training script: a grid, at random, or Bayesian, with bad trials ended early.

python examples/search.py random --trials 20 --out searches/a --metric miou \\
    --space lr=log:1e-4:1e-2 weight-decay=log:1e-6:1e-2 loss=ce,focal,dice dropout=0:0.5 -- \\
    examples/train_semantic.py --dataset camvid --data camvid --model unet --epochs 10
python examples/search.py grid --out searches/b --metric miou --space lr=log:1e-4:1e-2:3 norm=batch,group -- \\
    examples/train_semantic.py --dataset camvid --data camvid --epochs 10
python examples/search.py bayes --trials 30 --out searches/c --metric mae --jobs 4 --devices 0,1 --prune halving \\
    --space lr=log:1e-5:1e-2 -- examples/train_salient.py --dataset duts --data DUTS --epochs 30

What follows -- is a script (or any command, torchrun too) and its fixed options. Each trial is a process of its own,
with --output OUT/trial_003 and what was drawn: a crash ends that trial only. It writes a row for each epoch to
history.csv there, whose figures are of pictures held out of the training data; a trial that is bad by the column
--metric gets SIGTERM. Every trial is in OUT/trials.json and trials.csv as it begins and ends. The same command goes on
where a search stopped, its unfinished trials with --resume auto; with more --trials, it makes more.

--space says what is drawn, and as what:
  lr=log:1e-4:1e-2     numbers between two, evenly in their logarithm       batch-size=int:4:16   whole numbers
  dropout=0:0.5        numbers between two                                  loss=ce,focal         one of these words
  dropout=0:0.5:3      so many points between them, as a grid takes         recompute=flag        given or not
bayes takes the package optuna (pip install optuna).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from _lock import Lock
from _options import make_parser
from _search_space import Options, Values, as_words, read_space
from _search_strategies import Bayes, Grid, Random, halving, median, never
from _search_trials import Book, Process, Trial, python_command, stop_all

PRUNERS = ("median", "halving", "none")
LEAST_FAILED = 3  # so many trials fail, and none gives a value: it is not the options that were drawn


class Search:
    """Trials, as many at once as there are jobs, until there are enough.

    Args:
        args: The parsed options.
        space: What is drawn.
        strategy: Which trial comes next, and which ends early.
        book: What is known of the trials.
        lock: On the folder.
    """

    def __init__(
        self, args: argparse.Namespace, space: dict[str, Values], strategy: Random, book: Book, lock: Lock
    ) -> None:
        self.args, self.space, self.strategy, self.book, self.lock = args, space, strategy, book, lock
        self.total = int(min(args.trials or strategy.total, strategy.total))
        self.running: dict[int, Process] = {}  # by their places, which are 0 to jobs - 1
        self.again: deque[Trial] = deque()
        self.last_epoch = fixed_number(args.command, "--epochs")
        for trial in book.trials:
            if trial.state == "failed" and args.retry_failed:
                trial.state = "unfinished"
            strategy.started(trial)
            if trial.state == "unfinished":
                trial.note = ""
                trial.values.clear()  # its history has them
                self.again.append(trial)
                continue
            for epoch in trial.values:
                strategy.judge(trial, epoch, book.trials[: trial.number])
            strategy.ended(trial)

    def run(self) -> None:
        """To the end.

        Raises:
            ValueError: If the script has no such metric.
            RuntimeError: If the script fails whatever is drawn.
            SystemExit: After SIGTERM or Ctrl-C; the trials have saved what they had.
        """
        with listening() as asked:
            try:
                while self._fill() or self.running:
                    time.sleep(self.args.poll)
                    if asked:
                        raise SystemExit(128 + asked[0])
                    for place in list(self.running):
                        self._look_at(place)
            finally:
                if self.running and not self.args.quiet:
                    print("search: the trials that run are to save what they have and end", file=sys.stderr)
                stop_all(self.running.values())
                self.book.write()

    def _fill(self) -> bool:
        """Start what can be started; whether anything was."""
        started = False
        for place in range(self.args.jobs):
            if place in self.running:
                continue
            if self.again:
                trial, words = self.again.popleft(), ["--resume", "auto"]
            elif len(self.book.trials) < self.total:
                number, words = len(self.book.trials), []
                options = self.strategy.propose(number, self.book.trials)
                if options is None:
                    self._end_at(number)
                    break
                trial = Trial(number, options, self.args.direction == "maximize")
                self.book.trials.append(trial)
                self.strategy.started(trial)
            else:
                break
            self._start(trial, place, words)
            started = True
        return started

    def _end_at(self, number: int) -> None:
        """The space is at its end before there are as many trials as were asked for."""
        self.total = number
        if not self.args.quiet:
            print(f"search: the space has no more than {number} different trials", file=sys.stderr)

    def _start(self, trial: Trial, place: int, words: Sequence[str]) -> None:
        self.book.write()
        drawn = list(as_words(self.space, trial.options))
        output = ["--output", str(self.args.out / trial.name)]
        command = python_command([*self.args.command, *drawn, *output, *words])
        device = self.args.devices[place % len(self.args.devices)] if self.args.devices else None
        threads = max(1, (os.cpu_count() or 1) // self.args.jobs) if self.args.jobs > 1 else None
        self.running[place] = Process(
            trial, command, self.args.out, self.args.metric, device, threads, self.lock.passed
        )
        self._say(trial, f"{'goes on' if words else 'begins'}: {shlex.join(drawn)}")

    def _look_at(self, place: int) -> None:
        """Take in what a trial has done since the last time."""
        process = self.running[place]
        trial = process.trial
        code, new = process.poll()
        others = [other for other in self.book.trials if other is not trial]
        for epoch in new:
            reason = self.strategy.judge(trial, epoch, others)
            if reason and code is None and not trial.note and epoch != self.last_epoch:
                trial.note = f"epoch {epoch}: {reason}"
                process.stop()
        if code is None:
            return
        del self.running[place]
        self._conclude(process, code)
        self.strategy.ended(trial)
        self.book.write()
        failed = [other for other in self.book.trials if other.state == "failed"]
        if len(failed) >= max(LEAST_FAILED, self.args.jobs) and not any(other.values for other in self.book.trials):
            raise RuntimeError(f"{len(failed)} trials failed and none gave a value; the last said: {trial.note}")

    def _conclude(self, process: Process, code: int) -> None:
        trial = process.trial
        if code == 0 and trial.values:
            trial.state, trial.note = "complete", ""  # also where it had been told to stop, and was there before
        elif trial.note:
            trial.state = "pruned"
        elif process.was_stopped(code):  # by somebody else
            self._say(trial, "was stopped; the same command goes on with it")
            return
        else:
            said = f"no {self.args.metric} in {process.history}" if code == 0 else process.last_words()
            trial.state, trial.note = "failed", f"exit code {code}: {said}"
        value = f", {self.args.metric} {trial.best()[1]:.4g} at epoch {trial.best()[0]}" if trial.values else ""
        self._say(trial, f"{trial.state}{value}, {trial.seconds:.0f} s{'; ' + trial.note if trial.note else ''}")

    def _say(self, trial: Trial, what: str) -> None:
        if not self.args.quiet:
            print(f"trial {trial.number} of {self.total}: {what}", file=sys.stderr)


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """The signals that ask to stop, noted: one that ends a function half-way could leave a trial that nobody knows."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:  # somebody is impatient
            raise SystemExit(128 + number)
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fixed_number(words: Sequence[str], option: str) -> int | None:
    """The whole number that a command line gives to an option, if it does."""
    for word, after in zip(words, [*words[1:], ""]):
        text = after if word == option else word.removeprefix(f"{option}=") if word.startswith(f"{option}=") else ""
        if text.isdigit():
            return int(text)
    return None


def table(book: Book, space: dict[str, Values]) -> str:
    """All trials, the best first."""
    rows = [["", "trial", "state", str(book.settings["metric"]), "epoch", *space, "seconds"]]
    for place, trial in enumerate(book.ranked(), 1):
        epoch, value = trial.best() if trial.values else ("", float("nan"))
        shown = f"{value:.4f}" if trial.values else ""
        drawn = [trial.options[name] for name in space]
        rows.append([str(place), str(trial.number), trial.state, shown, str(epoch), *drawn, f"{trial.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def command_line(args: argparse.Namespace, space: dict[str, Values], options: Options) -> str:
    """How to run the script again with these options."""
    words = [*args.command, *as_words(space, options), "--output", str(args.out / "best")]
    return shlex.join(["python", *words] if args.command[0].endswith(".py") else words)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, and as ``command`` what follows ``--``."""
    usage = "%(prog)s [-h] {grid,random,bayes} --out DIR --metric NAME --space OPTION=VALUES … -- SCRIPT …"
    parser = make_parser("search", __doc__, usage=usage)
    parser.add_argument("method", choices=["grid", "random", "bayes"], help="how trials are chosen")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder, made if it is not there")
    parser.add_argument("--metric", required=True, metavar="NAME", help="a column of history.csv: miou, mae, …")
    parser.add_argument("--direction", choices=["maximize", "minimize"], help="of the metric (default: by its name)")
    parser.add_argument("--space", nargs="+", required=True, metavar="OPTION=VALUES", help="what is drawn; see below")
    parser.add_argument("--trials", type=positive, metavar="N", help="how many (default: 20; of a grid, all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--prune", choices=PRUNERS, default="median", help="which trials end early (default: median)")
    parser.add_argument(
        "--prune-after", type=positive, default=1, metavar="EPOCH", help="none ends before it (default: 1)"
    )
    parser.add_argument(
        "--startup", type=positive, default=4, metavar="N", help="median: so many trials to compare with (default: 4)"
    )
    parser.add_argument(
        "--eta", type=positive, default=3, metavar="N", help="halving: one in N goes on, to N times the epochs"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="trials at once (default: 1, or one for each device)"
    )
    parser.add_argument("--devices", metavar="0,1", help="GPUs for the trials, in turn (CUDA_VISIBLE_DEVICES)")
    parser.add_argument("--retry-failed", action="store_true", help="go on with trials that failed, too")
    parser.add_argument("--poll", type=float, default=1.0, metavar="SECONDS", help="how often to look (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="the table only")
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.command = words[cut + 1 :]
    args.devices = args.devices.split(",") if args.devices else []
    args.jobs = args.jobs or max(1, len(args.devices))
    if args.trials is None and args.method != "grid":
        args.trials = 20
    if args.direction is None:
        less = ("mae", "loss", "error", "hausdorff", "distance", "assd")
        args.direction = "minimize" if any(word in args.metric.lower() for word in less) else "maximize"
    if args.eta < 2:
        parser.error("--eta is 2 or more")
    if not args.command:
        parser.error("what is to be run is missing: -- examples/train_semantic.py and its options, at the end")
    return args


def positive(text: str) -> int:
    """For argparse: an int above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def check_command(args: argparse.Namespace, space: dict[str, Values]) -> None:
    """Raise now what every trial would fail with."""
    script = args.command[0]
    if script.endswith(".py") and not Path(script).is_file():
        raise FileNotFoundError(f"there is no script {script}")
    if not script.endswith(".py") and shutil.which(script) is None:
        raise FileNotFoundError(f"there is no command {script}")
    given = {word.partition("=")[0] for word in args.command[1:] if word.startswith("--")}
    if twice := [name for name in space if f"--{name}" in given]:
        raise ValueError(f"--{twice[0]} is given after -- and drawn by --space: leave one of them out")
    for option in ("--output", "--resume"):
        if option in given or option[2:] in space:
            raise ValueError(f"{option} is the search's own: each trial has a folder in {args.out}")


def strategy(args: argparse.Namespace, space: dict[str, Values]) -> Random:
    """Which trial comes next, and which ends early."""
    if args.method == "bayes":
        maximize = args.direction == "maximize"
        return Bayes(space, args.prune, args.seed, maximize, args.prune_after, args.startup, args.eta)
    pruners = {"median": median(args.prune_after, args.startup), "halving": halving(args.prune_after, args.eta)}
    return (Grid if args.method == "grid" else Random)(space, pruners.get(args.prune, never), args.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 there is a best trial, 1 there is none, 2 wrong arguments."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        space = read_space(args.space)
        check_command(args, space)
        chosen = strategy(args, space)
        args.out.mkdir(parents=True, exist_ok=True)
        lock = Lock(args.out, f"a search in {args.out}, or a trial that one left behind, is still running")
        try:
            names = ("method", "space", "metric", "direction", "seed", "command")
            book = Book(args.out, {name: getattr(args, name) for name in names})
            Search(args, space, chosen, book, lock).run()
        finally:
            lock.close()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"search: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    print(table(book, space))
    best = book.ranked()[0]
    if best.state != "complete":
        print("search: no trial came to its end", file=sys.stderr)
        return 1
    epoch, value = best.best()
    where = args.out / best.name
    print(f"\nbest: trial {best.number}, {args.metric} {value:.4f} at epoch {epoch}, in {where}; to run it again:")
    print(command_line(args, space, best.options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
