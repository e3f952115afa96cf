"""Brokers, databases and networks go away, and the catalog ends as after one clean run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import faults
import psycopg
import pytest
import servers
from faults import LEASE, Clean, Inputs, Serve, outcomes, publishing_held, queue, require_clean
from workers import Service

import catalog

inputs, clean = faults.inputs, faults.clean
postgres, valkey, serve, on_servers = (
    faults.postgres,
    faults.valkey,
    faults.serve,
    faults.on_servers,
)


# Brokers and databases that go away


@pytest.mark.parametrize("loses", [False, True], ids=["keeps its messages", "loses its messages"])
def test_a_broker_restarted_with_a_job_under_way_and_one_queued(
    on_servers: Service, valkey: servers.Valkey, inputs: Inputs, clean: Clean, loses: bool
) -> None:
    requests = [inputs.patterns(), inputs.weights()]
    on_servers.scheduler()
    on_servers.worker()
    first = queue(on_servers, requests[0])
    on_servers.measuring(first)
    second = queue(on_servers, requests[1])
    valkey.kill()
    if loses:
        valkey.lose_all()
    time.sleep(1)
    valkey.start()
    done = on_servers.finish([first, second])
    assert [(job.state, job.attempt) for job in done] == [("succeeded", 1)] * 2
    require_clean(on_servers, clean(requests))


def test_a_job_submitted_while_the_broker_is_down(
    on_servers: Service, valkey: servers.Valkey, inputs: Inputs, clean: Clean
) -> None:
    request = inputs.weights()
    valkey.kill()
    job_id = queue(on_servers, request)
    on_servers.scheduler()
    on_servers.worker()
    valkey.start()
    (done,) = on_servers.finish([job_id])
    assert done.state == "succeeded"
    require_clean(on_servers, clean([request]))


def test_a_database_killed_in_mid_job_and_while_a_worker_publishes(
    on_servers: Service, postgres: servers.PostgreSQL, inputs: Inputs, clean: Clean
) -> None:
    request = inputs.patterns()
    on_servers.scheduler()
    on_servers.worker()
    job = on_servers.measuring(queue(on_servers, request))
    postgres.kill()
    postgres.start()
    try:
        with publishing_held(on_servers, "COPY") as is_held:
            on_servers.until(is_held, 120)
            postgres.kill()
    except psycopg.OperationalError:
        postgres.start()
    (done,) = on_servers.finish([job.id])
    assert (done.state, done.attempt) == ("succeeded", 1)
    require_clean(on_servers, clean([request]))
    assert outcomes(on_servers) == ["succeeded"]


# Networks


@dataclass(frozen=True)
class Cabled:
    """A service whose workers reach database and broker by cables that can be pulled."""

    service: Service
    cables: Sequence[servers.Proxy]
    direct: Mapping[str, str]
    """Environment of those who reach both by themselves."""


@pytest.fixture
def cabled(serve: Serve, postgres: servers.PostgreSQL, valkey: servers.Valkey) -> Iterator[Cabled]:
    url = servers.over_tcp(postgres.new_database(), postgres.port)
    with (
        servers.proxy(postgres.port) as to_database,
        servers.proxy(valkey.port) as to_broker,
        serve(
            url,
            valkey.url,
            workers_url=servers.over_tcp(url, to_database.port),
            workers_broker=f"redis://{servers.HOST}:{to_broker.port}/0",
        ) as one,
    ):
        direct = {"HEADS_DATABASE_URL": url, "HEADS_BROKER_URL": valkey.url}
        yield Cabled(one, (to_database, to_broker), direct)


def test_a_network_that_is_away_for_less_than_the_lease(
    cabled: Cabled, inputs: Inputs, clean: Clean
) -> None:
    request = inputs.patterns()
    cabled.service.scheduler()
    cabled.service.worker()
    job = cabled.service.measuring(queue(cabled.service, request))
    for pull in (servers.Proxy.stall, servers.Proxy.cut):
        for cable in cabled.cables:
            pull(cable)
        time.sleep(LEASE / 3)
        for cable in cabled.cables:
            cable.heal()
        time.sleep(LEASE / 3)
    (done,) = cabled.service.finish([job.id])
    assert (done.state, done.attempt) == ("succeeded", 1)
    require_clean(cabled.service, clean([request]))


def test_a_network_that_is_away_for_longer_than_the_lease(
    cabled: Cabled, inputs: Inputs, clean: Clean
) -> None:
    """Who was cut off publishes nothing, and takes the next job."""
    requests = [inputs.patterns(), inputs.weights()]
    service = cabled.service
    service.scheduler(**cabled.direct)
    service.worker("far")
    job = service.measuring(queue(service, requests[0]))
    near = service.worker("near", **cabled.direct)
    for cable in cabled.cables:
        cable.stall()
    again = service.when(job.id, lambda job: job.attempt == 2)
    assert again.worker == "near"
    for cable in cabled.cables:
        cable.heal()
    (done,) = service.finish([job.id])
    assert (done.state, done.attempt, done.worker) == ("succeeded", 2, "near")
    near.stop()
    (done,) = service.finish([queue(service, requests[1])])
    assert (done.state, done.attempt, done.worker) == ("succeeded", 1, "far")
    require_clean(service, clean(requests))
    assert outcomes(service) == ["failed", "succeeded", "succeeded"]


def test_a_writer_that_is_lost_lets_the_others_go_on(postgres: servers.PostgreSQL) -> None:
    """The server itself ends the transaction of one that is frozen, or whose machine is gone."""
    url = servers.over_tcp(postgres.new_database(), postgres.port)
    with catalog.connect(url, create=True).database.writing() as connection:
        told = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("idle_in_transaction_session_timeout", "tcp_keepalives_idle")
        }
    assert told == {"idle_in_transaction_session_timeout": "1min", "tcp_keepalives_idle": "15"}
