"""Hosts of other kinds than this one, and what fastclaw is put through on each: `make test-hosts`."""
