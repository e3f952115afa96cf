"""The page *Jobs*: queue, schedules, workers; with a real worker in a real browser."""

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import browsing
import pytest
import streamlit as st
import tiny
from browsing import serving, shoot, unfold
from opening import Open, healthy
from playwright.sync_api import Page, expect
from sqlalchemy import insert, update
from streamlit.testing.v1 import AppTest
from test_jobs_shown import HOSTILE, failed, queued, running

import catalog
from catalog.jobs import Job, JobStore, Schedules, Worker, open_store
from catalog.jobs.schedules import Kind
from ui import queueing

browser, page = browsing.browser, browsing.page


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    return open_store(one.database)


@pytest.fixture
def open_page(open_page: Open) -> Open:
    st.cache_data.clear()
    return partial(open_page, "jobs")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_PAGE_MAY_SUBMIT", "true")


def press(page: AppTest, label: str) -> AppTest:
    [button] = [one for one in page.button if one.label == label]
    return healthy(button.click().run())


def write(page: AppTest, label: str, text: str) -> None:
    [field] = [one for one in page.text_input if one.label == label]
    field.set_value(text)


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def alive(store: JobStore, name: str = "h:cpu") -> None:
    store.worker_beat(
        Worker(name=name, host="h", pid=1, queues=["cpu"], device="cpu", memory=3 << 30)
    )


class TestLooking:
    def test_without_a_catalog(self, open_page: Open) -> None:
        assert "there is no catalog" in open_page().error[0].value

    def test_without_jobs_it_names_the_commands_and_makes_no_file(
        self, open_page: Open, tmp_path: Path
    ) -> None:
        catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
        told = [
            info.value
            for part in ("jobs", "schedules", "workers")
            for info in open_page(part=part).info
        ]
        for command in (
            "heads worker",
            "heads up",
            "heads ingest MODEL --queue",
            "heads schedule add",
        ):
            assert any(f"`{command}" in one for one in told), command
        assert not list(tmp_path.glob("heads.duckdb.*jobs*"))

    def test_jobs_and_one_job(self, open_page: Open, store: JobStore) -> None:
        alive(store)
        first, second = queued(store), queued(store, HOSTILE)
        failed(store, first)
        running(store, second)
        page = open_page()
        jobs, events, _ = (frame.value for frame in page.dataframe)
        assert not page.info
        assert list(jobs["state"]) == ["running", "failed"]
        assert list(events["what"]) == ["queued", "claimed"]
        assert "\\<script\\>" in page.subheader[0].value
        assert not page.button
        assert "On h:cpu (cpu), attempt 1; done at about" in page.text[0].value
        healthy(page.selectbox[0].set_value(str(first.id)).run())
        assert HOSTILE in page.code[0].value
        assert page.query_params["job"] == [str(first.id)] or page.query_params["job"] == str(
            first.id
        )
        healthy(page.multiselect[0].set_value(["running"]).run())
        assert list(page.dataframe[0].value["id"]) == [second.id]

    def test_a_link_to_an_old_job_shows_it(self, open_page: Open, store: JobStore) -> None:
        old = queued(store)
        with store.database.connect(writable=True) as connection, connection.begin():
            columns = {one.name: getattr(old, one.name) for one in Job.__table__.columns}
            newer = [columns | {"id": old.id + n, "key": f"{n}"} for n in range(1, 202)]
            connection.execute(insert(Job), newer)
        assert open_page(job=str(old.id)).selectbox[0].value == str(old.id)
        assert open_page(job="9" * 400).error

    def test_workers_and_the_dead_among_them(self, open_page: Open, store: JobStore) -> None:
        alive(store)
        alive(store, "gone")
        with store.database.connect(writable=True) as connection, connection.begin():
            past = store.now() - timedelta(minutes=5)
            connection.execute(
                update(Worker).where(Worker.name == "gone").values(heartbeat_at=past)
            )
        frame = open_page(part="workers").dataframe[0].value.set_index("worker")
        assert frame.loc["h:cpu", "memory_gib"] == 3
        assert str(frame.loc["h:cpu", "health"]).startswith("heard of")
        assert str(frame.loc["gone", "health"]).startswith("silent: last heard of 5 min")

    def test_a_job_that_nobody_serves_says_so(self, open_page: Open, store: JobStore) -> None:
        queued(store)
        page = open_page()
        assert "which no worker serves" in page.text[0].value
        assert "`heads worker`" in page.info[0].value

    def test_a_server_without_a_broker_is_browsed(
        self, new_postgresql_url: str, monkeypatch: pytest.MonkeyPatch, open_page: Open
    ) -> None:
        one = catalog.connect(new_postgresql_url, create=True)
        queued(open_store(one.database))
        monkeypatch.setenv("HEADS_DATABASE_URL", new_postgresql_url)
        page = open_page()
        assert "set HEADS_BROKER_URL" in page.warning[0].value
        assert list(page.dataframe[0].value["state"]) == ["queued"]

    @pytest.mark.parametrize("host", ["127.0.0.1:1", "192.0.2.1:6379", "no-such-host.invalid"])
    def test_a_broker_that_is_away_keeps_nobody_waiting(
        self, host: str, open_page: Open, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADS_BROKER_URL", f"redis://:s3cret@{host}/0")
        queued(store)
        started = time.monotonic()
        page = open_page()
        assert time.monotonic() - started < 8
        assert "does not answer" in page.warning[0].value
        assert "s3cret" not in page.warning[0].value
        assert list(page.dataframe[0].value["state"]) == ["queued"]


class TestChanging:
    def test_nothing_is_changed_unless_the_operator_allows_it(
        self, open_page: Open, store: JobStore
    ) -> None:
        queued(store)
        page = open_page()
        assert not page.button
        assert any("HEADS_PAGE_MAY_SUBMIT" in one.value for one in page.caption)

    @pytest.mark.usefixtures("allowed")
    def test_jobs_are_cancelled_and_tried_again(self, open_page: Open, store: JobStore) -> None:
        job = queued(store)
        page = open_page(job=str(job.id))
        assert labels(page) == ["Queue", "Cancel", "Retry"]
        assert [button.disabled for button in page.button[1:]] == [False, True]
        press(page, "Cancel")
        assert store.get(job.id).state == "cancelled"
        assert [button.disabled for button in page.button[1:]] == [True, False]
        press(page, "Retry")
        again = store.get(job.id)
        assert (again.state, again.nudged_at is not None) == ("queued", True)

    @pytest.mark.usefixtures("allowed")
    def test_who_may_no_longer_is_refused_at_the_click(
        self, open_page: Open, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = queued(store)
        pages = {"Cancel": open_page(), "Queue": open_page(), "Add": open_page(part="schedules")}
        pages["Queue"].text_input[0].set_value("org/m")
        monkeypatch.setenv("HEADS_PAGE_MAY_SUBMIT", "false")
        for label, page in pages.items():
            press(page, label)
        assert [one.state for one in store.list()] == [job.state]
        assert not Schedules(store).list()

    @pytest.mark.usefixtures("allowed")
    def test_a_model_is_queued(self, open_page: Open, store: JobStore, tmp_path: Path) -> None:
        from ingest.request import SUITE_NAMES
        from ingest.suites import SUITES

        assert tuple(SUITES) == SUITE_NAMES == queueing.SUITES
        page = open_page()
        press(page, "Queue")
        assert "name a model" in page.error[0].value
        page.text_input[0].set_value("someone/some-model")
        page.multiselect[0].set_value(["weights", "salient"])
        page.selectbox[0].set_value("cpu")
        press(page, "Queue")
        assert page.success[0].value == "New jobs: 1, 2."
        assert {(job.model, job.suite, job.queue, job.submitted_by) for job in store.list()} == {
            ("someone/some-model", "weights", "cpu", "page"),
            ("someone/some-model", "salient", "cpu", "page"),
        }
        assert len(list((tmp_path / "heads.duckdb.queue" / "messages").iterdir())) == 2
        press(page, "Queue")
        assert page.success[0].value == "New jobs: none. Queued or running already: 1, 2."

    @pytest.mark.usefixtures("allowed")
    def test_what_cannot_be_done_is_said(self, open_page: Open, store: JobStore) -> None:
        job = queued(store)
        store.cancel(job.id)
        page = open_page(job=str(job.id))
        other = queued(store)
        press(page, "Retry")
        assert f"the same as job {other.id}" in page.error[0].value

    @pytest.mark.usefixtures("allowed")
    def test_a_model_is_queued_again_and_again(self, open_page: Open, store: JobStore) -> None:
        page = open_page()
        page.text_input[0].set_value("someone/some-model")
        write(page, "Cron", "0 3 * * *")
        write(page, "Name of the schedule", "nightly")
        page.multiselect[0].set_value(["weights"])
        press(page, "Queue")
        assert "nightly" in page.success[0].value
        [schedule] = Schedules(store).list()
        assert (schedule.kind, schedule.cron) == ("model", "0 3 * * *")
        assert schedule.target == {"model": "someone/some-model", "revision": None}
        assert schedule.request == {"suites": ["weights"], "device": "auto"}
        assert not store.list()


@pytest.mark.usefixtures("allowed")
class TestSchedules:
    @pytest.fixture
    def models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "models"
        tiny.save(folder / "tiny", "llama")
        # Else what was written within the last minute is taken to be written still.
        monkeypatch.setattr("ingest.schedules.folders.SETTLED", timedelta(0))
        return folder

    def test_one_is_tried_added_run_paused_and_removed(
        self, open_page: Open, store: JobStore, models: Path
    ) -> None:
        page = open_page(part="schedules")
        page.selectbox[0].set_value("folder")
        write(page, "Which", str(models))
        press(page, "Dry run")
        assert list(page.dataframe[0].value["decision"]) == ["would submit"]
        assert not Schedules(store).list()
        press(page, "Add")
        assert "name the schedule" in page.error[0].value
        write(page, "Name of the schedule", "inbox")
        press(page, "Add")
        assert "give either" in page.error[0].value
        write(page, "Every", "6h")
        press(page, "Add")
        assert "every 6h" in page.success[0].value
        assert (
            page.query_params["schedule"] == ["inbox"] or page.query_params["schedule"] == "inbox"
        )

        page = open_page(part="schedules", schedule="inbox")
        press(page, "Run now")
        assert "submitted 1" in page.success[0].value
        assert {job.submitted_by for job in store.list()} == {"schedule inbox, by page"}
        assert Schedules(store).get("inbox").last_run_at is not None
        press(page, "Pause")
        assert Schedules(store).get("inbox").is_paused
        press(page, "Resume")
        assert not Schedules(store).get("inbox").is_paused
        press(page, "Remove")
        assert not Schedules(store).list()

    def test_folders_outside_of_the_roots_are_not_looked_into(
        self, open_page: Open, store: JobStore, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADS_MODEL_ROOTS", str(models / "other"))
        page = open_page(part="schedules")
        page.selectbox[0].set_value("folder")
        write(page, "Which", str(models))
        press(page, "Dry run")
        assert "HEADS_MODEL_ROOTS" in page.error[0].value
        assert not page.dataframe
        assert not store.list()

    def test_a_reader_sees_them_and_changes_none(
        self, open_page: Open, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADS_PAGE_MAY_SUBMIT", "false")
        wish = queueing.Wish(name="w", kind=Kind.HUB, target="org", every="1d")
        Schedules(store).add(wish.spec(), store.now())
        page = open_page(part="schedules")
        assert not page.button
        assert list(page.dataframe[0].value["schedule"]) == ["w"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`heads up` in an empty folder, whose page may submit: its address, and a tiny model."""
    folder = tmp_path_factory.mktemp("up")
    model = tiny.save(folder / "tiny-llama", "llama")
    with serving(
        folder,
        "up",
        "--device",
        "cpu",
        HEADS_PAGE_MAY_SUBMIT="true",
        HEADS_WORK_DIR=str(folder),
    ) as served:
        yield served.address, model


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_a_job_is_submitted_and_seen_to_finish(page: Page, everything: tuple[str, Path]) -> None:
    address, model = everything
    page.goto(f"{address}/jobs")
    expect(page.get_by_text("No job was ever queued")).to_be_visible()
    unfold(page, "Queue a model")
    page.get_by_role("textbox", name="Model", exact=True).fill(str(model))
    page.get_by_role("combobox", name="Suites").click()
    page.get_by_role("option", name="weights").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Queue", exact=True).click()
    expect(page.get_by_text("New jobs: 1.")).to_be_visible()
    expect(page.get_by_role("heading", name="Job 1: weights of")).to_be_visible()
    before = page.get_by_role("button", name="Cancel", exact=True).bounding_box()
    # Without a reload, and with everything where it was.
    expect(page.get_by_text("It has succeeded; its runs: 1.")).to_be_visible(timeout=180_000)
    assert page.get_by_role("button", name="Cancel", exact=True).bounding_box() == before
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_disabled()
    shoot(page, "jobs")
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_text("1 of 1 models")).to_be_visible()

    page.goto(f"{address}/jobs?part=workers")
    expect(page.get_by_text("A silent worker has died")).to_be_visible()
    page.go_back()
    expect(page.get_by_text("1 of 1 models")).to_be_visible()
