"""A server that has imported the package and forks a process for each program that a test starts.

Importing torch takes each new process seconds. A forked program runs `main` and ends as Python does: signals, pipes,
exit codes and the flush of closed streams are those of a program from the shell.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import IO

from places import ROOT

_PATIENCE_S = 400
_MOST_BYTES = 1 << 20


class Forked:
    """A started program, with the attributes and methods of `subprocess.Popen` that tests need."""

    def __init__(self, arguments: list[str], environment: dict[str, str], stdin: bytes) -> None:
        self.returncode: int | None = None
        self._answers, theirs = socket.socketpair()
        pipes = [os.pipe() for _ in range(3)]
        files = [pipes[0][0], pipes[1][1], pipes[2][1], theirs.fileno()]
        request = json.dumps([arguments, environment]).encode()
        descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        _server().sendmsg([request], descriptors)
        theirs.close()
        for file in files[:3]:
            os.close(file)
        os.write(pipes[0][1], stdin)
        os.close(pipes[0][1])
        # `os.fsencode` returns the bytes.
        text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        self.stdout, self.stderr = (os.fdopen(pipe[0], **text) for pipe in pipes[1:])
        self._answers.settimeout(_PATIENCE_S)
        self.pid = int(self._answers.recv(16))

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        self._answers.settimeout(0)
        try:
            return self.wait()
        except BlockingIOError:
            return None
        finally:
            self._answers.settimeout(_PATIENCE_S)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None:
            self.returncode = int(self._answers.recv(16))
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for the end and return the rest of stdout and stderr."""
        texts = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            texts[number] = stream.read()

        readers = [threading.Thread(target=read, args=pair) for pair in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        self.wait()
        for reader in readers:
            reader.join()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> Forked:
    """Start `omgsr` with these arguments, input and variables in a process of its own."""
    return Forked([*map(str, arguments)], os.environ | environment, stdin)


@cache
def _server() -> socket.socket:
    """Start the server; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(theirs.fileno())]
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    import omgsr_cli.batch.upscaler
    import omgsr_cli.cli.timestep
    import omgsr_cli.cli.upscale
    import omgsr_cli.models.tiny
    import omgsr_cli.timesteps.measure  # noqa: F401 - for the programs
    from omgsr_cli.cli.app import main

    # Programs need not look through what they share, least of all as they end.
    gc.freeze()
    while True:
        request, descriptors, _, _ = requests.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(4 * 4))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0 if not request else os.WNOHANG)[0]:
                pass
        if not request:
            return
        files = array.array("i", descriptors[0][2])
        if os.fork():
            for file in files:
                os.close(file)
            continue
        # This process waits for the program, so the server need not.
        requests.close()
        program = os.fork()
        if program == 0:
            for number, file in enumerate(files[:3]):
                os.dup2(file, number)
            for file in files:
                os.close(file)
            arguments, environment = json.loads(request)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = ["omgsr", *arguments]
            main()
        for file in files[:3]:
            os.close(file)
        answers = socket.socket(fileno=files[3])
        answers.send(str(program).encode())
        answers.send(str(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
        os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
