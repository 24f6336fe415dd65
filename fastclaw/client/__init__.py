"""The supervisor's side: start a runtime extension, call it, use its processes' sockets."""

from fastclaw.client.remote_process import RemoteProcess
from fastclaw.client.runtime_client import Ran, RuntimeClient, Welcome

__all__ = ["Ran", "RemoteProcess", "RuntimeClient", "Welcome"]
