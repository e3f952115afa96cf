"""Make sure that there is a Chromium for the browser tests; run by `make browser`."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def main() -> int:
    if find():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=True
        )
    if find():
        return 0
    sys.stderr.write(
        "the browser tests need Chromium or Chrome on the PATH, and this script can install it "
        "only as root on Debian or Ubuntu; install it and run `make test` again\n"
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
