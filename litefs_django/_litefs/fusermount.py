"""Stands in for fusermount3, for LiteFS run by root where libfuse is not installed.

    fusermount3 -o OPTIONS -- DIRECTORY   mounts, and sends the /dev/fuse descriptor over the socket $_FUSE_COMMFD
    fusermount3 -u [-z] DIRECTORY         unmounts; -z at once, even while files are open

That is all that LiteFS uses (bazil.org/fuse, mount_linux.go and unmount_linux.go; fusermount.c of libfuse 3 does
the same for root). Exit code 1 and a line on stderr when it fails. Only the standard library: it starts without
site-packages, for LiteFS waits for it.
"""

from __future__ import annotations

import ctypes
import getopt
import os
import shlex
import socket
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MS_NOSUID_NODEV = 2 | 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def install_helper(directory: Path) -> None:
    """Makes the directory (mode 0700), and in it a `fusermount3` that runs this module, to stand in LiteFS's PATH."""
    directory.mkdir(mode=0o700, exist_ok=True)
    command = shlex.join([sys.executable, "-I", "-S", __file__])
    helper = directory / "fusermount3"
    helper.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    helper.chmod(0o755)


def main(arguments: list[str]) -> None:
    """Mounts or unmounts. Raises OSError or ValueError, with the reason for LiteFS's log."""
    flags, rest = getopt.getopt(arguments, "o:uz")
    options = dict(flags)
    if len(rest) != 1:
        raise ValueError(f"one directory is needed, not {rest!r}")
    if "-u" in options:
        _unmount(rest[0], _MNT_DETACH if "-z" in options else 0)
    else:
        _mount(rest[0], options.get("-o", ""))


def _mount(directory: str, options: str) -> None:
    if not (descriptor := os.environ.get("_FUSE_COMMFD", "")).isdigit():
        raise ValueError("$_FUSE_COMMFD is not the number of a socket: this is for LiteFS to run")
    receiver = socket.socket(fileno=int(descriptor))
    try:
        mode = os.stat(directory).st_mode
    except OSError as error:
        # LiteFS knows these words.
        raise ValueError(f"failed to access mountpoint {directory}: {error.strerror}") from error
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    source = "/dev/fuse"
    data = [f"fd={device},rootmode={stat.S_IFMT(mode):o},user_id={os.getuid()},group_id={os.getgid()}"]
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name == "fsname":
            source = value
        else:
            data.append(option)
    if _libc.mount(source.encode(), os.fsencode(directory), b"fuse", _MS_NOSUID_NODEV, ",".join(data).encode()):
        raise _error(f"failed to mount {directory}")
    try:
        socket.send_fds(receiver, [b"\0"], [device])
    except OSError:
        _unmount(directory, _MNT_DETACH)
        raise


def _unmount(directory: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(directory), flags | _UMOUNT_NOFOLLOW):
        raise _error(f"failed to unmount {directory}")


def _error(what: str) -> ValueError:
    return ValueError(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, getopt.GetoptError) as failure:
        sys.exit(f"fusermount3: {failure}")
