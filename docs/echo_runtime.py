import asyncio
import itertools
import tempfile

from fastclaw import ExecRequest, ExecResult, HealthStatus, InitializeParams, InitializeResult, Runtime, RuntimeHarness


class EchoRuntime(Runtime):
    """Every command is an echo of its stdin: a runtime has to start something and say where to find it."""

    async def start(self, params: InitializeParams) -> InitializeResult:
        self.directory, self.servers, self.ids = tempfile.TemporaryDirectory(), {}, itertools.count()
        return InitializeResult(env={"WHERE": "nowhere"})

    async def exec(self, request: ExecRequest) -> ExecResult:
        name = f"echo-{next(self.ids)}"
        stdio, stderr = f"{self.directory.name}/{name}.io", f"{self.directory.name}/{name}.err"
        self.servers[name] = [
            await asyncio.start_unix_server(echo, stdio),
            await asyncio.start_unix_server(silence, stderr),
        ]
        return ExecResult(process_id=name, stdio_addr=stdio, stderr_addr=stderr)

    async def health(self) -> HealthStatus:
        return HealthStatus(status="healthy")

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        for server in self.servers.pop(process_id, ()):
            server.close()

    async def stop(self) -> None:
        for process_id in list(self.servers):
            await self.kill(process_id)
        self.directory.cleanup()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


RuntimeHarness(EchoRuntime()).run()
