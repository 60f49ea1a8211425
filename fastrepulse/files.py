"""Files that appear whole or not at all."""

import errno
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSUPPORTED = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF),
    *(errno.EACCES, errno.EPERM, errno.EISDIR),
}
"""Error numbers of a file system that cannot synchronise a file or a folder."""

PREFIX, SUFFIX = ".fastrepulse-", ".partial"
"""Names of the folders of unfinished files."""

log = logging.getLogger("fastrepulse")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file replaces `path` if the context ends without an error.

    Missing folders are made. The file has the mode that the umask gives to new files.

    Raises:
        OSError: If writing fails; names the file. An existing file stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder, so that a library's own temporary files are removed with it
        with tempfile.TemporaryDirectory(
            prefix=PREFIX, suffix=SUFFIX, dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            partial = Path(folder, path.name)
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            # Some libraries write files that only their owner can read; some disks have no modes
            with suppress(OSError):
                partial.chmod(mode)
            os.replace(partial, path)
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{str(path)!r} cannot be written: {error}") from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8")


def remove_unfinished(folder: Path) -> None:
    """Removes what a process left in a folder that was killed while writing."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk and survives a power cut.

    A file system that cannot do so gives one warning.
    """
    if os.name == "nt":
        return  # Windows cannot open a folder
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_of(error.strerror)


@functools.cache
def _warn_of(reason: str) -> None:
    log.warning("this file system cannot confirm that files are on the disk: %s", reason)
