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
        paths = [f"{self.directory.name}/{name}.{kind}" for kind in ("io", "err")]
        self.servers[name] = [await asyncio.start_unix_server(echo, path) for path in paths]
        return ExecResult(process_id=name, stdio_addr=paths[0], stderr_addr=paths[1])

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


RuntimeHarness(EchoRuntime()).run()
