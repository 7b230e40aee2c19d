"""A terminal of any width, in which a test runs something, and what was on its screen."""

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
from contextlib import contextmanager


class Screen:
    """The output of a terminal: all of it in `written`, and the visible part in `lines`."""

    def __init__(self, master):
        self._master = master
        self.written = ""

    def resize(self, columns):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self):
        received = b""
        while True:
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # Linux says so when the other end is closed
                break
            if not chunk:
                break
            received += chunk
        self.written = received.decode()

    @property
    def lines(self):
        lines = []
        for line in self.written.split("\n"):
            shown = ""
            for part in line.split("\r"):  # back to the start of the line, and over what is there
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines[:-1]

    @property
    def bars(self):
        return [line for line in self.written.replace("\r", "\n").split("\n") if "%|" in line]


@contextmanager
def terminal(columns, monkeypatch):
    """Let stdout and stderr be a terminal."""
    master, slave = pty.openpty()
    screen = Screen(master)
    screen.resize(columns)
    reader = threading.Thread(target=screen.read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setenv("TERM", os.environ.get("TERM", "xterm"))
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield screen
    reader.join()
    os.close(master)
