"""Speed and memory against named references, each run in the same call; `make bench-...`."""
