"""The command line: data on stdout, everything else on stderr, stable exit codes."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import catalogs
import commands
import polars as pl
import psutil
import published
import pytest
import tiny
from alembic.script import ScriptDirectory

import catalog
from catalog import Catalog, schema

Heads = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """Runs the command in an empty folder, whose `heads.duckdb` is then the default catalog."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"COLUMNS": "200"} | environment
        return commands.run(arguments, cwd=tmp_path, env=env)

    return run


@pytest.fixture
def filled(tmp_path: Path) -> Catalog:
    one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    values: published.Values = [[0.1, 0.2, 0.3, None], [0.9, 0.4, 0.5, 0.6], [0.0, 0.0, 0.0, 0.0]]
    published.publish(one, published.begin(one), values)
    return one


def test_sql_that_others_wrote(heads: Heads, filled: Catalog) -> None:
    assert filled
    done = heads("sql", "--safe", "SELECT layer, head FROM scores", "-f", "csv", HEADS_SQL_ROWS="5")
    assert len(done.stdout.splitlines()) == 6
    assert "first 5 rows" in done.stderr
    refused = heads("sql", "--safe", "SELECT * FROM score")
    assert (refused.returncode, refused.stdout) == (7, "")
    assert "none of the catalog's views" in refused.stderr
    assert heads("sql", "SELECT * FROM score").returncode == 0


def test_sql_in_every_format(heads: Heads, filled: Catalog, tmp_path: Path) -> None:
    assert filled
    query = "SELECT layer, head, value FROM scores WHERE value > 0.45 ORDER BY value DESC"
    table = heads("sql", query)
    assert table.stdout.splitlines()[:2] == ["layer  head  value", "    1     0    0.9"]
    rows = json.loads(heads("sql", query, "--format", "json").stdout)
    assert rows[0] == {"layer": 1, "head": 0, "value": 0.9}
    assert len(rows) == 3
    read = list(csv.DictReader(io.StringIO(heads("sql", query, "-f", "csv").stdout)))
    assert read[2] == {"layer": "1", "head": "2", "value": "0.5"}
    assert heads("sql", query, "-o", "out.parquet").returncode == 0
    assert pl.read_parquet(tmp_path / "out.parquet")["value"].to_list() == [0.9, 0.6, 0.5]
    interval = heads("sql", "SELECT INTERVAL 1 DAY AS i", "-f", "csv")
    assert (interval.returncode, "cannot be written as csv" in interval.stderr) == (2, True)
    unknown = heads("sql", query, "-o", "out.xyz")
    assert unknown.returncode == 2
    assert "names no format" in unknown.stderr


def test_sql_reads_only(heads: Heads, filled: Catalog) -> None:
    done = heads("sql", "DELETE FROM score")
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr.startswith("error: expected a query that reads (SELECT), got DELETE")
    assert "Traceback" not in done.stderr
    assert len(filled.sql("SELECT * FROM scores")) == 12


def test_top_and_show(heads: Heads, filled: Catalog) -> None:
    assert filled
    rows = json.loads(heads("top", "induction", "-n", "2", "--format", "json").stdout)
    assert [(row["name"], row["value"]) for row in rows] == [("L1H0", 0.9), ("L1H3", 0.6)]
    lowest = json.loads(heads("top", "induction", "--lowest", "-n", "1", "-f", "json").stdout)
    assert lowest[0]["name"] == "L2H0"
    near = heads("top", "inductoin")
    assert (near.returncode, "did you mean induction?" in near.stderr) == (2, True)
    of_head = json.loads(heads("show", "m", "l1h0", "-f", "json").stdout)
    assert of_head[0]["value"] == 0.9
    assert "3 layers of 4 heads" in heads("show", "m", "L3H0").stderr
    assert "write it like L5H3" in heads("show", "m", "5.3").stderr
    assert "run 1" in heads("show", "m").stdout
    assert json.loads(heads("show", "m", "L0H3", "-f", "json").stdout) == [
        {"name": "L0H3", "what": "induction", "on": "plain", "value": None, "label": None}
    ]
    unknown = heads("show", "mm")
    assert (unknown.returncode, "no model 'mm'" in unknown.stderr) == (2, True)


def test_a_query_without_end_stops_at_a_signal(filled: Catalog) -> None:
    assert filled
    endless = (
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT count(*) FROM t"
    )
    program = Path(sys.executable).with_name("heads")
    url = f"duckdb:///{filled.database.path}"
    for end in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([program, "--db", url, "sql", endless])
        try:
            opened = psutil.Process(process.pid).open_files
            while str(filled.database.path) not in {file.path for file in opened()}:
                assert process.poll() is None
                time.sleep(0.1)
            time.sleep(1)
            process.send_signal(end)
            assert process.wait(timeout=60) == -end
        finally:
            process.kill()


def test_models_metrics_and_layouts(heads: Heads) -> None:
    assert heads("models").returncode == 5
    added = heads("models", "add", "gpt2-xl", "--layers", "48", "--heads", "25")
    assert added.returncode == 0, added.stderr
    rows = json.loads(heads("models", "--format", "json").stdout)
    assert (rows[0]["model"], rows[0]["n_layers"], rows[0]["n_heads"]) == ("gpt2-xl", 48, 25)
    again = heads("models", "add", "gpt2-xl", "--layers", "48", "--heads", "25")
    assert (again.returncode, "already" in again.stderr) == (2, True)
    for name, layers in (("x", "0"), ("x", "9999999999"), ("", "2"), ("a\x1b[31m", "2")):
        assert heads("models", "add", name, "--layers", layers, "--heads", "2").returncode == 2
    assert heads("metrics", "--format", "json").stdout == "[]\n"


def test_labels_are_imported_as_a_whole(heads: Heads, tmp_path: Path) -> None:
    heads("models", "add", "gpt2-xl", "--layers", "48", "--heads", "25")
    file = tmp_path / "labels.csv"
    header = "model,layer,head,taxonomy,label,confidence\n"
    good = "gpt2-xl,0,24,verdict,plausible,0.9\ngpt2-xl,47,0,verdict,unclear,\n"
    bad = {
        "gpt2-xl,48,0,verdict,unclear,": "line 4: gpt2-xl has 48 layers of 25 heads",
        "gpt2,0,0,verdict,unclear,": "no model 'gpt2'; ingest it, or make its layout known",
        "gpt2-xl,x,0,verdict,unclear,": "line 4: expected a number",
        "gpt2-xl,1,0,,unclear,": "line 4: taxonomy is empty or",
        "gpt2-xl,1,0,verdict,a\x01b,": "line 4: label is empty or has characters that cannot",
        'gpt2-xl,1,0,verdict,"unclear,0.5': "line 4: unexpected end of data",
        "gpt2-xl,1,0,verdict,unclear,7": "line 4: confidence 7 is not between 0 and 1",
    }
    for line, reason in bad.items():
        file.write_text(header + good + line + "\n")
        done = heads("labels", "import", "labels.csv")
        assert done.returncode == 4
        assert reason in done.stderr
        assert heads("sql", "SELECT * FROM labels", "-f", "json").stdout == "[]\n"
    file.write_text(header + good)
    assert "2 labels added, 0 known" in heads("labels", "import", "labels.csv").stderr
    assert "0 labels added, 2 known" in heads("labels", "import", "labels.csv").stderr
    rows = json.loads(heads("sql", "SELECT * FROM labels ORDER BY layer", "-f", "json").stdout)
    assert (rows[0]["head"], rows[0]["label"], rows[0]["source"], rows[0]["confidence"]) == (
        24,
        "plausible",
        "human",
        0.9,
    )
    assert "lacks the column model" in heads("labels", "import", str(_csv(tmp_path, "a,b"))).stderr


def _csv(folder: Path, text: str) -> Path:
    path = folder / "other.csv"
    path.write_text(text)
    return path


def test_ingest_classify_and_draw(heads: Heads, tmp_path: Path) -> None:
    tiny.save(tmp_path / "tiny", "llama")
    tiny.relations(tmp_path / "words")
    # Known by its layout first, as for labels from a paper.
    heads("models", "add", "tiny", "--layers", "3", "--heads", "6")
    first = heads("ingest", "tiny", "--relations", "words", "--only", "--suite", "relations")
    assert first.returncode == 0, first.stderr
    assert "skipped relation few" in first.stderr
    assert "tiny: relations published as run 1" in first.stderr
    assert first.stdout == ""
    again = heads("ingest", "tiny", "--relations", "words", "--only", "--suite", "relations")
    assert (again.returncode, "nothing done" in again.stderr) == (0, True)

    assert heads("classify", "--taxonomy", "function", "--threshold", "0").returncode == 0
    count = "SELECT count(*) AS n, min(label) AS label FROM labels WHERE taxonomy = 'function'"
    rows = json.loads(heads("sql", count, "-f", "json").stdout)
    assert rows == [{"n": 18, "label": "Algorithmic"}]
    heads("classify", "tiny", "--set", "relation_score=2")
    assert json.loads(heads("sql", count, "-f", "json").stdout)[0]["n"] == 0
    assert heads("classify", "--set", "nonsense=1").returncode == 2
    assert heads("classify", "--threshold", "nan").returncode == 2
    assert heads("classify", "--taxonomy", "nonsense").returncode == 2

    for kind, file in (("map", "map.png"), ("bars", "bars.svg"), ("map", "map.html")):
        drawn = heads("chart", kind, "tiny", "-o", file)
        assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert heads("chart", "map", "tiny", "-o", "map.xyz").returncode == 2
    unruled = heads("chart", "map", "tiny", "--set", "induction=1", "-o", "map.png")
    assert (unruled.returncode, "rules about relation_score" in unruled.stderr) == (2, True)
    assert heads("chart", "map", "none", "-o", "map.png").returncode == 2


def test_a_chart_takes_the_taxonomy_that_there_is(heads: Heads, tmp_path: Path) -> None:
    heads("models", "add", "gpt2-xl", "--layers", "48", "--heads", "25")
    rows = "".join(f"gpt2-xl,{layer},0,verdict,plausible\n" for layer in range(4))
    (tmp_path / "l.csv").write_text(
        f"model,layer,head,taxonomy,label\n{rows}gpt2-xl,5,1,verdict,no\n"
    )
    heads("labels", "import", "l.csv")
    assert heads("chart", "bars", "gpt2-xl", "-o", "bars.svg").returncode == 0
    svg = (tmp_path / "bars.svg").read_text()
    assert "80.0%" in svg
    assert "20.0%" in svg
    assert "[0, 12)" in svg
    unknown = heads("chart", "map", "gpt2-xl", "--taxonomy", "verdcit", "-o", "map.svg")
    assert (unknown.returncode, "it has verdict" in unknown.stderr) == (2, True)


def test_token_bars_of_two_models(heads: Heads, tmp_path: Path) -> None:
    one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    masses = {name: [[0.25, 0.5]] * 28 for name in ("hash", "star", "whitespace", "mine")}
    for model in ("base", "tuned"):
        catalogs.add_token_masses(one, model, masses)
    done = heads("chart", "tokens", "base", "tuned", "--layers", "0,16,20,27", "-o", "t.svg")
    assert done.returncode == 0, done.stderr
    svg = (tmp_path / "t.svg").read_text()
    assert all(f"Layer {layer}" in svg for layer in (0, 16, 20, 27))
    assert "Total attention (sum)" in svg
    chosen = ("--classes", "hash, mine", "--unit", "mean")
    assert heads("chart", "tokens", "base", *chosen, "-o", "t.svg").returncode == 0
    svg = (tmp_path / "t.svg").read_text()
    assert "Mean attention (share)" in svg
    assert "Layer 18" in svg
    for options, reason in (
        (("--layers", "0,x"), "expected numbers, as in 0,16,20,27"),
        (("--layers", "0,28"), "nothing is measured of layer 28"),
        (("--classes", ""), "the classes hash, mine, star, whitespace"),
    ):
        done = heads("chart", "tokens", "base", *options, "-o", "t.svg")
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr


def test_classes_of_tokens_are_declared_and_refused(heads: Heads, tmp_path: Path) -> None:
    tiny.save(tmp_path / "tiny", "llama")
    (tmp_path / "story.txt").write_text("w3 w4 w5\n\nw6 w7")
    asked = ("ingest", "tiny", "--suite", "patterns", "--only", "--probe", "story.txt")
    done = heads(*asked, "--token-class", "odd=w[357]", "--token-class", "even=w[46]")
    assert done.returncode == 0, done.stderr
    done = heads(*asked, "--token-class", "odd=(")
    assert done.returncode == 4
    assert "token class odd: '(' is no regular expression" in done.stderr
    (tmp_path / "empty.jsonl").write_text('{"text": ""}')
    done = heads(*asked[:-1], "empty.jsonl")
    assert done.returncode == 4
    assert "line 1: has 0 tokens; a pattern needs at least 2" in done.stderr


def test_the_database_commands(heads: Heads, tmp_path: Path) -> None:
    url = f"duckdb:///{tmp_path / 'other.duckdb'}"
    assert heads("--db", url, "db", "check").returncode == 5
    assert "is at schema" in heads("db", "upgrade", "--db", url).stderr
    assert "as declared" in heads("db", "check", HEADS_DATABASE_URL=url).stderr
    assert heads("db", "downgrade", "nonsense", "--db", url).returncode == 5
    stepped = heads("db", "downgrade", "-1", "--db", url)
    history = ScriptDirectory.from_config(schema._config())
    before = history.get_revision(schema.head()).down_revision
    assert (stepped.returncode, f"is at schema {before}" in stepped.stderr) == (0, True)
    assert heads("db", "downgrade", "base", "--db", url).returncode == 0
    assert heads("models", "--db", url).returncode == 5


def test_the_release_is_told(heads: Heads) -> None:
    done = heads("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{version('head-catalog')}\n", "")


def test_errors_have_no_traceback_and_a_stable_code(heads: Heads, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        ("ingest", "empty"): 3,
        ("ingest", "empty", "--suite", "songs"): 2,
        ("ingest", "empty", "--only"): 2,
        ("ingest",): 2,
        ("nonsense",): 2,
        ("--db", "nonsense", "models"): 2,
        ("sql", "SELECT nothing"): 7,
    }
    for arguments, code in cases.items():
        done = heads(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    spoiled = heads("models", HEADS_LOCK_TIMEOUT="soon")
    assert (spoiled.returncode, "HEADS_LOCK_TIMEOUT is not" in spoiled.stderr) == (2, True)


def test_a_reader_without_torch_is_told_what_to_install(tmp_path: Path) -> None:
    """The base install has no torch: simulated by a package that is not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'streamlit', 'altair'): sys.modules[name] = None\n"
    )

    def heads(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("heads"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = heads("ingest", "x/y")
    assert done.returncode == 8
    assert "pip install 'head-catalog[ingest]'" in done.stderr
    heads("models", "add", "m", "--layers", "2", "--heads", "2")
    assert heads("models").returncode == 0
    done = heads("chart", "map", "m", "-o", "m.png")
    assert done.returncode == 8
    assert "pip install 'head-catalog[ui]'" in done.stderr
