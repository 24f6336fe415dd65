"""fastclaw: a runtime that starts and holds agent worker processes, for supervisors that speak JSON-RPC."""

__version__ = "0.1.0"
