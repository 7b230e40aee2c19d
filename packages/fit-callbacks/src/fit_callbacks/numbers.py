"""Write numbers and times in few characters."""

from __future__ import annotations

import math

__all__ = ["clock", "duration", "file_size", "short"]


def short(value: float, width: int = 9) -> str:
    """Return a number with four significant digits, or fewer if it must fit a width."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    if 1e3 <= abs(value) < 1e6 and len(text := f"{value:.0f}") <= width:
        return text
    for digits in (4, 3, 2, 1):
        for text in (f"{value:{'#' if digits > 1 else ''}.{digits}g}".rstrip("."), f"{value:.{digits - 1}e}"):
            text = text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e") if width < 9 else text
            if len(text) <= width:
                return text
    return f"{value:.0e}"


def clock(seconds: float, digits: int = 1) -> str:
    """Return a time such as 0.8s, 12.3s, 2:05 or 1:02:05, with this many digits below a second."""
    if seconds < 59.5:
        return f"{seconds:.{digits}f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a duration such as 310 us, 2.4 ms, 12.3 s or 2:05."""
    if seconds < 0.9995e-3:
        return f"{1e6 * seconds:.0f} us"
    if seconds < 0.9995:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def file_size(size: float) -> str:
    """Return a number of bytes such as 512 B, 20.8 kB or 1.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
