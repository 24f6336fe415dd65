"""The supervisor's side: start a runtime extension, call it, use its processes' sockets."""

from fastclaw.client.process import RemoteProcess
from fastclaw.client.results import Ran
from fastclaw.client.session import RuntimeClient, Welcome

__all__ = ["Ran", "RemoteProcess", "RuntimeClient", "Welcome"]
