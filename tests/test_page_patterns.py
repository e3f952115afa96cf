"""The page Patterns without a browser: what it shows for which catalog."""

import base64
import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import catalogs
import numpy as np
import pytest
from opening import Open, healthy
from published import begin, model, publish
from streamlit.testing.v1 import AppTest
from test_stored_patterns import TOKENS, prompt, softmaxed, store
from typer.testing import CliRunner

from catalog import Catalog, patterns
from catalog.jobs import JobStore, open_store
from ui.cli.main import app

LONG = [f"t{place}" for place in range(200)]


@pytest.fixture
def open_page(open_page: Open) -> Open:
    return partial(open_page, "patterns")


@pytest.fixture
def made(tmp_path: Path) -> Catalog:
    """Model m has patterns on `p` and on a long prompt, n on `p` and `q`, and bare has none."""
    one = catalogs.make(tmp_path, {"org/bare": (2, 2)})
    for name, key in (("m", "a"), ("n", "b")):
        values: list[list[float | None]] = [
            [(4 * layer + head) / 20 for head in range(4)] for layer in range(3)
        ]
        publish(one, begin(one, key, of=model(name)), values)
    three = {(0, 0): softmaxed(0), (1, 2): softmaxed(1), (2, 3): softmaxed(2)}
    long = prompt({(0, 0): softmaxed(3, len(LONG))}, "long", LONG)
    store(one, long)
    store(one, prompt(three))
    store(one, prompt({(0, 0): softmaxed(4)}), prompt(three, "q"), of=model("n"))
    return one


def sections(page: AppTest) -> list[dict[str, Any]]:
    """What the browser is sent, of each model."""
    [canvas] = page.get("bidi_component")
    found: list[dict[str, Any]] = json.loads(canvas.proto.json)["sections"]
    return found


def drawn(page: AppTest) -> dict[str, list[str]]:
    return {one["model"]: [panel["name"] for panel in one["panels"]] for one in sections(page)}


def said(page: AppTest, kind: str = "info") -> list[str]:
    return [one.value.replace("\\", "") for one in getattr(page, kind)]


def numbers(panel: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(panel["numbers"]), "<f2")


class TestWhatIsShown:
    @pytest.mark.usefixtures("made")
    def test_the_first_view_is_the_newest_prompt_of_the_first_model(self, open_page: Open) -> None:
        page = open_page()
        assert drawn(page) == {"m": ["L0H0", "L1H2", "L2H3"]}
        assert page.query_params["prompt"] == "p"

    def test_the_numbers_are_those_of_the_catalog(self, open_page: Open, made: Catalog) -> None:
        [section] = sections(open_page(model="m", prompt="p", **{"heads of m": "L2H3 L0H0"}))
        assert section["tokens"] == [f"{at}: {token!r}" for at, token in enumerate(TOKENS)]
        for panel, name in zip(section["panels"], ("L2H3", "L0H0"), strict=True):
            [stored] = patterns.read(made, "m", [name], prompt="p")
            assert panel["name"] == name
            assert panel["href"] == f"head?model=m&head={name}"
            expected = [stored.numpy()[q, k] for q in range(len(TOKENS)) for k in range(q + 1)]
            assert list(numbers(panel)) == expected

    @pytest.mark.usefixtures("made")
    def test_two_models_with_heads_of_their_own(self, open_page: Open) -> None:
        asked = {"heads of m": "L2H3, L1", "heads of n": "L0H0"}
        page = open_page(model=["n", "m"], prompt="p", columns="2", **asked)
        assert list(drawn(page)) == ["n", "m"]
        assert drawn(page) == {"n": ["L0H0"], "m": ["L2H3", "L1H2"]}
        assert {one["across"] for one in sections(page)} == {2}
        again = open_page(**page.query_params)
        assert sections(again) == sections(page)
        assert said(page) == []

    @pytest.mark.usefixtures("made")
    def test_heads_by_score(self, open_page: Open) -> None:
        page = open_page(model="m", prompt="p", count="2", **{"heads by": "score"})
        # 11/20 and 10/20 are the largest scores: of the second no pattern is stored.
        assert drawn(page) == {"m": ["L2H3"]}
        assert said(page) == ["m has no stored pattern of L2H2 on this prompt. This stores it:"]
        assert "--heads L2H2 --prompt=p" in page.code[0].value
        healthy(page.selectbox(key="direction on patterns").set_value("smallest first").run())
        assert drawn(page) == {"m": ["L0H0"]}
        assert page.query_params["direction"] == "smallest first"

    @pytest.mark.usefixtures("made")
    def test_of_a_long_prompt_a_part_is_shown(self, open_page: Open) -> None:
        page = open_page(model="m", prompt="long")
        [section] = sections(page)
        assert len(section["tokens"]) == 128
        assert any("Tokens 0 to 127 of 200" in one for one in said(page, "caption"))
        page = open_page(model="m", prompt="long", first="190", last="192")
        [section] = sections(page)
        assert section["tokens"] == ["190: 't190'", "191: 't191'", "192: 't192'"]
        square = softmaxed(3, len(LONG))[190:193, 190:193]
        np.testing.assert_allclose(
            numbers(section["panels"][0]), square[np.tril_indices(3)], atol=2**-12
        )
        # A shorter prompt, chosen by hand, has fewer.
        healthy(page.selectbox(key="prompt on patterns").set_value("p").run())
        assert len(sections(page)[0]["tokens"]) == 2

    @pytest.mark.usefixtures("made")
    def test_code_and_command_beside_it_draw_it(
        self, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = open_page(model=["m", "n"], prompt="p", first="1", last="3", columns="1")
        monkeypatch.chdir(tmp_path)
        code, command, _ = page.code
        namespace: dict[str, Any] = {}
        exec(code.value, namespace)  # noqa: S102 - is what a reader would run
        file = tmp_path / "patterns.pdf"
        assert file.read_bytes().startswith(b"%PDF-")
        spec = namespace["chart"].to_dict()
        assert [grid["columns"] for grid in spec["vconcat"]] == [1, 1]
        file.unlink()
        asked = [*shlex.split(command.value)[1:-1], "patterns.png"]
        assert CliRunner().invoke(app, asked).exit_code == 0
        assert (tmp_path / "patterns.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.usefixtures("made")
    def test_what_draws_it_asks_no_other_machine(self, open_page: Open) -> None:
        [canvas] = open_page(model="m").get("bidi_component")
        assert "getContext" in canvas.proto.js_content
        sent = canvas.proto.js_content + canvas.proto.css_content + canvas.proto.html_content
        assert not re.search(r"https?:|import|@import|url\(|innerHTML", sent)


class TestWhatIsNotThere:
    def test_no_model(self, open_page: Open, tmp_path: Path) -> None:
        catalogs.make(tmp_path, {})
        assert "`heads ingest MODEL`" in open_page().info[0].value

    @pytest.mark.usefixtures("made")
    def test_a_model_without_patterns(self, open_page: Open) -> None:
        page = open_page(model="org/bare")
        assert said(page) == ["org/bare has no stored pattern of any head. This stores it:"]
        expected = "heads patterns CHECKPOINT --name org/bare --heads L0 --prompt=TEXT"
        assert page.code[0].value == expected
        assert not page.get("bidi_component")

    @pytest.mark.usefixtures("made")
    def test_a_prompt_that_one_of_two_has(self, open_page: Open) -> None:
        page = open_page(model=["m", "n"], prompt="q")
        assert list(drawn(page)) == ["n"]
        assert said(page) == ["m has no stored pattern of any head on this prompt. This stores it:"]

    @pytest.mark.usefixtures("made")
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("L9H0", "m has 3 layers of 4 heads, counted from 0, and no L9H0"),
            ("L0H0 L1H4", "m has 3 layers of 4 heads, counted from 0, and no L1H4"),
            ("5.5", "'5.5' is no head"),
            ("<script>", "'<script>' is no head"),
        ],
    )
    def test_heads_that_cannot_be(self, open_page: Open, text: str, reason: str) -> None:
        page = open_page(model=["m", "n"], prompt="p", **{"heads of m": text})
        assert list(drawn(page)) == ["n"]
        assert reason in said(page, "error")[0]

    @pytest.mark.usefixtures("made")
    def test_an_address_that_asks_for_what_is_not_there(self, open_page: Open) -> None:
        asked: dict[str, Any] = {"prompt": "r", "first": "9" * 5000, "columns": "99", "job": "7"}
        page = open_page(model=["m", "nope"], **asked)
        shown = said(page, "error")
        assert shown[0] == "nothing is measured here of model 'nope'"
        assert shown[1] == "nothing is measured here of prompt 'r'"
        assert drawn(page) == {"m": ["L0H0", "L1H2", "L2H3"]}

    def test_hostile_texts_are_texts(self, open_page: Open, tmp_path: Path) -> None:
        one = catalogs.make(tmp_path, {})
        name = catalogs.HOSTILE
        tokens = [name, "\u202e abc", "\x00", "`*m*`", "a" * 10_000]
        store(one, prompt({(0, 0): softmaxed(0)}, name, tokens), of=model(name))
        page = open_page()
        [section] = sections(page)
        assert section["model"] == name
        assert section["tokens"][1] == "1: '\\u202e abc'"
        assert not any("<script>" in one.value.replace("\\<", "") for one in page.markdown)


class TestRunning:
    @pytest.fixture
    def open_site(self, open_site: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
        """Go to the page from the site, where readers may submit jobs."""
        monkeypatch.setenv("HEADS_PAGE_MAY_SUBMIT", "true")
        return partial(open_site, "patterns")

    @pytest.fixture
    def ran(self, tmp_path: Path) -> JobStore:
        """The job store of a catalog with a model that came from the Hub."""
        one = catalogs.make(tmp_path, {})
        of = model("lab/m", source="hub:lab/m", revision="c0ffee", n_layers=17)
        store(one, prompt({(0, 0): softmaxed(0), (2, 3): softmaxed(1)}), of=of)
        return open_store(one.database)

    def test_only_where_the_operator_allows_it(self, open_page: Open, ran: JobStore) -> None:
        page = open_page(job="1", **{"heads of lab/m": "L2H3"})
        assert not page.button
        assert "HEADS_PAGE_MAY_SUBMIT=true" in said(page, "caption")[-2]
        assert page.code[-1].value == ("heads patterns lab/m --heads L2H3 --prompt=TEXT")
        assert ran.list() == []

    def test_a_prompt_is_queued_once_and_followed_to_its_end(
        self, open_site: Open, ran: JobStore
    ) -> None:
        page = open_site(**{"heads of lab/m": "L2H3 L0"})
        page.text_area[0].set_value(f"my {catalogs.HOSTILE}")
        for _ in range(2):
            healthy(page.button[0].click().run())
        [job] = ran.list()
        assert (job.model, job.suite, job.submitted_by) == ("lab/m", "stored_patterns", "page")
        request = {"name": "lab/m", "revision": "c0ffee", "heads": "L2H3,L0"}
        assert request.items() <= job.request.items()
        assert job.request["prompts"] == [f"my {catalogs.HOSTILE}"]
        assert page.query_params["job"] == str(job.id)
        assert "`heads worker`" in page.caption[-1].value

        held = ran.claim(job.id, worker="w", device="cpu", lease_seconds=60)
        assert held is not None
        assert held.lease_token is not None
        ran.fail(job.id, held.lease_token, f"Traceback\nModelError: {catalogs.HOSTILE}")
        healthy(page.run())
        assert f"failed: ModelError: {catalogs.HOSTILE}" in said(page, "error")[0]
        healthy(page.button[-1].click().run())
        assert "job" not in page.query_params
        assert not page.error

    def test_what_cannot_be_run_is_said(
        self, open_site: Open, ran: JobStore, tmp_path: Path
    ) -> None:
        page = open_site()
        healthy(page.button[0].click().run())
        assert said(page, "error") == ["write a prompt first"]
        catalogs.make(tmp_path, {"nowhere": (2, 2)})
        page = open_site(model="nowhere", **{"heads of nowhere": "L0"})
        page.text_area[0].set_value("a b")
        healthy(page.button[0].click().run())
        assert "does not say where nowhere came from" in said(page, "error")[0]
        page = open_site(model="lab/m", **{"heads of lab/m": " ".join(f"L{n}" for n in range(17))})
        page.text_area[0].set_value("a b")
        healthy(page.button[0].click().run())
        assert "more than 64 heads of lab/m are not run from here" in said(page, "error")[0]
        page = open_site(job="5")
        assert "no job 5" in said(page, "error")[0]
        for job in ("x", "9" * 5000):
            page = open_site(job=job)
            assert f"no job that stores patterns is called {job}" in said(page, "error")[0]
        assert ran.list() == []
