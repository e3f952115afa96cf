"""SQL reads, and nothing else."""

from pathlib import Path

import duckdb
import polars as pl
import published
import pyarrow as pa
import pytest

from catalog import Catalog
from catalog.errors import QueryError

WRITING = [
    "DELETE FROM score",
    "INSERT INTO taxonomy SELECT * FROM taxonomy",
    "UPDATE model SET name = 'x'",
    "DROP VIEW models",
    "CREATE TABLE t (x INTEGER)",
    "COPY score TO '/tmp/heads-must-not-exist.csv'",
    "ATTACH '/tmp/heads-must-not-exist.duckdb'",
    "SET threads = 1",
    "SELECT 1; DELETE FROM score",
    "/* SELECT */ DELETE FROM score",
    "",
    "-- nothing",
]


@pytest.fixture
def filled(empty_catalog: Catalog) -> Catalog:
    published.publish(empty_catalog, published.begin(empty_catalog), published.uniform(0.25))
    return empty_catalog


@pytest.mark.parametrize("query", WRITING)
def test_what_does_not_read_is_refused(filled: Catalog, query: str) -> None:
    with pytest.raises(QueryError):
        filled.sql(query)
    assert len(filled.sql("SELECT * FROM scores")) == 12


def test_a_writing_query_in_reading_clothes_is_refused(new_postgresql_url: str) -> None:
    import catalog

    one = catalog.connect(new_postgresql_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    with pytest.raises(QueryError, match="read-only"):
        one.sql("WITH gone AS (DELETE FROM taxonomy RETURNING *) SELECT * FROM gone")
    with pytest.raises(QueryError, match="read-only"):
        one.sql("SELECT nextval('model_id_seq')")


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM read_csv('{file}')", "SELECT * FROM '{file}'", "SELECT * FROM glob('/*')"],
)
def test_other_files_are_out_of_reach(duckdb_url: str, tmp_path: Path, query: str) -> None:
    import catalog

    one = catalog.connect(duckdb_url, create=True)
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with pytest.raises(QueryError):
        one.sql(query.format(file=file))


def test_results_come_as_arrow_polars_pandas_and_rows(filled: Catalog) -> None:
    result = filled.sql(
        "SELECT layer, head, value, run_id FROM scores WHERE layer = :layer ORDER BY head", layer=1
    )
    assert result.columns == ["layer", "head", "value", "run_id"]
    assert isinstance(result.arrow(), pa.Table)
    assert result.arrow().schema.field("value").type == pa.float64()
    assert isinstance(result.polars(), pl.DataFrame)
    assert list(result.pandas()["head"]) == [0, 1, 2, 3]
    assert result.rows()[0] == {"layer": 1, "head": 0, "value": 0.25, "run_id": 1}
    assert len(result) == 4


def test_percent_signs_mean_what_they_mean_in_sql(filled: Catalog) -> None:
    assert len(filled.sql("SELECT * FROM scores WHERE metric LIKE 'ind%'")) == 12
    assert len(filled.sql("SELECT * FROM scores WHERE layer % 2 = :odd", odd=1)) == 4


@pytest.mark.parametrize(
    "query",
    [
        "PIVOT scores ON layer USING avg(value) GROUP BY head",
        "SELECT * FROM (PIVOT scores ON layer USING avg(value) GROUP BY head)",
        "WITH p AS (PIVOT scores ON layer USING avg(value) GROUP BY head) SELECT * FROM p",
    ],
)
def test_a_pivot_is_one_statement(duckdb_url: str, query: str) -> None:
    import catalog

    one = catalog.connect(duckdb_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    assert one.sql(f"{query} ORDER BY head").columns == ["head", "0", "1", "2"]
    for several in (
        f"{query}; {query}",
        f"{query}; DELETE FROM score",
        f"DELETE FROM score; {query}",
    ):
        with pytest.raises(QueryError, match="expected one statement"):
            one.sql(several)
    with pytest.raises(QueryError, match="expected a query that reads"):
        one.sql(f"INSERT INTO taxonomy {query}")


def test_what_one_statement_is_does_not_depend_on_the_users_own_duckdb(filled: Catalog) -> None:
    duckdb.begin()
    try:
        with pytest.raises(QueryError, match="expected a query that reads"):
            filled.sql(
                "INSERT INTO taxonomy SELECT * FROM (PIVOT scores ON layer USING avg(value))"
            )
    finally:
        duckdb.rollback()


def test_columns_of_one_name_are_told_apart(filled: Catalog) -> None:
    result = filled.sql("SELECT 1 AS value, 2 AS value, 3 AS value")
    assert result.rows() == [{"value": 1, "value_1": 2, "value_2": 3}]
    assert len(result.polars().columns) == 3


def test_sums_of_integers_are_integers(filled: Catalog) -> None:
    assert filled.sql("SELECT sum(layer) AS n FROM scores").rows() == [{"n": 12}]


CONTRACT = {
    "models": "model revision architecture n_layers n_heads n_kv_heads d_model d_head vocab_size "
    "n_params base_model dtype quantization source added_at",
    "heads": "model layer head kv_head depth name",
    "metrics": "metric version suite unit lower upper description source",
    "scores": "model layer head metric probe value run_id",
    "labels": "model layer head taxonomy label source confidence run_id",
    "runs": "run_id model suite probe status params started_at finished_at seconds peak_memory "
    "device dtype versions error",
    "stored_patterns": "model layer head prompt n_tokens dtype bytes max_error run_id added_at",
    "prompt_tokens": "prompt position token_id token prompt_id",
}


@pytest.mark.parametrize("view", CONTRACT)
def test_the_views_have_the_columns_that_users_rely_on(filled: Catalog, view: str) -> None:
    columns = CONTRACT[view].split()
    assert filled.sql(f"SELECT * FROM {view}").columns[: len(columns)] == columns


def test_head_facts(filled: Catalog) -> None:
    rows = filled.sql("SELECT * FROM heads ORDER BY layer, head").rows()
    assert rows[0] == {
        "model": "m",
        "layer": 0,
        "head": 0,
        "kv_head": 0,
        "depth": 0.0,
        "name": "L0H0",
    }
    assert (rows[-1]["name"], rows[-1]["kv_head"], rows[-1]["depth"]) == ("L2H3", 1, 1.0)
    assert rows[5]["depth"] == 0.5


def test_both_databases_answer_with_the_same_types(
    new_postgresql_url: str, duckdb_url: str
) -> None:
    import catalog

    schemas = []
    for url in (new_postgresql_url, duckdb_url):
        one = catalog.connect(url, create=True)
        published.publish(one, published.begin(one), published.uniform(0.25))
        schemas.append(
            {
                f"{view}.{field.name}": str(field.type)
                for view in CONTRACT
                for field in one.sql(f"SELECT * FROM {view}").arrow().schema
            }
        )
    postgresql, duckdb = schemas
    differing = {
        name: (kind, duckdb[name])
        for name, kind in postgresql.items()
        if kind != duckdb[name] and "timestamp" not in kind
    }
    assert differing == {}
