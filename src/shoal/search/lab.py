"""The lab: what a method works with in one step. Its verbs change, train and measure a network.

The verbs write down what they did, and the engine makes the step's record of it. What is measured
is remembered by the run, so a step that was interrupted decides alike when it is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

from torch import Tensor, nn

from shoal.importance import Scores, Stage, criterion_for, score_by, stages
from shoal.importance import per_latency as over_latency
from shoal.importance.criteria import ALL
from shoal.importance.soft_entropy import site_entropy
from shoal.importance.transport import block_distance
from shoal.importance.trials import line_scores
from shoal.merge.padding import move_paddings_
from shoal.modes import device_of
from shoal.network import Network, Site
from shoal.options import DistanceOptions, Recipe
from shoal.passes.batches import Data
from shoal.search.blending import Blending
from shoal.search.coach import Trial
from shoal.search.limits import latency_share
from shoal.search.moves import (
    KINDS,
    POSITIONS,
    Fitted,
    Move,
    find_moves,
    fit_moves,
    predicted_costs,
)
from shoal.search.setup import Spent
from shoal.seeds import derive_seed, preserved_rng, seed_everything
from shoal.surgery import (
    FittedLine,
    LineMoments,
    collapse_,
    drop_,
    fit_lines,
    linearize_,
    replace_,
)
from shoal.surgery.norm_lines import implied_lines

Penalty: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]

_REMOVES = {"site": "linearize", "block": "drop", "stretch": "collapse"}


class Lab(Blending):
    """A step of a search, as the method sees it.

    Attributes:
        network: changed in place by the verbs.
        base: the captured original; leave it as it is.
        dense: the dense network, trained if that was asked for; leave it as it is.
        history: the steps so far, of which the first is the dense network's.
        number: of this step, from 1.
        options: of the search; `machine` and `recipe` beside them.
        data: `train`, `val` and `test`.
        listener: who watches.
    """

    # ------------------------------------------------------------------ scoring

    def score(
        self,
        criterion: str,
        kind: str = "site",
        *,
        wanted: int | None = None,
        how: str = "line",
        samples: int | None = None,
        per_latency: bool = False,
        fit_lines: bool = False,
    ) -> Scores:
        """Score all places of one kind on training data; the lowest matter least to the task.

        Args:
            criterion: its name, with options as in "l1?scope=global".
            kind: "site", "block" or "stretch".
            wanted: how many of the lowest will be taken; None ranks all, which takes some criteria
                longer.
            how: what takes a rectifier's place, for criteria that try it out.
            samples: score on this many samples only.
            per_latency: divide by the milliseconds that each removal saves; infinite for none.
            fit_lines: fit the line of each site in the same pass, for `linearize`.

        Raises:
            ConfigError: there is nothing to score, or the criterion scores another kind.
            TrainingError: the network computes NaN.
        """
        wanted = ALL if wanted is None or per_latency else wanted
        seed, task = self.options.seed, self.setup.task
        chosen = criterion_for(criterion, kind, seed=seed, wanted=wanted, how=how, task=task)
        moments = [LineMoments(positions=POSITIONS)] if fit_lines else []
        with self._scoring():
            scores = score_by(
                chosen,
                self.network,
                self.data.train,
                samples=samples,
                progress=self.listener.scored,
                beside=moments,
            )
        if moments:
            self._lines = moments[0].lines()
        if per_latency:
            moves = find_moves(self.network, [_REMOVES[kind]])
            _, saved = self.saved_ms(moves, how)
            scores = over_latency(scores, {move.name: saved[move.title] for move in moves})
        if scores.settled is False and samples is not None:
            self.note("the lowest score is not settled: score on more samples to be sure")
        self.scores = scores
        return scores

    def imply_lines(self, how: str = "line", measured: int = 0) -> dict[str, FittedLine]:
        """Return the lines that batch norms imply, by the site's name: see `implied_lines`.

        Those of rectifiers that follow no batch norm are there if their inputs are to be `measured`
        on so many training samples.
        """
        with self._scoring():
            data = self.data.train if measured else None
            return implied_lines(self.network, how, data, samples=measured or None)

    def score_lines(self, lines: Mapping[str, FittedLine], samples: int | None = None) -> Scores:
        """Score sites by the rise of the loss on training data with each line in place, alone."""
        with self._scoring():
            data = Data(self.data.train, samples, self.listener.scored)
            self.scores = line_scores(self.network, lines, data, self.setup.task)
        return self.scores

    def loss(
        self, lines: Mapping[str, FittedLine] | None = None, samples: int | None = None
    ) -> float:
        """Return the mean loss on training data, with all of these lines in place."""
        put = lines or {}
        trial = self.trial(
            f"lines: {', '.join(put)}", lambda copy: linearize_(copy, list(put), lines=put)
        )
        loss = trial.cost(samples=samples)
        trial.forget()
        return loss

    def block_distance(self, options: DistanceOptions) -> Penalty:
        """Return the mean distance of what comes out of blocks from what goes in; to train with."""
        return block_distance(self.network, options)

    def site_entropy(self, tau: float) -> Penalty:
        """Return the mean of sites' smooth entropies in bits, as `soft_entropy`; to train with."""
        return site_entropy(self.network, tau)

    def find_moves(self, kinds: Collection[str] = KINDS) -> list[Move]:
        """Return what may be done: each a site to linearize, a stretch to collapse, …."""
        return find_moves(self.network, kinds)

    def saved_ms(
        self, moves: Sequence[Move], how: str = "line"
    ) -> tuple[float, Mapping[str, float]]:
        """Return the network's latency merged, and what each move, by its title, saves of it.

        The step has a note where that could not be measured for certain and MACs decided.
        """

        def measure() -> Any:
            return self.setup.gauge.saved_ms(self.network, moves, how)

        found = self.once("saved_ms", measure)
        titles = [move.title for move in moves]
        if not set(titles) <= set(found[1]):  # others were measured before in this step
            found = self.once(f"saved_ms of {', '.join(titles)}", measure)
        doubt = "".join(found[2:])  # missing where an earlier version measured it
        if doubt:
            self.note(f"what moves save was judged by their MACs, not by the clock: {doubt}")
        return found[0], found[1]

    def fit_moves(
        self, moves: Sequence[Move], how: str = "line", samples: int | None = None
    ) -> Fitted:
        """Fit what the moves put in on training data."""
        with self._scoring():
            return fit_moves(self.network, moves, self.data.train, how=how, samples=samples)

    def score_moves(
        self,
        moves: Sequence[Move],
        fitted: Fitted,
        saved: Mapping[str, float],
        *,
        metric: str = "loss",
        keep: int = 1,
        samples: int | None = None,
    ) -> Scores:
        """Score moves, by their titles, by what they should cost per millisecond they save.

        The metric is the task's "loss" or "accuracy" in points, on training data; `keep` of the
        best of each kind are wanted.
        """
        data = Data(self.data.train, samples, self.listener.scored)
        with self._scoring():
            task = self.setup.task
            self.scores = predicted_costs(
                fitted, moves, saved, data, metric=metric, keep=keep, task=task
            )
        return self.scores

    def stages(self, network: Network | None = None) -> list[Stage]:
        """Return a network's stages: its blocks, by the shape of what they give."""
        return stages(network or self.network)

    # ------------------------------------------------------------------ changing

    def linearize(
        self,
        names: Sequence[str],
        how: str = "line",
        lines: Mapping[str, FittedLine] | None = None,
    ) -> None:
        """Put the "identity", or a "line", in the place of sites' rectifiers.

        Lines are those given, or else those that `score` fitted; else they are fitted now.
        """
        if names:
            data, known = self.data.train, self._lines if lines is None else lines
            linearize_(self.network, names, how=how, loader=data, lines=known)
            self.mark("linearize", names)

    def drop(self, names: Sequence[str]) -> None:
        """Remove blocks."""
        drop_(self.network, names)
        self.mark("drop", names)

    def collapse(self, names: Sequence[str]) -> None:
        """Put one layer, fitted to training data, in the place of each stretch."""
        collapse_(self.network, names, self.data.train)
        self.mark("collapse", names)

    def make(self, moves: Sequence[Move], fitted: Fitted) -> None:
        """Make moves that do not touch one another."""
        for move in moves:
            fitted.make(move, self.network)
            self.mark(move.kind, [move.name])

    def replace(self, names: Sequence[str], make: Callable[[Site], nn.Module]) -> None:
        """Put modules of the method's own in the place of sites' rectifiers.

        `make` returns the module for a site, of a type that a saved network can hold: such as
        nn.PReLU, or one registered by `shoal.register_op`.
        """
        replace_(self.network, {name: make(self.network.site(name)) for name in names})
        self.mark("replace", names)

    def lines(self, names: Sequence[str]) -> Mapping[str, FittedLine]:
        """Fit the line of each site's rectifier to training data."""
        with self._scoring():
            return fit_lines(self.network, self.data.train, names)

    def layer_before(self, site: str) -> str | None:
        """Return the path of the layer with weights that a rectifier follows directly, or None."""
        return self.network.view.layer_before(self.network.node_of(site))

    # ------------------------------------------------------------------ training and trials

    def train(
        self,
        epochs: int | None = None,
        *,
        penalty: Penalty | None = None,
        at: Iterable[Any] = (),
        groups: Callable[[nn.Module], Iterable[Mapping[str, Any]]] | None = None,
        after_step: Callable[[nn.Module], object] | None = None,
        after_epoch: Callable[[nn.Module], bool] | None = None,
        memory: dict[str, Any] | None = None,
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        teacher: Network | None = None,
        lr: float | None = None,
    ) -> None:
        """Train the network; after a change, first move paddings, rewind and measure if asked for.

        Several trainings of one step are resumable one by one.

        Args:
            epochs: None takes the run's.
            penalty: added to the loss; called with the network and the values at the places `at`.
            at: sites, blocks or stretches whose values the penalty wants; see `shoal.training.fit`.
            groups: returns parameter groups with settings of their own.
            after_step: called with the network after each optimizer step.
            after_epoch: called after each epoch; the training ends where it returns True.
            memory: JSON values that these functions change and read, kept with the training.
            recipe: how to train; a mapping changes the run's recipe.
            teacher: to distil from, where the recipe does; None takes the dense network.
            lr: the peak learning rate, in place of the recipe's.

        Raises:
            TrainingError: the loss or a weight is not finite; the network is as it was before.
        """
        epochs = self.options.epochs if epochs is None else epochs
        self._make_ready(epochs)
        if epochs == 0:
            return
        self.listener.stage(self.number, "fine-tune" if self.number else "train")
        meter = self.setup.meter
        with nullcontext(Spent()) if meter is None else meter.training() as spent:
            notes = self.coach.train(
                self.network,
                epochs,
                recipe=recipe,
                lr=lr,
                teacher=teacher or (self.dense if self.number else None),
                penalty=penalty,
                at=tuple(at),
                groups=groups,
                after_step=after_step,
                after_epoch=after_epoch,
                memory=memory,
            )
        told = {note for step in self.history for note in step.notes}
        self.notes += [note for note in notes if note not in told]
        self.spent.append(spent)

    def _make_ready(self, epochs: int) -> None:
        """Do what comes between a change and the training after it."""
        if not self._fresh:
            return
        self._fresh = False
        if self.options.move_padding and epochs:
            name = f"paddings {self._trainings}" if self._trainings else "paddings"
            pairs = self.once(name, lambda: self.setup.gauge.paddings(self.network))
            move_paddings_(self.network, pairs)
        self._trainings += 1
        self.setup.rewind.apply_(self.network)
        self.listener.stage(self.number, "evaluate")
        self.quality_before = self.quality()  # after the last change

    @property
    def latency_left(self) -> float:
        """The share of dense's latency that the network has; of its MACs where that is not sure."""
        return latency_share(self.history[-1], self.history[0])[1]

    @property
    def can_rehearse(self) -> bool:
        """Whether a trial can train for a few batches: not where the user's own `fit` trains."""
        return self.setup.fit is None and self.options.epochs > 0

    def trial(
        self,
        name: str,
        change: Callable[[Network], object] | None = None,
        *,
        epochs: int = 0,
        batches: int | None = None,
        **training: Any,
    ) -> Trial:
        """Return a trial: a copy of the network that is changed, trained and measured.

        Args:
            name: under which the run remembers what it found; another one for each trial.
            change: done to the copy, in place; None leaves it as it is.
            epochs: of training.
            batches: train on this many batches only, in place of whole epochs; all trials of a
                step train on the same ones.
            **training: as `train` takes them.
        """

        def make() -> Network:
            copy = self.network.copy()
            if change is not None:
                change(copy)
            how = {"teacher": self.dense, **training}
            if epochs or batches is not None:
                whole = 1 if batches is not None else epochs
                self.coach.train(copy, whole, trial=name, batches=batches, **how)
            return copy

        return Trial(self, name, make, epochs)

    def take(self, network: Network, epochs: int = 0, trial: str = "") -> None:
        """Go on with another network, which was trained for some epochs: `Trial.adopt`."""
        for operation in network.plan.operations[len(self.network.plan.operations) :]:
            self.mark(operation.kind, operation.names)
        self.network = network
        self.coach.adopt(epochs, trial)
        self.spent += [Spent()] * (epochs > 0)  # no meter saw that training
        self._fresh = epochs == 0

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Make scoring follow from the seed: a loader of the user's may draw its order."""
        self.listener.stage(self.number, "score")
        device = device_of(self.network)
        with preserved_rng(device):
            seed_everything(derive_seed(self.options.seed, "score", self.number), device)
            yield
