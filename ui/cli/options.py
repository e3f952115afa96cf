"""Options of commands that measure, or leave it to others."""

from pathlib import Path
from typing import Annotated

import typer

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Name = Annotated[str | None, typer.Option(help="What the catalog shall call it.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Relations = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Your relation set: a folder of *.json.")
]
Probe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your sequences or texts: JSONL, or .txt in paragraphs."),
]
TokenClasses = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=REGEX", help="Tokens whose whole text matches; may be repeated."),
]
Only = Annotated[
    bool, typer.Option("--only", help="Your relations or probe alone, not the shipped ones.")
]
Force = Annotated[bool, typer.Option("--force", help="Measure again what is there.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Unpickle weights; can run any code in them.")
]
QueueName = Annotated[
    str | None, typer.Option(help="With --queue: gpu, cpu or another; by default by size.")
]
