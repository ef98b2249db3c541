"""What collapsing residual blocks costs without training, and after one epoch, by criterion.

Blocks are chosen one after the other by a criterion's lowest score on calibration images, which are
training images; the images for testing are looked at only to report. At every step the layers of
all chosen blocks are fitted anew to the dense network. With `--epochs` the network with `--keep`
blocks collapsed, and the dense one beside it, are fine-tuned alike. With `--distill` the dense one,
after its own fine-tuning, is the collapsed one's teacher, as in a run of `shoal compress`.

    python benchmarks/collapse.py --data folder:CIFAR10 --checkpoint resnet32.th --epochs 1 \
        --distill 0.7 --json benchmarks/results/collapse.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.data import load_data
from shoal.importance import score
from shoal.models import load_model
from shoal.modes import make_channels_last
from shoal.network import Network, capture
from shoal.surgery.collapse import collapse_
from shoal.training import Recipe, evaluate, fit


def choose_greedily(
    dense: Network, criterion: str, train: Any, test: Any, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return for each step what was collapsed, its score, the accuracy and the seconds so far."""
    steps: list[dict[str, Any]] = []
    network, names, seconds = dense.copy(), [], 0.0
    left = [stretch.name for stretch in dense.stretches]
    top1 = evaluate(dense, test).top1
    for number in range(1, options.blocks + 1):
        started = time.perf_counter()
        scores = score(network, train, criterion, samples=options.samples, names=left)
        names = [*names, scores.lowest()[0]]
        left.remove(names[-1])
        network = dense.copy()
        collapse_(network, names, train, samples=options.samples)
        seconds += time.perf_counter() - started
        found = evaluate(network, test)
        step = {
            "criterion": criterion,
            "collapsed": number,
            "name": names[-1],
            "score": scores[names[-1]],
            "top1_test": found.top1,
            "drop": top1 - found.top1,
            "loss_test": found.loss,
            "seconds": seconds,
        }
        steps.append(step)
        print(
            f"{criterion:16}{number:>4}  {names[-1]:14}{step['score']:>10.4f}"
            f"{found.top1:>10.2f}{step['drop']:>8.2f}{seconds:>10.1f}",
            flush=True,
        )
    return steps


def fine_tune(
    dense: Network,
    names: Sequence[str],
    train: Any,
    test: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the accuracies of the dense and the collapsed network, both fine-tuned alike."""
    found: dict[str, Any] = {"epochs": options.epochs, "collapsed": list(names)}
    collapsed = dense.copy()
    collapse_(collapsed, names, train, samples=options.samples)
    given = {"epochs": options.epochs, "seed": options.seed}
    recipe = {"lr": options.lr}
    tuned = dense.copy()
    for title, network in (("dense", tuned), ("collapsed", collapsed)):
        if title == "collapsed" and options.distill:
            recipe["distill"] = options.distill
            report = fit(network, train, recipe=recipe, teacher=tuned, **given)
        else:
            report = fit(network, train, recipe=recipe, **given)
        found[f"top1_{title}"] = evaluate(network, test).top1
        found[f"seconds_{title}"] = report.seconds
    found["drop"] = found["top1_dense"] - found["top1_collapsed"]
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="shoal:cifar_resnet32")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="as for `shoal compress`")
    parser.add_argument("--criteria", nargs="+", default=["fit_residual", "collapse_loss"])
    parser.add_argument("--blocks", type=int, default=4, help="how many to collapse")
    parser.add_argument("--samples", type=int, default=1000, help="calibration images")
    parser.add_argument("--train-samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=0, help="fine-tune afterwards")
    parser.add_argument("--keep", type=int, default=3, help="blocks collapsed when fine-tuning")
    parser.add_argument("--lr", type=float, default=Recipe().lr, help="of the fine-tuning")
    parser.add_argument("--distill", type=float, default=0.0, help="weight of the distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    data = load_data(
        options.data, train_samples=options.train_samples, seed=options.seed, eval_batch_size=250
    )
    model = load_model(options.model, options.checkpoint).eval()
    make_channels_last(model)
    side = data.train.sample_shape
    dense = capture(model, torch.zeros(2, *side)).copy()
    calibration = data.train.plain().with_batch_size(250)
    before = evaluate(dense, data.test)
    command = shlex.join(["python", "benchmarks/collapse.py", *(arguments or sys.argv[1:])])
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(f"{options.model}, {options.samples} calibration images, {machine}\n{command}\n")
    print(f"{'criterion':16}{'n':>4}  {'collapsed':14}{'score':>10}{'top-1 %':>10}{'drop':>8}"
          f"{'seconds':>10}")  # fmt: skip
    print(f"{'dense':16}{0:>4}  {'':14}{'':>10}{before.top1:>10.2f}", flush=True)
    steps, tuned = [], []
    for criterion in options.criteria:
        steps += choose_greedily(dense, criterion, calibration, data.test, options)
    for criterion in options.criteria if options.epochs else ():
        names = [s["name"] for s in steps if s["criterion"] == criterion][: options.keep]
        found = {"criterion": criterion, **fine_tune(dense, names, data.train, data.test, options)}
        tuned.append(found)
        print(
            f"{criterion}: {len(names)} collapsed, {options.epochs} epoch(s) on "
            f"{data.train.num_samples} images: {found['top1_collapsed']:.2f} %, dense alike "
            f"{found['top1_dense']:.2f} %, drop {found['drop']:.2f}",
            flush=True,
        )
    if options.json:
        figures = {
            "device": machine,
            "command": command,
            "model": options.model,
            "samples": options.samples,
            "top1_dense": before.top1,
            "steps": steps,
            "fine_tuned": tuned,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
