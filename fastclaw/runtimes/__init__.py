"""Environments: what each sets up, and the process pool that all of them share."""
