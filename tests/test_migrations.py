"""One history, on both databases, with data kept."""

import subprocess
import sys
import textwrap
from pathlib import Path

import published
import pytest
from alembic import command
from sqlalchemy import inspect, text

import catalog
from catalog import Catalog, schema
from catalog.database import Database
from catalog.errors import SchemaError


@pytest.fixture
def database(empty_url: str) -> Database:
    return Database(empty_url, lock_timeout=10)


def test_upgrade_downgrade_upgrade(database: Database) -> None:
    head = schema.head()
    assert schema.upgrade(database) == (None, head)
    assert schema.check(database) == head
    assert schema.upgrade(database) == (head, head)
    assert schema.downgrade(database, "base") == (head, None)
    assert schema.upgrade(database) == (None, head)
    assert schema.check(database) == head


def test_going_back_to_the_tables_and_forth_keeps_the_data(empty_url: str) -> None:
    one = catalog.connect(empty_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    before = one.sql("SELECT * FROM scores ORDER BY layer, head").rows()
    schema.downgrade(one.database, "0001")
    with pytest.raises(SchemaError, match="older than this release's"):
        catalog.connect(empty_url)
    schema.upgrade(one.database)
    assert one.sql("SELECT * FROM scores ORDER BY layer, head").rows() == before
    assert len(before) == 12


def test_a_catalog_of_the_release_before_keeps_everything(database: Database) -> None:
    schema.upgrade(database)
    one = Catalog(database)
    for name in ("m", "n"):
        spec = published.model(name, source=name)
        published.publish(one, published.begin(one, name, of=spec), published.uniform(0.5))
    published.publish(one, published.begin(one, "again", of=spec), published.uniform(None))
    counted = one.sql("SELECT * FROM coverage ORDER BY model").rows()
    assert [(row["model"], row["heads"], row["defined"]) for row in counted] == [
        ("m", 12, 12),
        ("n", 12, 0),
    ]
    schema.downgrade(database, "0002")

    def seen(*views: str) -> list[list[str]]:
        return [sorted(map(str, one.sql(f"SELECT * FROM {view}"))) for view in views]

    views = ("models", "heads", "metrics", "scores", "score_runs", "runs", "probes")
    before = seen(*views)
    schema.upgrade(database)
    assert schema.check(database) == schema.head()
    same = [view for view in views if view != "metrics"]
    assert seen(*same) == [rows for view, rows in zip(views, before, strict=True) if view in same]
    assert [row["is_vector"] for row in one.sql("SELECT * FROM metrics")] == [False]
    assert seen("vectors", "compositions", "salient_operations") == [[], [], []]
    assert one.sql("SELECT * FROM coverage ORDER BY model").rows() == counted
    words = published.begin(one, "c", probes=[published.probe("vocabulary")])
    published.publish_results(one, words, published.salients(published.salient()))
    assert len(one.sql("SELECT * FROM salient_operations")) == 1
    schema.downgrade(database, "0002")
    assert seen("metrics", "scores") == [before[2], before[3]]
    schema.upgrade(database)
    assert schema.check(database) == schema.head()
    assert seen("scores", "salient_operations") == [before[3], []]


def test_processes_that_upgrade_one_server_at_once_do_it_once(new_postgresql_url: str) -> None:
    heads = str(Path(sys.executable).with_name("heads"))
    command = [heads, "--db", new_postgresql_url, "db", "upgrade"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4)
    ]
    told = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4, told
    # One found the database empty, and the others what that one had made.
    assert sum("(was empty)" in text for text in told) == 1
    database = Database(new_postgresql_url, lock_timeout=10)
    assert schema.check(database) == schema.head()
    with database.reading() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
        assert list(found) == [schema.head()]


def test_tables_with_data_can_be_altered(empty_url: str, tmp_path: Path) -> None:
    """What a later revision will do, on a history that goes one step further than ours."""
    one = catalog.connect(empty_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    (tmp_path / "later.py").write_text(
        textwrap.dedent(
            '''
            """Alter the table of models"""
            import sqlalchemy as sa
            from alembic import op

            revision, down_revision, branch_labels, depends_on = "later", "HEAD", None, None

            def upgrade():
                with op.batch_alter_table("model") as batch:
                    batch.add_column(sa.Column("licence", sa.String(), nullable=True))
                    batch.alter_column("n_params", type_=sa.Double(), existing_type=sa.BigInteger())
                with op.batch_alter_table("model") as batch:
                    batch.add_column(
                        sa.Column("stars", sa.Integer(), nullable=False, server_default="3")
                    )

            def downgrade():
                with op.batch_alter_table("model") as batch:
                    batch.drop_column("stars")
                    batch.drop_column("licence")
                    batch.alter_column("n_params", type_=sa.BigInteger(), existing_type=sa.Double())
            '''
        ).replace("HEAD", schema.head())
    )
    with one.database.writing() as connection:
        for go in (command.upgrade, command.downgrade, command.upgrade):
            config = schema._config(connection)
            ours = f"{config.get_main_option('script_location')}/versions"
            config.set_main_option("version_locations", f"{ours}:{tmp_path}")
            # PostgreSQL does not alter a column that a view shows: views go first, as in 0002.
            if go is command.upgrade:
                _drop_views(connection)
            go(config, "later" if go is command.upgrade else schema.head())
            connection.commit()
            row = connection.execute(text("SELECT * FROM model")).mappings().one()
            connection.commit()
            assert row["name"] == "m"
            assert row.get("stars") == (3 if go is command.upgrade else None)
            assert ("licence" in row) == (go is command.upgrade)


def _drop_views(connection) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    for name in inspect(connection).get_view_names():
        connection.execute(text(f"DROP VIEW {name}"))
    connection.commit()


def test_a_database_of_a_newer_release_is_refused(empty_url: str) -> None:
    one = catalog.connect(empty_url, create=True)
    with one.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()
    with pytest.raises(SchemaError, match="9999, which this release does not know"):
        catalog.connect(empty_url)
    with pytest.raises(SchemaError, match="pip install --upgrade"):
        schema.upgrade(one.database)


def test_a_table_that_is_not_as_declared_is_found(database: Database) -> None:
    schema.upgrade(database)
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE taxonomy ADD COLUMN extra INTEGER"))
        connection.commit()
    with pytest.raises(SchemaError, match=r"taxonomy\.extra"):
        schema.check(database)


def test_an_empty_database_is_named_as_such(database: Database) -> None:
    with pytest.raises(SchemaError, match="heads db upgrade"):
        catalog.connect(database.url.render_as_string(hide_password=False))
