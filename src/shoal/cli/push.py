"""`shoal push`: a result on the Hugging Face hub, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.display import print_lines


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The --out folder of a finished run, or one that shoal.save wrote."
        ),
    ],
    to: Annotated[
        str, typer.Argument(metavar="hf:ORG/NAME", help="The repository, which is made if needed.")
    ],
    license: Annotated[
        str | None,
        option(
            "Of the network, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, …. Without it "
            "the card says that none was given.",
            metavar="NAME",
        ),
    ] = None,
    private: Annotated[
        bool, option("A repository that is made is for you alone.", "--private")
    ] = False,
    as_json: params.Json = False,
) -> None:
    """Push a result, merged, to the Hugging Face hub, with a card that explains it.

    shoal.load("hf:ORG/NAME") gives it back. Log in by `hf auth login` first; needs the extra 'hub'.

    Example: shoal push run hf:me/resnet18-photos --license mit
    """
    from shoal.share import push as send

    done = send(run, to, license=license, private=private)
    print_lines(progress_console(), *(f"note: {note}" for note in done.notes))
    lines = [
        f"pushed to {done.url}: {', '.join(done.files)}",
        f'in Python: net = shoal.load("{to}")',
    ]
    if license is None:
        lines.append("the card names no license: give --license to say what others may do")
    show(done.to_dict(), lines=lines, as_json=as_json)
