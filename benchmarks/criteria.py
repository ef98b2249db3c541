"""Remove blocks or rectifiers of a network one at a time by several criteria, at equal cost.

A dense network is fine-tuned first, once per seed; every criterion then starts from it. At each
step the criterion scores blocks or sites on training images, the lowest goes, and the network is
fine-tuned, with distillation from dense if asked. Validation decides; test is only reported.

Everything finished is kept in the folder `--work`, so the same command goes on after a stop, and
more `--seeds` or `--criteria` add to what is there; the tables are written anew after each
finished criterion.

The criterion "nothing" removes nothing and fine-tunes dense alike, step by step: what is gained or
lost by the training alone.

The weights of a published checkpoint have seen all training images: validation on a part of them
lies above test, and falls by what was learnt by heart. `--split-test` gives honest figures.

    python benchmarks/criteria.py --data folder:cifar10-jpeg --checkpoint resnet32.th \
        --split-test --name layer_pruning --threads 2
    python benchmarks/criteria.py --method easier --model shoal:cifar_resnet20 --criteria entropy \
        line_loss --data folder:cifar10-jpeg --checkpoint resnet20.th --remove 8 --distill 0 \
        --name line_loss --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shoal
import shoal.methods
from criteria_tables import NOTHING, passed, published, table
from shoal.data import DataSet, ImageLoader, load_data
from shoal.data.split import stratified_split
from shoal.files import write_file
from shoal.measure import latency_ratio, measure_latency
from shoal.models import load_model
from shoal.runtimes import export
from shoal.runtimes.onnx_runner import OnnxRunner
from shoal.search import method as api
from shoal.search.lab import Lab
from shoal.search.method import Method, methods, register_method
from shoal.search.records import Result, Step
from shoal.search.setup import Listener
from shoal.training import Recipe, fit

# What a run does not depend on.
_WITHOUT_EFFECT = ("criteria", "seeds", "work", "results", "name")

CRITERIA = ("random", "l1", "block_influence", "cka", "lesion")


class Progress(Listener):
    """Prints a line per step, and keeps how long its parts took."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.seconds: dict[str, float] = {}  # of the steps after dense, by stage
        self.steps = 0
        self._own: dict[str, float] = {}
        self._stage, self._begun = "", 0.0

    def stage(self, step: int, text: str) -> None:
        """Add up the time of the stage that ends."""
        self._end_stage()
        self._stage = text

    def _end_stage(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._own[self._stage] = self._own.get(self._stage, 0.0) + now - self._begun
        self._begun = now

    def step(self, step: Step, resumed: bool) -> None:
        """Print a finished step, with its latency as it was measured."""
        m = step.metrics
        test = "" if m.top1_test is None else f", test {m.top1_test:.2f}"
        line = (
            f"{self.title}  {step.step:2}  {','.join(step.names) or 'dense':12}"
            f"  val {m.top1_val:.2f}{test}  {m.latency_ms:.2f} ms"
        )
        if step.step:
            low, high = step.latency_ratio_low, step.latency_ratio_high
            line += f" ({step.latency_ratio:.2f} × faster, {low:.2f} to {high:.2f})"
        print(line + (", kept from before" if resumed else self._parts(step)), flush=True)
        self._own, self._stage = {}, ""

    def _parts(self, step: Step) -> str:
        self._end_stage()
        if step.step:
            self.steps += 1
            for name, seconds in self._own.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._own.items())
        return f"; {step.seconds:.1f} s ({parts})"

    def note(self, text: str) -> None:
        """Print what the user should know."""
        print(f"{self.title}  {text}", flush=True)


@register_method(NOTHING)
class Nothing(Method):
    """Removes nothing at each step: what the fine-tuning alone does to dense."""

    Options = methods["layer_pruning"].Options

    def step(self, lab: Lab) -> bool:
        """Only train, as often as the others remove something."""
        if lab.number > -(-(lab.options.remove or 0) // self.options.per_step):
            return lab.done()
        lab.mark(NOTHING, ())
        lab.train()
        return True

    def progress(self, lab: Lab) -> api.Progress:
        """Return that nothing is removed."""
        return api.Progress(0, len(lab.base.blocks), "blocks")


# ---------------------------------------------------------------------- runs


def data_of(options: argparse.Namespace, seed: int) -> DataSet:
    data = load_data(
        options.data,
        train_samples=options.train_samples,
        val_samples=100 if options.split_test else options.val_samples,  # not used if split
        batch_size=options.batch_size,
        eval_batch_size=250,
        mean=options.mean,
        std=options.std,
        augment="flip_crop",
        seed=seed,
        device=options.device,
    )
    if not isinstance(data.test, ImageLoader):
        if options.split_test:
            raise SystemExit("--split-test needs data with test images")
        return data
    if options.split_test:
        val, test = stratified_split(
            data.test.labels.numpy(), 0.5, seed=seed, purpose="split test", classes=data.classes
        )
        data = replace(data, val=data.test.select(val), test=data.test.select(test))
    return data


def recipe_of(options: argparse.Namespace, distill: float) -> Recipe:
    return Recipe(lr=options.lr, schedule="cosine", precision=options.precision, distill=distill)


def dense_of(options: argparse.Namespace, data: DataSet, seed: int) -> nn.Module:
    """Return the fine-tuned dense network of a seed, trained once and then read."""
    model = load_model(options.model, options.checkpoint, num_classes=data.num_classes)
    path = options.work / f"dense-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    print(f"seed {seed}: training dense for {options.dense_epochs} epochs", flush=True)
    fit(
        model,
        data.train,
        epochs=options.dense_epochs,
        recipe=recipe_of(options, 0.0),
        seed=seed,
        checkpoint=options.work / f"dense-{seed}.part",
        device=options.device,
    )
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    write_file(path, lambda temporary: torch.save(state, temporary))
    return model


def prune(
    options: argparse.Namespace, criterion: str, seed: int, data: Callable[[], DataSet]
) -> dict[str, Any]:
    """Run, or go on with, one criterion and seed; returns its figures.

    A finished run's figures are read again where all options are the same.
    """
    name = "".join(c if c.isalnum() else "-" for c in criterion)
    folder = options.work / f"{name}-{seed}"
    finished = folder.with_suffix(".json")
    asked = {k: str(v) for k, v in vars(options).items() if k not in _WITHOUT_EFFECT}
    if finished.exists():
        kept: dict[str, Any] = json.loads(finished.read_text())
        if kept.pop("options") == asked:
            print(f"{criterion} {seed}  kept from before", flush=True)
            return kept
    progress = Progress(f"{criterion} {seed}")
    result = shoal.compress(
        dense_of(options, data(), seed),
        data().train,
        data().val,
        test=data().test,
        method=criterion if criterion == NOTHING else options.method,
        move_padding=False,  # networks differ by what was chosen, and by nothing else
        criterion=criterion,
        max_drop=100.0,  # to the last step: the table shows where each drop was passed
        epochs=options.epochs,
        remove=options.remove,
        per_step=options.per_step,
        samples=options.score_samples,
        recipe=recipe_of(options, options.distill),
        seed=seed,
        out=folder,
        base=options.model,
        device=options.device,
        listener=progress,
    )
    rows = rows_of(result, options)
    timed = {passed(rows, 1.0), *options.latency_steps} & {row["removed"] for row in rows}
    figures = {
        "rows": rows,
        "stopped": result.stopped,
        "latency": []
        if criterion == NOTHING
        else [speedups(folder, row, options) for row in rows if row["removed"] in timed],
        "seconds_by_stage": {"steps": progress.steps, **progress.seconds},
    }
    write_file(finished, json.dumps({"options": asked, **figures}, indent=2) + "\n")
    return figures


def rows_of(result: Result, options: argparse.Namespace) -> list[dict[str, Any]]:
    dense = result.dense
    gone = [min(step.step * options.per_step, options.remove) for step in result.steps]
    return [
        {
            "step": step.step,
            "removed": removed,
            "names": list(step.names),
            "top1_val": step.metrics.top1_val,
            "top1_test": step.metrics.top1_test,
            "drop_val": dense.top1_val - step.metrics.top1_val,
            "drop_test": None
            if step.metrics.top1_test is None or dense.top1_test is None
            else dense.top1_test - step.metrics.top1_test,
            "before_fine_tuning": step.top1_val_before,
            "macs_percent": 100.0 * (1 - step.metrics.macs / dense.macs),
            "speedup": step.latency_ratio,
            "seconds": step.seconds,
        }
        for step, removed in zip(result.steps, gone, strict=True)
    ]


def speedups(folder: Path, row: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the network of a row against dense, in eager and in ONNX Runtime.

    Returns the ratios dense / smaller, medians and quartiles of pairs of rounds, and the latencies.
    """
    removed, batches = row["removed"], options.latency_batches
    found: dict[str, Any] = {"removed": removed, "batches": list(batches)}
    models = {
        "dense": shoal.load(folder / "steps" / "000"),
        "smaller": shoal.load(folder / "steps" / f"{row['step']:03d}"),
    }
    for model in models.values():
        shoal.merge_(model, policy="fold")  # in both, so that folding counts as no gain
    files: dict[str, Path] = {}
    try:  # exported once for all batch sizes
        for name, model in models.items() if removed and batches else ():
            files[name] = folder / f"{name}.onnx"
            export(model, files[name], model.example_inputs(2)[0])
    except shoal.ShoalError as error:
        files = {}
        print(f"no ONNX Runtime: {error}", flush=True)
    for batch in batches if removed else ():
        args, _ = models["dense"].example_inputs(batch)
        seconds = {"min_seconds": options.latency_seconds}
        times = {"eager": measure_latency(models, args, **seconds)}
        if files:
            sessions = {name: OnnxRunner(file) for name, file in files.items()}
            times["ONNX Runtime"] = measure_latency(sessions, args, **seconds)
        for runtime, latency in times.items():
            found[f"{runtime}, batch {batch}"] = {
                "ratio": latency_ratio(latency["dense"], latency["smaller"]).to_dict(),
                **{name: value.to_dict() for name, value in latency.items()},
            }
    return found


def write_results(
    found: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, command: str
) -> None:
    record = {
        "command": command,
        "device": f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "criteria": found,
        "published": published(options),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / options.name
    write_file(stem.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    write_file(stem.with_suffix(".md"), table(found, options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="as in shoal compress: folder:ROOT, …")
    parser.add_argument("--model", default="shoal:cifar_resnet32")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--method",
        default="layer_pruning",
        choices=["layer_pruning", "easier"],
        help="drop blocks, or linearize sites",
    )
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--remove", type=int, default=6, help="how many go")
    parser.add_argument("--per-step", type=int, default=1, help="how many go before each training")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning after each drop")
    parser.add_argument("--dense-epochs", type=int, default=3)
    parser.add_argument("--train-samples", type=int, default=10_000)
    parser.add_argument("--val-samples", type=int, default=5_000)
    parser.add_argument(
        "--split-test",
        action="store_true",
        help="validate on half of the test images and report on the other half: for weights that "
        "have seen the training images, of which validation is a part otherwise",
    )
    parser.add_argument("--score-samples", type=int, default=1_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--distill", type=float, default=0.7)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--latency-batches", nargs="*", type=int, default=[1, 64])
    parser.add_argument(
        "--latency-steps",
        nargs="*",
        type=int,
        default=[],
        help="measure the networks with so many gone too, besides the last within 1.0 point",
    )
    parser.add_argument("--latency-seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--mean", nargs="+", type=float, default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", nargs="+", type=float, default=[0.229, 0.224, 0.225])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=None, help="runs/NAME")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="criteria", help="of the files in --results")
    options = parser.parse_args(arguments)
    options.work = options.work or Path("runs") / options.name
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    given = list(arguments) if arguments is not None else sys.argv[1:]
    command = shlex.join(["python", "benchmarks/criteria.py", *given])
    found: dict[str, dict[str, Any]] = {}
    # Seed by seed, so that a partial table compares all criteria.
    for seed in options.seeds:
        data = cache(partial(data_of, options, seed))  # read when the first run needs it
        for criterion in options.criteria:
            found.setdefault(criterion, {})[str(seed)] = prune(options, criterion, seed, data)
            write_results(found, options, command)
    print(table(found, options))


if __name__ == "__main__":
    main()
