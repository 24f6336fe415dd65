"""The adapters, each run against its tool: `make test-adapters`, which makes an environment for each."""
