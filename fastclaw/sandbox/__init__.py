"""Sandboxes for Python programs: start one, run commands in it, read and write its files.

    async with Host() as host:
        async with await host.start("python:3.12") as box:
            done = await box.run(["python", "-c", "print(6 * 7)"])
            print(done.text)

`fastclaw.sandbox.sync` has the same without `await`.
"""

from fastclaw.client import Progress
from fastclaw.options import Network, Workspace
from fastclaw.sandbox.done import CommandFailed, Done, SandboxGone
from fastclaw.sandbox.file_errors import FileTooLarge
from fastclaw.sandbox.host import Host
from fastclaw.sandbox.process import Process
from fastclaw.sandbox.sandbox import Sandbox

__all__ = [
    "CommandFailed",
    "Done",
    "FileTooLarge",
    "Host",
    "Network",
    "Process",
    "Progress",
    "Sandbox",
    "SandboxGone",
    "Workspace",
]
