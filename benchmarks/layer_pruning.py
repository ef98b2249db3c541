"""Drop the blocks of a CIFAR ResNet one at a time by several criteria, at equal cost.

A dense network is fine-tuned first, once per seed; every criterion then starts from it. At each
step the criterion scores the blocks on training images, the lowest goes, and the network is
fine-tuned with distillation from dense. Validation decides; the test images are only reported.

Everything finished is kept in the folder `--work`, so the same command goes on after a stop, and
the tables are written anew after each finished criterion.

    python benchmarks/layer_pruning.py --data folder:cifar10-jpeg --checkpoint resnet32.th \
        --work runs/layer_pruning --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

import shoal
from shoal.atomic import write_file
from shoal.data import load_data
from shoal.exporting import export
from shoal.measure import latency_ratio, measure_latency
from shoal.measure.runtime import onnx_latency
from shoal.methods import Listener, Result, Step
from shoal.models import load_model
from shoal.training import Recipe, fit

CRITERIA = ("random", "l1", "block_influence", "cka", "lesion")

# Accuracy against dense, in points, at a share of MACs removed, in percent.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "shoal:cifar_resnet32": [
        {"system": "CKA (Pons et al. 2024)", "macs_percent": 54.6, "change": 0.05},
        {"system": "SNIP at init, 1 block (Jordao 2023)", "macs_percent": 6.8, "change": 0.08},
        {"system": "SNIP at init, 3 blocks", "macs_percent": 20.5, "change": -0.50},
        {"system": "GraSP at init, 1 block", "macs_percent": 6.8, "change": 0.40},
        {"system": "GraSP at init, 3 blocks", "macs_percent": 20.5, "change": 0.34},
        {"system": "GraSP at init, 5 blocks", "macs_percent": 34.1, "change": 0.12},
    ],
    "shoal:cifar_resnet56": [
        {"system": "CKA (Pons et al. 2024)", "macs_percent": 37.5, "change": 1.25},
        {"system": "CKA", "macs_percent": 56.3, "change": 0.95},
        {"system": "CKA", "macs_percent": 60.0, "change": 0.78},
        {"system": "CKA", "macs_percent": 75.0, "change": 0.08},
        {"system": "CKA", "macs_percent": 78.8, "change": -0.66},
    ],
}


class Progress(Listener):
    """Prints a line per step."""

    def __init__(self, title: str) -> None:
        self.title = title

    def step(self, step: Step, resumed: bool) -> None:
        """Print a finished step."""
        m = step.metrics
        test = "" if m.top1_test is None else f", test {m.top1_test:.2f}"
        again = ", kept from before" if resumed else f", {step.seconds:.0f} s"
        print(
            f"{self.title}  {step.step:2}  {','.join(step.names) or 'dense':12}"
            f"  val {m.top1_val:.2f}{test}  {m.latency_ms:.2f} ms{again}",
            flush=True,
        )

    def note(self, text: str) -> None:
        """Print what the user should know."""
        print(f"{self.title}  {text}", flush=True)


# ---------------------------------------------------------------------- runs


def data_of(options: argparse.Namespace, seed: int) -> Any:
    return load_data(
        options.data,
        train_samples=options.train_samples,
        val_samples=options.val_samples,
        batch_size=options.batch_size,
        eval_batch_size=250,
        mean=options.mean,
        std=options.std,
        augment="flip_crop",
        seed=seed,
        device=options.device,
    )


def recipe_of(options: argparse.Namespace, distill: float) -> Recipe:
    return Recipe(lr=options.lr, schedule="cosine", precision=options.precision, distill=distill)


def dense_of(options: argparse.Namespace, data: Any, seed: int) -> nn.Module:
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


def prune(options: argparse.Namespace, criterion: str, seed: int) -> dict[str, Any]:
    """Run, or go on with, one criterion and seed; returns its figures."""
    data = data_of(options, seed)
    name = "".join(c if c.isalnum() else "-" for c in criterion)
    folder = options.work / f"{name}-{seed}"
    result = shoal.compress(
        dense_of(options, data, seed),
        data.train,
        data.val,
        test=data.test,
        method="layer_pruning",
        criterion=criterion,
        max_drop=100.0,  # to the last step: the table shows where each drop was passed
        epochs=options.epochs,
        remove=options.steps,
        samples=options.score_samples,
        recipe=recipe_of(options, options.distill),
        seed=seed,
        out=folder,
        base=options.model,
        device=options.device,
        listener=Progress(f"{criterion} {seed}"),
    )
    rows = rows_of(result)
    latency = speedups(folder, rows, options.latency_batches)
    return {"rows": rows, "stopped": result.stopped, "latency": latency}


def rows_of(result: Result) -> list[dict[str, Any]]:
    dense = result.dense
    return [
        {
            "blocks": step.step,
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
        for step in result.steps
    ]


def speedups(
    folder: Path, rows: Sequence[Mapping[str, Any]], batches: Sequence[int]
) -> dict[str, Any]:
    """Measure the last network within 1.0 point against dense, in eager and in ONNX Runtime.

    Returns the ratios dense / smaller, medians and quartiles of pairs of rounds; kept in the
    run's folder.
    """
    path, blocks = folder / "latency.json", passed(rows, 1.0)
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept.get("blocks") == blocks and kept.get("batches") == list(batches):
            return kept
    found: dict[str, Any] = {"blocks": blocks, "batches": list(batches)}
    models = {
        "dense": shoal.load(folder / "steps" / "000"),
        "smaller": shoal.load(folder / "steps" / f"{blocks:03d}"),
    }
    files: dict[str, Path] = {}
    try:  # exported once for all batch sizes
        for name, model in models.items() if blocks and batches else ():
            files[name] = folder / f"{name}.onnx"
            export(model, files[name], model.example_inputs(2)[0])
    except shoal.ShoalError as error:
        files = {}
        print(f"no ONNX Runtime: {error}", flush=True)
    for batch in batches if blocks else ():
        args, _ = models["dense"].example_inputs(batch)
        times = {"eager": measure_latency(models, args)}
        if files:
            times["ONNX Runtime"] = onnx_latency(files, args)
        for runtime, latency in times.items():
            found[f"{runtime}, batch {batch}"] = {
                "ratio": latency_ratio(latency["dense"], latency["smaller"]).to_dict(),
                **{name: value.to_dict() for name, value in latency.items()},
            }
    write_file(path, json.dumps(found, indent=2) + "\n")
    return found


# ---------------------------------------------------------------------- tables


def passed(rows: Sequence[Mapping[str, Any]], points: float) -> int:
    """Return how many blocks went before the validation drop first exceeded so many points."""
    count = 0
    for row in rows[1:]:
        if row["drop_val"] > points + 1e-9:
            break
        count = row["blocks"]
    return count


def spread(values: Sequence[float]) -> str:
    text = f"{fmean(values):+.2f}"
    return f"{text} ± {stdev(values):.2f}" if len(values) > 1 else text


def table(found: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> str:
    """Return the tables as markdown."""
    lines = [
        f"# Dropping blocks of {options.model}, one at a time",
        "",
        f"{options.train_samples or 'all'} training images, dense fine-tuned for "
        f"{options.dense_epochs} epochs, then {options.epochs} epoch(s) per step with distillation "
        f"weight {options.distill:g}; SGD {options.lr:g}, cosine, {options.precision}. Scores from "
        f"{options.score_samples or 'all'} training images.",
        "",
        "Change of accuracy against dense in points: mean over seeds ± standard deviation "
        "(validation; test in parentheses).",
        "",
    ]
    steps = range(1, options.steps + 1)
    heads = ["criterion", "seeds", *(f"{n}" for n in steps), "blocks within 1.0 point"]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for criterion, seeds in found.items():
        cells = [criterion, str(len(seeds))]
        for n in steps:
            rows = [r["rows"][n] for r in seeds.values() if len(r["rows"]) > n]
            cell = spread([-row["drop_val"] for row in rows]) if rows else "–"
            tests = [-row["drop_test"] for row in rows if row["drop_test"] is not None]
            cells.append(cell + (f" ({fmean(tests):+.2f})" if tests else ""))
        counts = [passed(r["rows"], 1.0) for r in seeds.values()]
        cells.append(f"{fmean(counts):.1f} ({min(counts)} to {max(counts)})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        *_costs(found),
        "",
        *_speedups(found, options.latency_batches),
        "",
        *_published(options.model),
    ]
    return "\n".join(lines) + "\n"


def _costs(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "MACs removed and speed-up (batch 1, eager, against dense in the same rounds):",
        "",
        "| blocks | MACs removed, % | speed-up |",
        "|---|---|---|",
    ]
    every = [r["rows"] for seeds in found.values() for r in seeds.values()]
    for n in range(1, max(map(len, every), default=1)):
        rows = [rows[n] for rows in every if len(rows) > n]
        macs, speed = (sorted(row[key] for row in rows) for key in ("macs_percent", "speedup"))
        lines.append(
            f"| {n} | {macs[0]:.1f} to {macs[-1]:.1f} | {speed[0]:.2f} to {speed[-1]:.2f} |"
        )
    return lines


def _speedups(found: Mapping[str, Mapping[str, Any]], batches: Sequence[int]) -> list[str]:
    lines = [
        "Speed-up of the last network within 1.0 point (dense latency / its latency, median of "
        "pairs; range over seeds):",
        "",
    ]
    heads = [f"{runtime}, batch {n}" for runtime in ("eager", "ONNX Runtime") for n in batches]
    lines += ["| criterion | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for criterion, seeds in found.items():
        cells = [criterion]
        for head in heads:
            ratios = [r["latency"][head]["ratio"]["median"] for r in seeds.values()
                      if head in r["latency"]]  # fmt: skip
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _published(model: str) -> list[str]:
    rows = PUBLISHED.get(model.partition("?")[0], [])
    if not rows:
        return []
    lines = [
        "Published, on lossless CIFAR-10 and with hundreds of epochs (another task: only the order "
        "of magnitude compares):",
        "",
        "| system | MACs removed, % | change, points |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {r['system']} | {r['macs_percent']:.1f} | {r['change']:+.2f} |" for r in rows
    ]


def write_results(
    found: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, command: str
) -> None:
    record = {
        "command": command,
        "device": f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "criteria": found,
        "published": PUBLISHED.get(options.model.partition("?")[0], []),
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
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6, help="blocks to drop")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning after each drop")
    parser.add_argument("--dense-epochs", type=int, default=3)
    parser.add_argument("--train-samples", type=int, default=10_000)
    parser.add_argument("--val-samples", type=int, default=5_000)
    parser.add_argument("--score-samples", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--distill", type=float, default=0.7)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--latency-batches", nargs="*", type=int, default=[1, 64])
    parser.add_argument("--mean", nargs="+", type=float, default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", nargs="+", type=float, default=[0.229, 0.224, 0.225])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("runs/layer_pruning"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="layer_pruning", help="of the files in --results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    given = list(arguments) if arguments is not None else sys.argv[1:]
    command = shlex.join(["python", "benchmarks/layer_pruning.py", *given])
    found: dict[str, dict[str, Any]] = {}
    # Seed by seed, so that a partial table compares all criteria.
    for seed in options.seeds:
        for criterion in options.criteria:
            found.setdefault(criterion, {})[str(seed)] = prune(options, criterion, seed)
            write_results(found, options, command)
    print(table(found, options))


if __name__ == "__main__":
    main()
