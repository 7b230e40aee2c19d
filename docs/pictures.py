"""Makes the pictures of the README: trains the demo in a terminal of its own, and photographs TensorBoard.

Run it with `hatch run pictures`. Needs Chromium on the PATH for TensorBoard; without one, only the terminal is drawn.
"""

import fcntl
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
RUNS = HERE.parent / "runs" / "pictures"
COLUMNS, ROWS = 90, 12


def record(command: list[str]) -> str:
    """Return the output of a command in a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = subprocess.Popen(command, stdout=slave, stderr=slave, cwd=HERE.parent)
    os.close(slave)
    written = b""
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(master)
    if process.wait():
        sys.exit(written.decode())
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that stand on the screen: a carriage return goes back, what follows is written over what was there."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", written).split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def terminal(written: str, command: str, path: Path) -> None:
    """Draw the screen as it was in the middle of an epoch."""
    bars = list(re.finditer(r"\rEpoch [^\r\n]*?(\d+)%\|[^\r\n]*?loss=[^\r\n]*", written))
    late = [bar for bar in bars[len(bars) * 2 // 3 :] if 40 <= int(bar[1]) <= 80]
    cut = late[0].end() if late else len(written)
    lines = [f"$ {command}", *screen(written[:cut])]
    lines = lines[:5] + lines[-ROWS:] if len(lines) > ROWS + 5 else lines
    rows = "".join(
        f'<text x="16" y="{44 + 19 * number}" xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    width, height = 16 * 2 + 7.83 * COLUMNS, 19 * len(lines) + 44
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}">'
        f'<rect width="100%" height="100%" rx="8" fill="#1e1e2e"/>'
        '<circle cx="18" cy="16" r="5" fill="#f38ba8"/><circle cx="36" cy="16" r="5" fill="#f9e2af"/>'
        '<circle cx="54" cy="16" r="5" fill="#a6e3a1"/>'
        f'<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, monospace" font-size="13" fill="#cdd6f4">{rows}</g>'
        "</svg>\n"
    )


def tensorboard(folder: Path, path: Path) -> None:
    """Photograph TensorBoard's page of a folder."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium on the PATH: TensorBoard's picture stays as it is")
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = ["--logdir", str(folder.relative_to(HERE.parent)), "--port", str(port), "--reload_multifile", "true"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments],
        cwd=HERE.parent,  # The page shows the folder as it is given.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://localhost:{port}/data/plugin/scalars/tags", b"train/loss")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,740"]
        page = f"http://localhost:{port}/#scalars&_smoothingWeight=0&tagFilter=%5E(train%7Cval)/"
        subprocess.run(
            [browser, *options, "--virtual-time-budget=60000", f"--screenshot={path}", page],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, content: bytes) -> None:
    """Ask until the answer holds `content`."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(address) as answer:
                if content in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"{address} did not answer with {content!r} in a minute")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    shutil.rmtree(RUNS, ignore_errors=True)
    demo = [sys.executable, "examples/demo.py", "--out", str(RUNS.relative_to(HERE.parent))]
    written = record(demo).replace(str(RUNS.relative_to(HERE.parent)), "runs/demo")
    terminal(written, "hatch run demo", PICTURES / "terminal.svg")
    shutil.copy(RUNS / "cnn-6000" / "curves.png", PICTURES / "curves.png")
    tensorboard(RUNS, PICTURES / "tensorboard.png")
    print(*screen(written)[-6:], sep="\n")


if __name__ == "__main__":
    main()
