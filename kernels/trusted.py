"""What may be believed because nobody but this user can have written it: folders of machine code, and files in them.

    why_not(folder) -> None, or who else could write there;   read_own(path) -> bytes, or PermissionError

Machine code from disk is run, so it must come from a folder that this user owns and no other may write to, below folders that only this user or root can
rename, and from a file of which the same is true. A file that others could have written is never opened as code; whoever asks compiles in memory instead.
Systems without owners (Windows) are believed: their folders for users are the users' own.
"""
from __future__ import annotations

import os
import stat
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def why_not(folder: Path) -> str | None:
    """In a few words, why this folder, which exists and lies at its real path, is not this user's alone; None if it is."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode):
            return f"{folder} is no folder"
        if info.st_uid != os.geteuid():
            return f"{folder} belongs to another user"
        if _others_write(info):
            return f"{folder} can be written by others"
        for parent in folder.parents:
            info = os.stat(parent)
            if info.st_uid not in (0, os.geteuid()):
                return f"{parent} belongs to another user"
            if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:  # sticky, as /tmp is: what lies in it can't be renamed by others
                return f"{parent} can be written by others"
    except OSError as error:
        return f"{folder} can't be looked at ({error.strerror})"
    return None


def read_own(path: Path) -> bytes:
    """A regular file that this user owns and no other may write to, not through a link. OSError: there is none."""
    fd = os.open(path, _FLAGS)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or hasattr(os, "geteuid") and (info.st_uid != os.geteuid() or _others_write(info)):
            raise PermissionError(0, "is not this user's alone", str(path))
        return file.read()


def _others_write(info: os.stat_result) -> bool:
    """Whether somebody besides the owner may write. A group of nobody else, which many systems give each user, is the user."""
    return bool(info.st_mode & stat.S_IWOTH or info.st_mode & stat.S_IWGRP and not _private_group(info.st_gid))


def _private_group(gid: int) -> bool:
    try:
        import grp
        import pwd
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except (ImportError, KeyError):
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
