"""`python -m ui.cli`: the command `heads`."""

from ui.cli.main import main

main()
