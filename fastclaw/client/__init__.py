"""The supervisor's side: start a runtime extension, call it, use its processes' sockets."""

from fastclaw.client.environment import Environment, Ran
from fastclaw.client.file_stream import FileStream
from fastclaw.client.remote_process import RemoteProcess
from fastclaw.client.runtime_client import RuntimeClient, Welcome
from fastclaw.images import ImageResult
from fastclaw.progress import Progress

__all__ = ["Environment", "FileStream", "ImageResult", "Progress", "Ran", "RemoteProcess", "RuntimeClient", "Welcome"]
