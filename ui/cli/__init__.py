"""The command `heads`."""
