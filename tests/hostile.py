"""A catalog and a job store whose every text was written by somebody who means no good."""

from pathlib import Path
from typing import Any

import catalogs
from published import (
    begin,
    composition,
    compositions,
    model,
    publish,
    publish_results,
    salient,
    salients,
)
from test_stored_patterns import prompt, softmaxed, store

import catalog
from catalog import Catalog, publishing
from catalog.declarations import MetricSpec, ProbeSpec
from catalog.jobs import JobSpec, Schedules, Worker, open_store
from catalog.jobs.schedules import Kind, ScheduleSpec

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; `code` **bold** _it_ ~~s~~ "
    "$\\frac{1}{2}$ :red[red] :blue-background[b] :material/home: :smile: :streamlit: "
    "[link](http://evil.test/) ![i](http://evil.test/i.png) http://evil.test/auto "
    "-> -- \u202egnp.exe\u202c \u2066iso\u2069 # ?a=b&c=d%20 ;DROP"
)
LONG = "long " + "0123456789" * 1_000
"""Without a place to break a line."""
PRINTABLE = "".join(one for one in EVIL if one.isprintable()) + " \u05e9\u05dc\u05d5\u05dd"
"""Of models and labels; no others are taken. Its last word runs from right to left."""
MODEL, LONG_MODEL = f"model {PRINTABLE}", f"model {LONG}"
TWIN = f"twin {PRINTABLE}"


def metric(name: str, suite: str) -> MetricSpec:
    return MetricSpec(
        family=name,
        parameter=f"parameter {EVIL}",
        version=1,
        suite=suite,
        unit=f"unit {EVIL}",
        lower=0.0,
        upper=1.0,
        description=f"description {EVIL}",
        source=f"source {EVIL}",
    )


def probe(name: str) -> ProbeSpec:
    return ProbeSpec(name=name, kind="text", content_hash=name, description=f"description {EVIL}")


def make(folder: Path, url: str | None = None) -> Catalog:
    """Fill a catalog in a folder, or at a URL, with jobs, workers and schedules."""
    made = catalog.connect(url or f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    labels = [
        (name, layer, head, f"taxonomy {PRINTABLE}", f"label {text}")
        for name in (MODEL, TWIN, LONG_MODEL)
        for layer, head, text in ((0, 0, PRINTABLE), (1, 1, LONG), (2, 2, f"other {PRINTABLE}"))
    ]
    facts: dict[str, Any] = {"architecture": f"architecture {EVIL}", "source": f"source {EVIL}"}
    for name in (MODEL, TWIN, LONG_MODEL):
        share = 1 / len(name)
        values = [[(4 * layer + head) * share for head in range(4)] for layer in range(3)]
        of = model(name, f"revision {EVIL}", **facts)
        for metric_name, text in ((f"metric {EVIL}", EVIL), (f"metric {LONG}", LONG)):
            one, on = metric(metric_name, suite="patterns"), probe(f"probe {text}")
            run = begin(made, f"{name} {text}", of=of, metrics=[one], probes=[on])
            publish(made, run, values, metrics=[one], probes=[on])
        for suite, results in (
            ("salient", salients(salient(token=f" {EVIL}\0", output=LONG))),
            ("weights", compositions(composition())),
        ):
            run = begin(made, f"{name} {suite}", of=of, metrics=[metric(suite, suite)])
            publish_results(made, run, results)
        failed = begin(made, f"{name} failed", of=of, metrics=[metric("f", "dynamic")])
        publishing.fail(made.database, failed, f"ValueError: {EVIL} {LONG}")
        store(made, prompt({(0, 0): softmaxed(0)}, name=f"prompt {EVIL}"), of=of)
    catalogs.add_labels(made, folder, labels)
    add_jobs(made)
    return made


def add_jobs(made: Catalog) -> None:
    jobs = open_store(made.database)
    for number, text in enumerate((EVIL, LONG)):
        jobs.worker_beat(
            Worker(name=f"worker {text}", host=text, pid=number, queues=[text], device=text)
        )
        spec = JobSpec(
            model=f"model {text}",
            suite="weights",
            request={"model": text},
            queue=text,
            key=str(number),
            submitted_by=text,
        )
        job = jobs.submit(spec).job
        held = jobs.claim(job.id, worker=f"worker {text}", device=text, lease_seconds=3600)
        if held is not None and number == 0:
            jobs.fail(job.id, str(held.lease_token), f"Traceback\nValueError: {text}")
        schedule = ScheduleSpec(
            name=f"schedule {text}",
            kind=Kind.HUB,
            target={"author": text, "search": text},
            cron="0 3 * * *",
            request={},
        )
        Schedules(jobs).add(schedule, jobs.now())
