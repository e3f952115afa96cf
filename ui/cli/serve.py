"""The service: `worker`, `scheduler`, `up`."""

import contextlib
import os
import platform
import signal
import threading
from typing import Annotated

import typer

from catalog.errors import UsageError
from catalog.settings import load_settings
from ingest.service import logs
from ingest.service.logs import LogFormat
from ui.cli.common import Db, messages, open_catalog, require

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
GraceOption = Annotated[
    float,
    typer.Option(min=0, help="Seconds that a job has to end when the worker is told to stop."),
]
LogOption = Annotated[LogFormat, typer.Option(help="text or json, on stderr.")]


def worker(
    context: typer.Context,
    queues: Annotated[
        str | None,
        typer.Option(help="Parted by commas; by default gpu,cpu on a GPU and cpu elsewhere."),
    ] = None,
    device: DeviceOption = "auto",
    name: Annotated[
        str | None, typer.Option(help="What jobs and logs call it; by default host and process.")
    ] = None,
    soft_limit: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds after which a job is stopped at its next step."),
    ] = None,
    hard_limit: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which a job's process is ended.")
    ] = None,
    stop_grace: GraceOption = 30.0,
    log_format: LogOption = LogFormat.TEXT,
    db: Db = None,
) -> None:
    """Take jobs from queues and run them, one at a time, until told to stop.

    SIGTERM or Ctrl-C: the job under way has --stop-grace seconds to end, and is queued again after
    that; a second one queues it again at once.

    Example: heads worker --queues gpu,cpu --device cuda:0

    Example: heads worker --log-format json --hard-limit 86400
    """
    service = require("ingest.service.worker", "service")
    memory = require("ingest.service.memory", "service")
    logs.set_up(log_format)
    catalog = open_catalog(context, db, create=True)
    chosen, size = memory.device_memory(device)
    default = "cpu" if chosen == "cpu" else "gpu,cpu"
    names = tuple(filter(None, (one.strip() for one in (queues or default).split(","))))
    if not names:
        raise UsageError("--queues names no queue; give some, such as gpu,cpu")
    here = service.Here(
        database=catalog.database,
        name=name or f"{platform.node()}-{os.getpid()}",
        device=chosen,
        memory=size,
        queues=names,
        lease=load_settings().lease,
        grace=stop_grace,
        soft_limit=soft_limit,
        hard_limit=hard_limit,
    )
    raise typer.Exit(service.work(here))


def scheduler(
    context: typer.Context,
    metrics_port: Annotated[
        int | None, typer.Option(help="Answer Prometheus there; by default nowhere.")
    ] = None,
    metrics_address: Annotated[
        str, typer.Option(help="Interface of that port; others than loopback show it to others.")
    ] = "127.0.0.1",
    log_format: LogOption = LogFormat.TEXT,
    db: Db = None,
) -> None:
    """Keep jobs going: heal what dead workers and lost messages left, and start what is due.

    Several may run; one leads, and another takes over when it ends.

    Example: heads scheduler --log-format json --metrics-port 9464
    """
    service = require("ingest.service.scheduler", "service")
    logs.set_up(log_format)
    catalog = open_catalog(context, db, create=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        if metrics_port is not None:
            metrics = require("ingest.service.metrics", "service")
            stack.enter_context(
                metrics.served(catalog.database, port=metrics_port, address=metrics_address)
            )
        service.schedule(catalog, stop)


def up(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Of the page.")] = 8501,
    device: DeviceOption = "auto",
    stop_grace: GraceOption = 30.0,
    db: Db = None,
) -> None:
    """Run a worker, the scheduler and the page together, over a folder as the broker.

    Ctrl-C ends all three, and so does the end of one of them.

    Example: heads up

    Example: heads up --port 8600 --device cpu
    """
    for module in ("ingest.service.worker", "ui.launch"):
        require(module, "service")
    together = require("ui.together", "service")
    database = open_catalog(context, db, create=True).database
    raise typer.Exit(
        together.run(
            database,
            port=port,
            grace=stop_grace,
            worker=[f"--device={device}"],
            tell=messages.print,
        )
    )


def add_to(app: typer.Typer) -> None:
    app.command()(worker)
    app.command()(scheduler)
    app.command()(up)
