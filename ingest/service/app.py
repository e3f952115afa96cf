"""The Celery application: by which broker workers are told that there is work.

A message holds a job's id and nothing else. The job store is the truth; that a message is lost,
doubled or late costs time and nothing more.
"""

import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from celery import Celery, signals
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError as BrokerError
from kombu.utils.url import maybe_sanitize_url

from catalog.database import Database
from catalog.errors import StorageError, UsageError
from catalog.jobs import Job, JobStore
from catalog.settings import load_settings

TASK = "heads.run_job"
GPU, CPU = "gpu", "cpu"
LONGEST_JOB = 7 * 24 * 3600
"""Seconds after which a broker may hand out a message again that nobody has acknowledged.

Redis starts a job again and again whose message is due before it ends.
"""
_POLLING = 0.1
"""Seconds between looks into the folder of messages; a worker takes one message a look."""
_ANSWER = 5.0
"""Seconds for a broker to answer those who only send."""
_EXCHANGE = Exchange("heads", type="direct")
_RABBITMQ = ("amqp", "pyamqp")
_KEEPALIVE = {
    getattr(socket, name): seconds
    for name, seconds in {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""A network that was cut shows within half a minute."""

_log = logging.getLogger(__name__)


def _leave_logging_alone(**_: object) -> None:
    """Celery sets up logging, unless somebody says that they do."""


signals.setup_logging.connect(_leave_logging_alone)


def celery_app(database: Database, queues: Sequence[str] = (GPU, CPU)) -> Celery:
    """The application of a catalog.

    Args:
        database: The catalog; beside a DuckDB file lies the folder that is its broker, unless
            the settings name another.
        queues: Those that a worker takes jobs from.

    Raises:
        UsageError: If the catalog is on a server and the settings name no broker.
    """
    app = Celery("heads", set_as_current=False)
    app.conf.update(
        _broker(database),
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=CPU,
        task_create_missing_queues=True,
        task_queues=[_queue(name) for name in queues],
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1,
        # What a child that has died may still have said comes at once; its job's lease runs.
        worker_lost_wait=2.0,
        # A child that has just been forked may wait long for its turn on a busy machine.
        worker_proc_alive_timeout=120,
        # Who can write to the broker shall not stop or question workers.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    return app


def broker_name(app: Celery) -> str:
    """What messages call the broker: never with its password."""
    if folder := app.conf.broker_transport_options.get("data_folder_in"):
        return str(folder)
    return str(maybe_sanitize_url(app.conf.broker_url))


def nudge(app: Celery, store: JobStore, jobs: Iterable[Job]) -> bool:
    """Tell workers of jobs; what cannot be sent now is sent later by who looks after the jobs.

    Returns:
        Whether the broker took all messages.
    """
    sent, is_up = [], True
    try:
        with _connected(app) as connection:
            for job in jobs:
                app.send_task(
                    TASK, (job.id,), queue=_queue(job.queue), connection=connection, retry=False
                )
                sent.append(job.id)
    except BrokerError as error:
        _log.warning("the broker %s cannot be reached: %s", broker_name(app), error)
        is_up = False
    if sent:
        try:
            store.nudged(sent)
        except StorageError as error:
            _log.warning("%s", error)
    return is_up


def reach(app: Celery, patience: float) -> bool:
    """Whether the broker answers; asked once, and for `patience` seconds."""
    options = app.conf.broker_transport_options | {"socket_connect_timeout": patience}
    connection = app.connection_for_write(connect_timeout=patience, transport_options=options)
    try:
        with connection:
            connection.connect()
    except (OSError, *connection.connection_errors, *connection.channel_errors):
        return False
    return True


def waiting(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each of these queues.

    Raises:
        BrokerError: If the broker cannot be reached.
    """
    found = {}
    with _connected(app) as connection:
        for name in queues:
            channel = connection.channel()
            try:
                declared = _queue(name)(channel).queue_declare(passive=True)
                found[name] = int(declared.message_count)
            except connection.channel_errors:
                found[name] = 0  # nobody has sent there yet
            finally:
                channel.close()
    return found


@contextlib.contextmanager
def _connected(app: Celery) -> Iterator[Any]:
    """A connection for one piece of work; whatever goes wrong with it is a `BrokerError`."""
    connection = app.connection_for_write()
    errors = (OSError, *connection.connection_errors, *connection.channel_errors)
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_ANSWER)
            yield connection
    except errors as error:
        raise BrokerError(type(error).__name__) from error


def _broker(database: Database) -> dict[str, Any]:
    url = load_settings().broker_url
    if url is None:
        if database.path is None:
            raise UsageError(
                f"{database.name} is on a server, and jobs on it need a broker that all its "
                "machines reach: set HEADS_BROKER_URL, for example redis://HOST:6379/0"
            )
        path = database.path.resolve()
        folder = path.with_name(f"{path.name}.queue")
        messages = folder / "messages"
        messages.mkdir(parents=True, exist_ok=True)
        return {
            "broker_url": "filesystem://localhost//",
            "broker_transport": "ingest.service.folder:Transport",
            "broker_transport_options": {
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "processed_folder": str(folder / "taken"),
                "control_folder": str(folder / "control"),
                "polling_interval": _POLLING,
            },
        }
    if url.startswith(_RABBITMQ):
        return {"broker_url": url, "broker_transport_options": {"confirm_publish": True}}
    return {
        "broker_url": url,
        "broker_transport_options": {
            "visibility_timeout": LONGEST_JOB,
            "socket_connect_timeout": _ANSWER,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
            "health_check_interval": 25,
        },
    }


def _queue(name: str) -> Queue:
    """A queue; RabbitMQ's are replicated, and wait for jobs longer than its half an hour."""
    arguments: dict[str, Any] = {}
    if (load_settings().broker_url or "").startswith(_RABBITMQ):
        arguments = {"x-queue-type": "quorum", "x-consumer-timeout": LONGEST_JOB * 1000}
    return Queue(name, _EXCHANGE, routing_key=name, queue_arguments=arguments)
