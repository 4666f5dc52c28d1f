"""Which trial a search makes next, and which it ends early."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from _search_space import Options, Values, combinations
from _search_trials import Trial

Pruner = Callable[[Trial, int, Sequence[Trial]], str | None]
ATTEMPTS = 1000  # so many draws in a row that were all there already: a range has few different values left, or none


def median(after: int, startup: int) -> Pruner:
    """A trial ends whose best until now is worse than the median of what the others had at that epoch.

    Args:
        after: No trial ends before that epoch.
        startup: No trial ends before so many others got as far.
    """

    def judge(trial: Trial, epoch: int, others: Sequence[Trial]) -> str | None:
        theirs = [other.best(epoch)[1] for other in others if other.reached(epoch)]
        if epoch < after or len(theirs) < max(1, startup):
            return None
        mine, middle = trial.best(epoch)[1], statistics.median(theirs)
        return f"worse than {middle:.4g}, the median of {len(theirs)} trials" if trial.is_worse(mine, middle) else None

    return judge


def halving(after: int, eta: int) -> Pruner:
    """At epochs ``after``, ``after · eta``, ``after · eta²`` … only the best one in ``eta`` of those there goes on.

    Of those that have come there until now, so that no trial waits for others.

    Source:
        Li et al., A System for Massively Parallel Hyperparameter Tuning (MLSys 2020), the variant that stops trials.
    """

    def judge(trial: Trial, epoch: int, others: Sequence[Trial]) -> str | None:
        before = max((e for e in trial.values if e < epoch), default=0)
        rung = after
        while rung <= before:
            rung *= eta
        if epoch < rung:
            return None
        theirs = [other.best(epoch)[1] for other in others if other.reached(epoch)]
        mine, places = trial.best(epoch)[1], (len(theirs) + 1) // eta
        better = sum(trial.is_worse(mine, value) for value in theirs)
        return (
            f"{better} of {len(theirs)} trials are better, and {places} may go on"
            if places and better >= places
            else None
        )

    return judge


def never(trial: Trial, epoch: int, others: Sequence[Trial]) -> str | None:
    """No trial ends early."""
    return None


class Random:
    """Trials drawn at random, no two alike. What is drawn depends on the seed and the trial's number.

    Args:
        space: What is drawn.
        pruner: Which trials end early.
        seed: Of the draws.
    """

    def __init__(self, space: Mapping[str, Values], pruner: Pruner, seed: int = 0) -> None:
        self.space, self.pruner, self.seed = space, pruner, seed
        self.total = combinations(space)

    def propose(self, number: int, before: Sequence[Trial]) -> Options | None:
        """The options of a new trial, other than those of the trials before; None: the space has no more of them."""
        seen = [trial.options for trial in before]
        drawn = (self.draw(number, attempt) for attempt in range(ATTEMPTS))
        found = next((options for options in drawn if options not in seen), None)
        if found is None and math.isfinite(self.total):
            found = next((options for options in self._all() if options not in seen), None)
        return found

    def _all(self) -> Iterator[Options]:
        """Every combination, the last option's values the fastest, where each option has a number of them."""
        rows = (values.points() for values in self.space.values())
        return (dict(zip(self.space, row)) for row in itertools.product(*rows))

    def draw(self, number: int, attempt: int) -> Options:
        """Some options."""
        name = f"{self.seed}/{number}/{attempt}"
        return {option: values.draw(random.Random(f"{name}/{option}")) for option, values in self.space.items()}

    def started(self, trial: Trial) -> None:
        """Take in that a trial runs."""

    def judge(self, trial: Trial, epoch: int, others: Sequence[Trial]) -> str | None:
        """Why a trial that got so far is to end, or None."""
        return self.pruner(trial, epoch, others)

    def ended(self, trial: Trial) -> None:
        """Take in what became of a trial."""


class Grid(Random):
    """Every combination, the last option's values the fastest."""

    def __init__(self, space: Mapping[str, Values], pruner: Pruner, seed: int = 0) -> None:
        super().__init__(space, pruner, seed)
        for name, values in space.items():
            if not values.points():
                raise ValueError(f"a grid takes points, and {name} is a range: write low:high:points, such as 0:0.5:3")

    def draw(self, number: int, attempt: int) -> Options:
        return next(itertools.islice(self._all(), number, None))


class Bayes(Random):
    """Trials where those before promise most: Optuna's tree-structured Parzen estimator, and its pruners.

    Args:
        space: What is drawn.
        pruner: Of Optuna's: ``"median"``, ``"halving"`` or ``"none"``.
        seed: Of the draws.
        maximize: Whether more is better.
        after: No trial ends before that epoch.
        startup: Of the median: no trial ends before so many others got as far.
        eta: Of halving: one in ``eta`` goes on.
    """

    first = 5  # so many are drawn at random, before there is something to learn from

    def __init__(
        self, space: Mapping[str, Values], pruner: str, seed: int, maximize: bool, after: int, startup: int, eta: int
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ImportError("a Bayesian search takes the package optuna: pip install optuna") from error
        super().__init__(space, never, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners: dict[str, Callable[[], Any]] = {
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=after),
            "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=after, reduction_factor=eta),
            "none": optuna.pruners.NopPruner,
        }
        self.optuna, self.direction = optuna, "maximize" if maximize else "minimize"
        self.study = optuna.create_study(direction=self.direction, pruner=pruners[pruner]())
        self.live: dict[int, Any] = {}

    def draw(self, number: int, attempt: int) -> Options:
        if attempt:  # the sampler would say the same again
            return super().draw(number, attempt)
        # In a study of its own: a seed for each trial makes a search that was interrupted go on as it would have, and
        # the study that is kept knows each value as the script got it, in four digits.
        sampler = self.optuna.samplers.TPESampler(
            seed=random.Random(f"{self.seed}/{number}").getrandbits(31), n_startup_trials=self.first, constant_liar=True
        )
        study = self.optuna.create_study(direction=self.direction, sampler=sampler)
        study.add_trials(self.study.get_trials(deepcopy=False))
        trial = study.ask()
        return {name: values.suggest(name, trial) for name, values in self.space.items()}

    def started(self, trial: Trial) -> None:
        self.study.enqueue_trial({name: self.space[name].known(value) for name, value in trial.options.items()})
        self.live[trial.number] = live = self.study.ask()
        for name, values in self.space.items():
            values.suggest(name, live)

    def judge(self, trial: Trial, epoch: int, others: Sequence[Trial]) -> str | None:
        live = self.live[trial.number]
        live.report(trial.values[epoch], epoch)
        return "by Optuna's pruner" if live.should_prune() else None

    def ended(self, trial: Trial) -> None:
        live = self.live.pop(trial.number)
        if trial.state == "complete":
            self.study.tell(live, trial.best()[1])
        else:
            # Those that failed too: the sampler passes over what it knows as failed, and would draw the like again.
            self.study.tell(live, state=self.optuna.trial.TrialState.PRUNED)
