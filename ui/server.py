"""The page's server: `heads ui` runs this file with Streamlit, and it runs `app.py` per reader."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from catalog.settings import SignIn, load_settings
from ui import access, coming_back

_settings = load_settings()

# Secrets go from the environment to Streamlit within this process: through no file, no argument.
app = st.App(
    Path(__file__).with_name("app.py"),
    secrets=access.secrets(
        _settings,
        port=st.get_option("server.port"),
        address=st.get_option("server.address"),
    ),
    middleware=[]
    if _settings.page_sign_in is SignIn.NOBODY
    else [Middleware(BaseHTTPMiddleware, dispatch=coming_back.come_back)],
)
