"""Page: what is being measured, by whom, how far it is, why it failed, and what comes by itself."""

from collections.abc import Sequence

import streamlit as st

from catalog import Catalog, HeadsError, connect
from catalog.database import Database
from catalog.jobs import Job, JobStore, Schedules, State, listing, schedules
from catalog.jobs.schedules import Kind
from ui import queueing
from ui.queueing import Wish
from ui.site import _access, _page
from ui.site._texts import plain, short

PARTS = ("jobs", "schedules", "workers")
STATES = [state.value for state in State]
SHOWN = 200
DIGITS = 9
"""Of a job's number, at most."""
EVERY = 2.0
"""Seconds between two looks at the store."""
PATIENCE = 15.0
"""Seconds for which what was found of the broker is taken to be so."""
LONG, SHORT, OUTCOME = 388, 213, 168
"""Heights of tables and of what a job is at, in pixels: the same whatever stands in them."""
NO_WORKER = (
    "No worker is alive, so that what is queued waits. Start one with `heads worker`, or "
    "everything on this machine with `heads up`."
)
WATCHED = {
    Kind.HUB: "Models of the Hub, by author or name",
    Kind.COLLECTION: "A collection of the Hub",
    Kind.MODEL: "One model, for new revisions",
    Kind.FOLDER: "A folder of the workers' machine",
    Kind.STALE: "Scores of older versions of metrics",
}


@st.cache_data(ttl=PATIENCE, show_spinner=False, hash_funcs={Database: lambda one: one.name})
def broker_trouble(database: Database) -> str | None:
    return queueing.trouble(database)


@st.fragment(run_every=EVERY)
def show_jobs(store: JobStore, states: list[str]) -> None:
    with _page.told():
        jobs = store.list(states=states, limit=SHOWN)
        st.dataframe(listing.jobs(store, jobs).pandas(), hide_index=True, height=LONG)
        is_cut = len(jobs) == SHOWN
        st.caption(f"The newest {SHOWN}; `heads jobs -n` lists more." if is_cut else " ")


@st.fragment(run_every=EVERY)
def show_job(catalog: Catalog, store: JobStore, job_id: int) -> None:
    with _page.told():
        job = store.get(job_id)
        st.subheader(plain(f"Job {job.id}: {job.suite} of {short(job.model)}"))
        with st.container(height=OUTCOME, border=False):
            show_outcome(store, job)
        offer_changes(catalog, store, job)
        events = listing.events(store, job_id).pandas()
        st.dataframe(events, hide_index=True, height=SHORT)
        with st.expander("All that is known of it"):
            st.dataframe(listing.facts(store, job_id).pandas(), hide_index=True, height=LONG)


def show_outcome(store: JobStore, job: Job) -> None:
    match job.state:
        case State.RUNNING:
            share = min(job.done / job.total, 1.0) if job.total else 0.0
            st.progress(share, text=plain(listing.progress(job) or "beginning"))
            end = job.expected_end
            worker, device = (short(one or "") for one in (job.worker, job.device))
            on = f"On {worker} ({device}), attempt {job.attempt}"
            st.text(f"{on}; done at about {end:%H:%M:%S} UTC." if end else f"{on}.")
        case State.FAILED if job.error:
            st.code(job.error, language=None)
        case State.QUEUED if not listing.is_alive(store, job.queue):
            st.text(f"It waits in the queue {short(job.queue)}, which no worker serves.")
        case State.QUEUED:
            st.text(f"It waits in the queue {short(job.queue)}.")
        case State.SUCCEEDED:
            runs = ", ".join(map(str, job.run_ids)) or "none: nothing was left to do"
            st.text(f"It has succeeded; its runs: {runs}.")
        case _:
            st.text(f"It is {job.state}.")


def offer_changes(catalog: Catalog, store: JobStore, job: Job) -> None:
    reader = _access.permission()
    if reader.by is None:
        _access.refuse(reader)
        return
    may_cancel = not job.is_over and not job.cancel_requested
    may_retry = job.state in {State.FAILED, State.CANCELLED}
    with st.container(horizontal=True):
        if st.button("Cancel", disabled=not may_cancel):
            _access.permission().require()
            store.cancel(job.id)
            st.rerun()
        if st.button("Retry", disabled=not may_retry):
            _access.permission().require()
            queueing.nudge(catalog.database, store, store.retry(job.id))
            st.rerun()


@st.fragment(run_every=EVERY)
def show_workers(store: JobStore) -> None:
    with _page.told():
        st.dataframe(listing.workers(store).pandas(), hide_index=True, height=LONG)
        if listing.is_alive(store):
            st.caption("A silent worker has died, or is cut off; its job goes to another.")
        else:
            st.info(NO_WORKER)


def offer_queueing(catalog: Catalog) -> None:
    """A form that queues a model, once or again and again."""
    with st.expander("Queue a model"), st.form("form of a job", border=False):
        model = st.text_input("Model", placeholder="a Hub id, or a path on the workers' machine")
        suites_place, device_place = st.columns([3, 1])
        suites = suites_place.multiselect(
            "Suites", queueing.SUITES, placeholder="All that can be measured", select_all=False
        )
        device = device_place.selectbox("Device", queueing.DEVICES)
        st.caption("Once, now; or, for each new revision of the model, as a schedule:")
        every, cron, zone, name = timing("queue")
        if not st.form_submit_button("Queue"):
            return
        with _page.told():
            by = _access.permission().require()
            if every or cron:
                wish = Wish(
                    name=name,
                    kind=Kind.MODEL,
                    target=model,
                    every=every,
                    cron=cron,
                    timezone=zone,
                    suites=suites,
                    device=device,
                )
                say_added(queueing.add_schedule(catalog, wish, by=by))
                return
            done = queueing.submit(catalog, model, suites, device, by=by, tell=st.warning)
            new = [str(one.job.id) for one in done if one.is_new]
            known = [str(one.job.id) for one in done if not one.is_new]
            st.success(
                f"New jobs: {', '.join(new) or 'none'}."
                + (f" Queued or running already: {', '.join(known)}." if known else "")
            )


def timing(form: str) -> tuple[str, str, str, str]:
    every_place, cron_place, zone_place, name_place = st.columns(4)
    return (
        every_place.text_input("Every", placeholder="30m, 6h, 1d, 2w", key=f"every of {form}"),
        cron_place.text_input("Cron", placeholder="0 3 * * *", key=f"cron of {form}"),
        zone_place.text_input("Time zone", "UTC", key=f"zone of {form}"),
        name_place.text_input("Name of the schedule", key=f"name of {form}"),
    )


def say_added(schedule: schedules.Schedule) -> None:
    first = f"{schedule.next_run_at:%Y-%m-%d %H:%M} UTC"
    st.success(plain(f"Schedule {schedule.name}: {schedule.when}, first at {first}."))


def offer_schedule(catalog: Catalog) -> None:
    """A form that adds a schedule of any kind, or shows what it would do."""
    with st.expander("Add a schedule"), st.form("form of a schedule", border=False):
        kind_place, target_place, search_place = st.columns(3)
        kind = kind_place.selectbox("Watch", list(WATCHED), format_func=WATCHED.__getitem__)
        target = target_place.text_input("Which", placeholder="EleutherAI, or a path")
        search = search_place.text_input("With this in the name", placeholder="of Hub models only")
        suites_place, device_place, most_place = st.columns([2, 1, 1])
        suites = suites_place.multiselect(
            "Suites", queueing.SUITES, placeholder="All that can be measured", select_all=False
        )
        device = device_place.selectbox("Device", queueing.DEVICES)
        most = most_place.number_input("Models that one run submits", 1, 1000, 10)
        every, cron, zone, name = timing("schedule")
        with st.container(horizontal=True):
            adds = st.form_submit_button("Add")
            previews = st.form_submit_button("Dry run")
        if not (adds or previews):
            return
        with _page.told():
            by = _access.permission().require()
            wish = Wish(
                name=name or ("dry run" if previews else ""),
                kind=kind,
                target=target,
                search=search,
                every=every,
                cron=cron,
                timezone=zone,
                suites=suites,
                device=device,
                at_most=most,
            )
            if adds:
                say_added(queueing.add_schedule(catalog, wish, by=by))
            else:
                show_preview(catalog, wish)


def show_preview(catalog: Catalog, what: Wish | str) -> None:
    with st.spinner("Looking at what there is"):
        found = queueing.preview(catalog, what).pandas()
    if found.empty:
        st.info("A run would find nothing.")
    else:
        st.dataframe(found, hide_index=True, height=SHORT)


@st.fragment(run_every=EVERY)
def show_schedules(store: JobStore) -> None:
    with _page.told():
        found = schedules.listing(Schedules(store)).pandas()
        st.dataframe(found, hide_index=True, height=SHORT)


def show_schedule(catalog: Catalog, store: JobStore, name: str) -> None:
    kept = Schedules(store)
    schedule = kept.get(name)
    st.subheader(plain(f"Schedule {short(name)}"))
    reader = _access.permission()
    if reader.by is None:
        _access.refuse(reader)
    else:
        change_schedule(catalog, kept, schedule)
    st.text("What it has found, the latest first")
    st.dataframe(schedules.found(kept, name).pandas(), hide_index=True, height=SHORT)


def change_schedule(catalog: Catalog, kept: Schedules, schedule: schedules.Schedule) -> None:
    with st.container(horizontal=True):
        rests = st.button("Resume" if schedule.is_paused else "Pause")
        runs = st.button("Run now")
        previews = st.button("Dry run", key="dry run of one")
        removes = st.button("Remove")
    if not (rests or runs or previews or removes):
        return
    by = _access.permission().require()
    if rests:
        kept.pause(schedule.name, is_paused=not schedule.is_paused)
        st.rerun()
    if removes:
        kept.remove(schedule.name)
        st.rerun()
    if previews:
        show_preview(catalog, schedule.name)
    if runs:
        with st.spinner("Looking at what there is"):
            told = queueing.run_schedule(catalog, schedule.name, by=by)
        st.success(plain(f"{schedule.name}: {told}"))


def jobs_part(page: _page.Page, catalog: Catalog, store: JobStore | None) -> None:
    if _access.permission().by is not None:
        offer_queueing(catalog)
        # The first job makes it.
        store = store or queueing.find_store(catalog.database)
    jobs = store.list(limit=SHOWN) if store else []
    if store is None or not jobs:
        raise _page.NothingToShowError(
            "No job was ever queued. Queue some with `heads ingest MODEL --queue`."
        )
    states_place, job_place = st.columns([3, 1])
    with states_place:
        states = page.choose_several("state", STATES, default=STATES)
    with job_place:
        ids = with_asked(store, [str(job.id) for job in jobs])
        chosen = page.choose_one("job", ids, default=ids[0])
    show_jobs(store, states)
    show_job(catalog, store, int(chosen))


def with_asked(store: JobStore, newest: Sequence[str]) -> list[str]:
    """The newest jobs' numbers, and the one that a link asks for however old it is."""
    asked = st.query_params.get("job", "")
    is_number = asked.isascii() and asked.isdecimal() and len(asked) <= DIGITS
    if asked in newest or not is_number:
        return list(newest)
    try:
        return [*newest, str(store.get(int(asked)).id)]
    except HeadsError:
        return list(newest)


def schedules_part(page: _page.Page, catalog: Catalog, store: JobStore | None) -> None:
    if _access.permission().by is not None:
        offer_schedule(catalog)
        store = store or queueing.find_store(catalog.database)
    names = [one.name for one in Schedules(store).list()] if store else []
    if store is None or not names:
        raise _page.NothingToShowError(
            "There is no schedule. Make one with "
            "`heads schedule add smol --model HuggingFaceTB/SmolLM2-135M --every 6h`; "
            "`heads up` or `heads scheduler` runs those that are due."
        )
    show_schedules(store)
    show_schedule(catalog, store, page.choose_one("schedule", names, default=names[0]))


def workers_part(store: JobStore | None) -> None:
    if store is None:
        raise _page.NothingToShowError(NO_WORKER)
    show_workers(store)


with _page.opened("jobs", "Jobs") as page:
    catalog = connect()
    store = queueing.find_store(catalog.database)
    notice = st.empty()
    part = page.choose_part("part", PARTS)
    try:
        match part:
            case "jobs":
                jobs_part(page, catalog, store)
            case "schedules":
                schedules_part(page, catalog, store)
            case _:
                workers_part(store)
    finally:
        # Last of all, since a broker that is away takes its time.
        if trouble := broker_trouble(catalog.database):
            notice.warning(plain(trouble))
        elif part == "jobs" and (store is None or not listing.is_alive(store)):
            notice.info(NO_WORKER)
