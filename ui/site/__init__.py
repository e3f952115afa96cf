"""The pages that `ui/app.py` lists; Streamlit runs each file as a script."""
