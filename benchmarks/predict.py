"""How well a move's predicted cost foretells what it costs after fine-tuning.

Moves of a network (linearize a site, collapse a stretch, drop a block), spread evenly over each
kind, are made one at a time on a dense network that was fine-tuned first; each is then fine-tuned
with distillation from it. Predicted are: the rise of the loss and the accuracy lost with the move
made and nothing trained, each kind's own cheap criterion, and the rise of the loss after a short
fine-tuning on a part of the images; all on training images. What they foretell is the rise of the
loss, and the points lost, on held-out images after the whole fine-tuning. Rank correlations
(Spearman) say how well.

    python benchmarks/predict.py --data folder:cifar10-jpeg --checkpoint resnet32.th \
        --json benchmarks/results/predict.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from shoal.data import load_data
from shoal.importance import score
from shoal.models import load_model
from shoal.modes import make_channels_last
from shoal.network import Network, capture
from shoal.search.moves import Move, find_moves
from shoal.surgery import drop_, linearize_
from shoal.surgery.collapse import collapse_
from shoal.training import evaluate, fit

LOSS = {"linearize": "line_loss", "collapse": "collapse_loss", "drop": "lesion"}
OWN = {"linearize": "entropy", "collapse": "fit_residual", "drop": "block_influence"}
PREDICTORS = ("loss", "accuracy", "own", "short")


def spread(moves: Sequence[Move], count: int) -> list[Move]:
    """Return `count` moves of each kind, evenly spread, in turn."""
    kinds = [[move for move in moves if move.kind == kind] for kind in LOSS]
    picked = [[k[i * len(k) // count] for i in range(min(count, len(k)))] for k in kinds]
    chosen = [move for group in zip_longest(*picked) for move in group if move is not None]
    return chosen


def make(move: Move, network: Network, calibration: Any, samples: int) -> None:
    """Make a move in place."""
    if move.kind == "linearize":
        linearize_(network, move.name, loader=calibration)
    elif move.kind == "collapse":
        collapse_(network, move.name, calibration, samples=samples)
    else:
        drop_(network, move.name)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation of two series."""
    ranks = [torch.tensor(x).argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def predicted(dense: Network, calibration: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return each kind's scores by predictor and name, those without any training."""
    found: dict[str, Any] = {}
    for kind, criterion in LOSS.items():
        for metric in ("loss", "accuracy"):
            given = {"metric": metric, "keep": None} if kind != "drop" else {"metric": metric}
            found[kind, metric] = score(
                dense, calibration, criterion, samples=options.samples, **given
            )
        found[kind, "own"] = score(dense, calibration, OWN[kind], samples=options.samples)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rank correlations as a Markdown table."""
    lines = [
        "| moves | number | " + " | ".join(PREDICTORS) + " |",
        "|---|--:|" + "--:|" * len(PREDICTORS),
    ]
    for kind in (*LOSS, "all"):
        of_kind = [row for row in rows if kind in (row["kind"], "all")]
        cells = [
            "–"
            if kind == "all" and name == "own"
            else f"{spearman([r[name] for r in of_kind], [r['loss_rise'] for r in of_kind]):.2f}"
            for name in PREDICTORS
        ]
        lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")
    lines += ["", "| move | " + " | ".join(PREDICTORS) + " | loss after | points lost |"]
    lines.append("|---|" + "--:|" * (len(PREDICTORS) + 2))
    for row in sorted(rows, key=lambda row: row["loss_rise"]):
        cells = [f"{row[name]:.3f}" for name in PREDICTORS]
        cells += [f"{row['loss_rise']:+.4f}", f"{row['points_lost']:+.2f}"]
        lines.append(f"| {row['kind']} {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="shoal:cifar_resnet32")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="as for `shoal compress`")
    parser.add_argument("--moves", type=int, default=7, help="of each kind")
    parser.add_argument("--samples", type=int, default=1000, help="to score on")
    parser.add_argument("--train-samples", type=int, default=10_000)
    parser.add_argument("--dense-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--short", type=int, default=2560, help="images of the short fine-tuning")
    parser.add_argument("--recipe", default="distill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there, and a table beside")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    given = {"seed": options.seed, "eval_batch_size": 250}
    data = load_data(options.data, train_samples=options.train_samples, **given)
    few = load_data(options.data, train_samples=options.short, **given).train
    calibration = data.train.plain().with_batch_size(250)
    model = load_model(options.model, options.checkpoint).eval()
    make_channels_last(model)
    dense = capture(model, torch.zeros(2, *data.train.sample_shape)).copy()
    fit(dense, data.train, epochs=options.dense_epochs, seed=options.seed)
    before, seen = evaluate(dense, data.test), evaluate(dense, few)
    scores = predicted(dense, calibration, options)
    rows = []
    for move in spread(find_moves(dense), options.moves):
        started = time.perf_counter()
        row = {"kind": move.kind, "name": move.name}
        row |= {name: scores[move.kind, name][move.name] for name in PREDICTORS[:-1]}
        after = []
        # Random changes of the images go on where the dense network's training ended.
        given = {"recipe": options.recipe, "teacher": dense, "first_epoch": options.dense_epochs}
        for images, epochs in ((few, 1), (data.train, options.epochs)):
            network = dense.copy()
            make(move, network, calibration, options.samples)
            fit(network, images, epochs=epochs, seed=options.seed, **given)
            after.append(network)
        row["short"] = evaluate(after[0], few).loss - seen.loss
        found = evaluate(after[1], data.test)
        row |= {"loss_rise": found.loss - before.loss, "points_lost": before.top1 - found.top1}
        rows.append(row)
        print({**row, "seconds": round(time.perf_counter() - started, 1)}, flush=True)
    command = shlex.join(["python", "benchmarks/predict.py", *(arguments or sys.argv[1:])])
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    text = f"{machine}\n\n`{command}`\n\n{table(rows)}"
    print(text)
    if options.json:
        figures = {"device": machine, "command": command, "top1_dense": before.top1, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
        options.json.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
