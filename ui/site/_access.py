"""Who reads the page, and what they may do: every page asks `permission`, to draw and to act."""

import streamlit as st

from catalog.settings import SignIn, load_settings
from ui import access
from ui.access import Permission
from ui.site._texts import plain

_SIGNED_OUT = "This page is shown to those who sign in."


def permission() -> Permission:
    """What the reader may do, now.

    To be asked when something is offered, and again at the moment of the action, since a click may
    come when the reader has long been signed out: `permission().require()`.
    """
    settings = load_settings()
    if settings.page_sign_in is SignIn.NOBODY:
        return access.permission(settings, {})
    user = st.user.to_dict()
    return access.permission(settings, user if user.get("is_logged_in") else {})


def admit() -> bool:
    """Show who is signed in, with the way in or out; whether the reader may see anything."""
    reader = permission()
    if reader.who is None and not reader.can_sign_in:
        return True
    with st.container(
        horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"
    ):
        if reader.who is not None:
            st.text(reader.who, width="content")
            if st.button("Sign out", type="tertiary"):
                st.logout()
        elif st.button("Sign in", type="tertiary"):
            st.login()
    if not reader.may_see:
        st.title("Head Catalog")
        st.info(plain(reader.refusal or "") if reader.who else _SIGNED_OUT)
    return reader.may_see


def refuse(reader: Permission) -> None:
    """Say why the reader may not do what would be offered here, and what would change that."""
    st.caption(plain(reader.refusal or ""))
