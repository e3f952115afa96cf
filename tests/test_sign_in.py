"""Who may change anything from the page, with a real OpenID provider and a real browser."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browsing
import httpx
import psutil
import pytest
from browsing import PATIENCE, Served, serving
from oidc_provider_mock import User, run_server_in_thread
from playwright.sync_api import Browser, BrowserContext, Page, expect
from pydantic import SecretStr
from servers import free_port

import catalog
from catalog.errors import UsageError
from catalog.jobs import JobSpec, JobStore, open_store
from catalog.settings import Settings, SignIn, load_settings
from ui import access, launch

pytestmark = pytest.mark.xdist_group("browser")

browser = browsing.browser
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what an operator may give
COOKIE_SECRET = "c00kie" * 8
ADA = {"email": "Ada@Lab.org", "email_verified": True, "iss": "https://id", "sub": "ada"}
USERS = [
    User(sub="ada", claims={"email": "Ada@Lab.org", "email_verified": True}),
    User(sub="mallory", claims={"email": "mallory@elsewhere.org", "email_verified": True}),
    User(sub="poser", claims={"email": "ada@lab.org", "email_verified": False}),
]


@dataclass(frozen=True)
class Site:
    """A served page that asks readers to sign in."""

    address: str
    store: JobStore
    served: Served
    secret: str


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with run_server_in_thread(require_client_registration=True, user_claims=USERS) as server:
        yield f"http://localhost:{server.server_port}"


def register(provider: str, page: str) -> dict[str, str]:
    client = {"redirect_uris": [f"{page}/oauth2callback"]}
    answer = httpx.post(f"{provider}/oauth2/clients", json=client, timeout=PATIENCE)
    return dict(answer.raise_for_status().json())


@contextmanager
def serve(provider: str, folder: Path, sign_in: SignIn, **changes: str) -> Iterator[Site]:
    """A page as its operator starts it: `heads ui`, with all that it needs in the environment."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    made = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    store = open_store(made.database)
    store.submit(JobSpec(model="m", suite="weights", request={}, queue="cpu", key="k"))
    client = register(provider, address)
    environment = {
        "HEADS_PAGE_MAY_SUBMIT": "true",
        "HEADS_PAGE_SIGN_IN": sign_in.value,
        "HEADS_PAGE_USERS": "@lab.org",
        "HEADS_PAGE_COOKIE_SECRET": COOKIE_SECRET,
        "HEADS_OIDC_METADATA_URL": f"{provider}/.well-known/openid-configuration",
        "HEADS_OIDC_CLIENT_ID": client["client_id"],
        "HEADS_OIDC_CLIENT_SECRET": client["client_secret"],
    } | changes
    with serving(folder, port=port, **environment) as served:
        yield Site(address, store, served, client["client_secret"])


@pytest.fixture(scope="module")
def site(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(provider, tmp_path_factory.mktemp("submitters"), SignIn.SUBMITTERS) as site:
        yield site


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that has never been here."""
    fresh = browser.new_context(viewport={"width": 1280, "height": 1100})
    fresh.set_default_timeout(1000 * PATIENCE)
    yield fresh
    fresh.close()


def sign_in(page: Page, who: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name=who, exact=True).click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def sign_out(page: Page) -> None:
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="End session").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def expect_no_way_to_change(page: Page) -> None:
    expect(page.get_by_text("Schedules", exact=True)).to_be_visible()
    expect(page.get_by_text("Job 1: weights of m")).to_be_visible()
    for name in ("Queue", "Cancel", "Retry"):
        expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)


@pytest.mark.browser
class TestSubmitters:
    def test_who_is_not_signed_in_sees_all_and_changes_nothing(
        self, context: BrowserContext, site: Site
    ) -> None:
        page = context.new_page()
        page.goto(f"{site.address}/jobs?job=1")
        expect_no_way_to_change(page)
        expect(page.get_by_text("Sign in to do that.").first).to_be_visible()

    def test_who_is_allowed_submits_by_name_and_may_sign_out(
        self, context: BrowserContext, site: Site
    ) -> None:
        page = context.new_page()
        page.goto(f"{site.address}/jobs?job=1&state=queued&state=cancelled&part=jobs")
        sign_in(page, "ada")
        expect(page.get_by_text("ada@lab.org")).to_be_visible()
        # Back at the view that was left, though the provider knows one address only.
        expect(page).to_have_url(
            f"{site.address}/jobs?job=1&state=queued&state=cancelled&part=jobs"
        )
        page.get_by_text("Queue a model").click()
        page.get_by_role("textbox", name="Model").fill("org/some-model")
        page.get_by_role("button", name="Queue", exact=True).click()
        expect(page.get_by_text("New jobs: 2, 3, 4, 5, 6.")).to_be_visible()
        assert {job.submitted_by for job in site.store.list() if job.id > 1} == {"ada@lab.org"}

        sign_out(page)
        page.goto(f"{site.address}/jobs?job=1")
        expect_no_way_to_change(page)

    @pytest.mark.parametrize(
        ("who", "told"),
        [
            ("mallory", "elsewhere.org is not among those whom this page serves"),
            ("poser", "lab.org is an address that the provider does not call verified"),
        ],
    )
    def test_who_is_not_allowed_is_told_so(
        self, context: BrowserContext, site: Site, who: str, told: str
    ) -> None:
        page = context.new_page()
        page.goto(f"{site.address}/jobs?job=1")
        sign_in(page, who)
        expect(page.get_by_text(told).first).to_be_visible()
        expect_no_way_to_change(page)

    def test_a_cookie_that_another_signed_is_worth_nothing(
        self, context: BrowserContext, site: Site
    ) -> None:
        from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

        claims = json.dumps({**ADA, "iat": time.time(), "is_logged_in": True})
        forged = create_signed_value(
            "another secret, as long as it must be", "_streamlit_user", claims
        )
        context.add_cookies(
            [{"name": "_streamlit_user", "value": forged.decode(), "url": site.address}]
        )
        page = context.new_page()
        page.goto(f"{site.address}/jobs?job=1")
        expect_no_way_to_change(page)
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()

    def test_secrets_are_in_no_log_no_argument_and_no_file(self, site: Site) -> None:
        secrets = (site.secret, COOKIE_SECRET)
        started = psutil.Process(site.served.process.pid)
        commands = [" ".join(one.cmdline()) for one in (started, *started.children(recursive=True))]
        assert any("server.py" in command for command in commands)
        files = [path for path in site.served.folder.rglob("*") if path.is_file()]
        for secret in secrets:
            assert not any(secret in command for command in commands)
            assert not any(secret.encode() in path.read_bytes() for path in files)
        assert "code=" not in site.served.log


@pytest.mark.browser
class TestEverybody:
    def test_nothing_is_shown_before_and_the_link_is_kept(
        self, context: BrowserContext, provider: str, tmp_path: Path
    ) -> None:
        with serve(provider, tmp_path, SignIn.EVERYBODY) as site:
            page = context.new_page()
            page.goto(f"{site.address}/jobs?job=1")
            expect(page.get_by_text("This page is shown to those who sign in.")).to_be_visible()
            expect(page.get_by_text("Schedules")).to_have_count(0)
            sign_in(page, "mallory")
            expect(page.get_by_text("elsewhere.org is not among")).to_be_visible()
            expect(page.get_by_text("Schedules")).to_have_count(0)
            sign_out(page)
            sign_in(page, "ada")
            expect(page.get_by_text("Job 1: weights of m")).to_be_visible()

    def test_a_wrong_client_secret_lets_nobody_in(
        self, context: BrowserContext, provider: str, tmp_path: Path
    ) -> None:
        with serve(provider, tmp_path, SignIn.EVERYBODY, HEADS_OIDC_CLIENT_SECRET="wr0ng") as site:
            page = context.new_page()
            page.goto(f"{site.address}/jobs")
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("button", name="ada", exact=True).click()
            expect(page.get_by_role("button", name="Sign in")).to_be_visible()
            expect(page.get_by_text("Schedules")).to_have_count(0)
            assert "wr0ng" not in site.served.log


def settings(**changes: Any) -> Settings:
    known: dict[str, Any] = {
        "page_may_submit": True,
        "page_sign_in": SignIn.SUBMITTERS,
        "page_users": ("@lab.org", "grace@navy.mil"),
        "page_cookie_secret": SecretStr(COOKIE_SECRET),
        "oidc_metadata_url": "https://id.lab.org/.well-known/openid-configuration",
        "oidc_client_id": "heads",
        "oidc_client_secret": SecretStr("s3cret"),
    }
    return Settings(**known | changes)


def claims(**changes: Any) -> dict[str, Any]:
    return {**ADA, "iat": time.time(), **changes}


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ({}, "ada@lab.org"),
        ({"email": "GRACE@navy.mil"}, "grace@navy.mil"),
        ({"email": "other@navy.mil"}, None),
        ({"email": "eve@evil-lab.org"}, None),
        ({"email": "eve@lab.org@evil.org"}, None),
        ({"email": "lab.org"}, None),
        ({"email": None}, None),
        ({"email": ["ada@lab.org"]}, None),
        ({"email_verified": False}, None),
        ({"email_verified": None}, None),
        ({"email_verified": "true"}, None),
        ({"iat": time.time() - 25 * 3600}, None),
        ({"iat": time.time() + 3600}, None),
        ({"iat": None}, None),
    ],
)
def test_only_fresh_verified_addresses_of_the_list_count(
    changed: Mapping[str, Any], by: str | None
) -> None:
    assert access.permission(settings(), claims(**changed)).by == by


def test_what_the_operator_says_comes_first() -> None:
    assert access.permission(Settings(), {}).by is None
    open_to_all = Settings(page_may_submit=True)
    assert access.permission(open_to_all, {}).by == "page"
    off = access.permission(settings(page_may_submit=False), claims())
    assert (off.by, off.who) == (None, "ada@lab.org")
    with pytest.raises(access.NotAllowedError, match="HEADS_PAGE_MAY_SUBMIT"):
        off.require()
    nameless = claims(email=None)
    assert access.permission(settings(page_users=("*",)), nameless).by == "ada of https://id"
    unsaid = claims(email_verified=None)
    assert access.permission(settings(oidc_trust_email=True), unsaid).by == "ada@lab.org"
    denied = claims(email_verified=False)
    assert access.permission(settings(oidc_trust_email=True), denied).by is None
    everybody = settings(page_sign_in=SignIn.EVERYBODY)
    assert not access.permission(everybody, {}).may_see
    assert not access.permission(everybody, claims(email="a@b.c")).may_see
    assert access.permission(everybody, claims()).may_see


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"oidc_client_secret": None, "page_users": ()},
            "HEADS_OIDC_CLIENT_SECRET, HEADS_PAGE_USERS",
        ),
        ({"page_cookie_secret": SecretStr("short")}, "32 characters"),
        ({"oidc_metadata_url": "http://id.lab.org/x"}, "HEADS_OIDC_METADATA_URL must begin"),
        ({"page_url": "http://heads.lab.org"}, "HEADS_PAGE_URL must begin"),
        ({"page_url": "https://["}, "HEADS_PAGE_URL must begin"),
    ],
)
def test_what_is_missing_is_named(changes: Mapping[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        access.secrets(settings(**changes), port=8501)


def test_the_doctor_asks_the_provider(provider: str, tmp_path: Path) -> None:
    known = {
        "HEADS_PAGE_SIGN_IN": "submitters",
        "HEADS_PAGE_USERS": "*",
        "HEADS_PAGE_COOKIE_SECRET": COOKIE_SECRET,
        "HEADS_OIDC_CLIENT_ID": "heads",
        "HEADS_OIDC_CLIENT_SECRET": "s3cret",
    }
    for address, level in ((provider, "ok"), (f"http://127.0.0.1:{free_port()}", "fail")):
        there = {"HEADS_OIDC_METADATA_URL": f"{address}/.well-known/openid-configuration"}
        done = subprocess.run(
            [sys.executable, "-m", "ui.cli", "doctor", "sign-in", "--format", "json"],
            cwd=tmp_path,
            env=os.environ | known | there,
            capture_output=True,
            text=True,
            check=False,
        )
        [found] = json.loads(done.stdout)
        assert (found["level"], done.returncode) == (level, int(level == "fail"))
        assert "s3cret" not in done.stdout + done.stderr


def test_who_listens_elsewhere_says_where() -> None:
    with pytest.raises(UsageError, match="HEADS_PAGE_URL"):
        access.secrets(settings(), port=8501, address=EVERYWHERE)
    known = access.secrets(
        settings(page_url="https://heads.lab.org/"), port=8501, address=EVERYWHERE
    )
    assert known["auth"]["redirect_uri"] == "https://heads.lab.org/oauth2callback"
    assert access.secrets(Settings(), port=8501) == {}


def test_the_page_answers_to_its_own_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_PAGE_URL", "https://heads.lab.org")
    for address in ("127.0.0.1", EVERYWHERE):
        command = launch.command(port=1, address=address)
        assert "--server.allowedHosts=heads.lab.org" in command


def test_users_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_PAGE_USERS", " Ada@Lab.org, @navy.mil,,")
    assert load_settings().page_users == ("ada@lab.org", "@navy.mil")
    monkeypatch.setenv("HEADS_PAGE_SIGN_IN", "sometimes")
    with pytest.raises(UsageError, match="HEADS_PAGE_SIGN_IN is not as expected"):
        load_settings()


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    for command in ("ui", "up"):
        done = subprocess.run(
            [sys.executable, "-m", "ui.cli", command, "--port", str(free_port())],
            cwd=tmp_path,
            env=os.environ | {"HEADS_PAGE_SIGN_IN": "everybody"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 2
        assert "needs HEADS_OIDC_METADATA_URL, HEADS_OIDC_CLIENT_ID" in done.stderr
