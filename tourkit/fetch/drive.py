"""The drive that a folder is on, or will be on: device, file system and free space."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tourkit.units import size_text

_MOUNTS = Path("/proc/mounts")  # Linux only
_NAMES = {"exfat": "exFAT", "vfat": "FAT32", "ntfs": "NTFS", "ntfs3": "NTFS", "fuseblk": "FUSE"}


@dataclass(frozen=True, slots=True)
class Drive:
    """`device` and `filesystem` are None where the system does not list its mounts. `free`: bytes.

    `noexec`: it is mounted so that no program or library in it can be run.
    """

    device: str | None
    filesystem: str | None
    free: int
    noexec: bool = False

    def __str__(self) -> str:
        free = f"{size_text(self.free)} free"
        if self.device is None:
            return free
        kind = "" if self.filesystem in (None, self.device) else f" ({self.filesystem})"
        return f"on {self.device}{kind}, {free}"


def drive_of(path: Path, mounts: Path = _MOUNTS) -> Drive:
    """Return the drive of `path`, or of its nearest folder that exists. `mounts` is in the format of /proc/mounts.

    Raises OSError if the drive cannot be asked for its free space.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    folder = folder.resolve()
    free = shutil.disk_usage(folder).free
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return Drive(None, None, free)
    found: tuple[int, str, str, bool] | None = None
    for line in lines:
        device, point, filesystem, options = (_unescaped(part) for part in line.split(" ")[:4])
        depth = len(Path(point).parts)
        if folder.is_relative_to(point) and (found is None or depth >= found[0]):  # the last of equals hides the others
            found = depth, device, filesystem, "noexec" in options.split(",")
    if found is None:
        return Drive(None, None, free)
    return Drive(found[1], _NAMES.get(found[2], found[2]), free, found[3])


def _unescaped(text: str) -> str:
    """A field of /proc/mounts, which writes spaces, tabs, newlines and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
