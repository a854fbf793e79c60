"""Every error reelfs raises on purpose, each with the errno a program on the mount sees.

::

    ReelfsError                 EIO        the root; never raised itself
    |- ConfigError              EINVAL     a setting, flag or file is wrong (names file and key)
    |- Malformed                EINVAL     a name in a grammar of its own that is not in it (a query)
    |- NotFound                 ENOENT     no such object or name
    |  `- OutOfRange            ENOENT     a selection that the video does not have
    |- NotADirectory            ENOTDIR
    |- IsADirectory             EISDIR
    |- Denied                   EACCES     the store refused the credentials
    |- ReadOnly                 EROFS
    |- Refused                  EPERM      a rule of this mount forbids it (the text names the setting)
    |- AlreadyThere             EEXIST
    |- NotEmpty                 ENOTEMPTY  a folder with something in it
    |- NoRoom                   ENOSPC     no room where writes are staged, or in an object's metadata
    |- NotHere                  EXDEV      cannot be moved: programs copy and delete instead
    |- BadName                  EINVAL     a name that no key can carry back
    |- NameTooLong              ENAMETOOLONG
    |- TooBig                   EFBIG      larger than a stated limit
    |- OverBudget             EDQUOT     a limit of the day or of a crawler is reached; the text names it
    |- Stale                    ESTALE     the version an open handle pins is gone
    |- StoreError               EIO        the store answered, wrongly or with a refusal
    |  |- Unavailable           EIO        no usable answer (5xx, 429, reset, timeout): worth a retry
    |  |  `- DeadlineExceeded   ETIMEDOUT  retried until the deadline of the operation
    |  `- BadBody               EIO        a body that is not what was asked for: worth a retry
    |- MediaError               EIO        this file, not the store
    |  |- Damaged               EIO        truncated, lying or hostile media
    |  |- NoMedia               ENODATA    nothing in it that can be derived from
    |  `- Unsupported           EOPNOTSUPP encrypted, unknown codec, no such track
    `- WorkerFailed             EIO        a decoding process died or overran its deadline

"I could not ask" (StoreError) and "there is none" (NotFound) are never mixed: the first is never cached
as the second.
"""

import errno


class ReelfsError(Exception):
    """The root of the tree; `errno` is what a system call on the mount returns."""

    errno: int = errno.EIO


class ConfigError(ReelfsError):
    """A setting, flag or configuration file is wrong; the text names the file and the key."""

    errno = errno.EINVAL


class Malformed(ReelfsError):
    """A name in a grammar of its own, such as a query, that is not in it; the text says what is wrong."""

    errno = errno.EINVAL


class NotFound(ReelfsError):
    """There is no such object or name: the store was asked and said so.

    `ttl` is the number of seconds the answer may be kept.
    """

    errno = errno.ENOENT
    ttl: float = 0.0


class OutOfRange(NotFound):
    """The name is well formed, but the video has no such instant or range."""


class NotADirectory(ReelfsError):
    """A path goes on below something that is a file."""

    errno = errno.ENOTDIR


class IsADirectory(ReelfsError):
    """The bytes of a directory were asked for."""

    errno = errno.EISDIR


class Denied(ReelfsError):
    """The store refused: missing, wrong or expired credentials, or no permission."""

    errno = errno.EACCES


class ReadOnly(ReelfsError):
    """A write where writing is not enabled."""

    errno = errno.EROFS


class Refused(ReelfsError):
    """A rule of this mount forbids it; the text names the setting."""

    errno = errno.EPERM


class AlreadyThere(ReelfsError):
    """A name that is to be created exists."""

    errno = errno.EEXIST


class NotEmpty(ReelfsError):
    """A folder that is to go has something in it."""

    errno = errno.ENOTEMPTY


class NoRoom(ReelfsError):
    """No room where writes are staged, or in the metadata of an object."""

    errno = errno.ENOSPC


class NotHere(ReelfsError):
    """Cannot be moved there in one step: programs then copy and delete."""

    errno = errno.EXDEV


class BadName(ReelfsError):
    """A name that no key can carry back."""

    errno = errno.EINVAL


class NameTooLong(ReelfsError):
    """A name over 255 bytes or a key over 1,024."""

    errno = errno.ENAMETOOLONG


class TooBig(ReelfsError):
    """Larger than a stated limit; the text names the limit."""

    errno = errno.EFBIG


class OverBudget(ReelfsError):
    """A limit on requests or bytes is reached: of a day, or of a crawler; the text names the setting."""

    errno = errno.EDQUOT


class Stale(ReelfsError):
    """The store no longer has the version this handle reads (HTTP 412); open the path again."""

    errno = errno.ESTALE


class StoreError(ReelfsError):
    """The store could not be asked, or answered wrongly; never an answer about the path itself."""


class Unavailable(StoreError):
    """No usable answer this time: 5xx, 429, a reset, a timeout. Worth a retry.

    `retry_after` is the number of seconds the store asked to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(Unavailable):
    """Retried until the deadline of the operation had passed."""

    errno = errno.ETIMEDOUT


class BadBody(StoreError):
    """A body that is not what was asked for: short, other range, other etag, bad checksum."""


class MediaError(ReelfsError):
    """Something about one stored file; that file stays readable as stored."""


class Damaged(MediaError):
    """Truncated, lying or hostile media."""


class NoMedia(MediaError):
    """Nothing in this file that anything can be derived from."""

    errno = errno.ENODATA


class Unsupported(MediaError):
    """Known but not possible: encrypted, a codec without a decoder, no such track."""

    errno = errno.EOPNOTSUPP


class WorkerFailed(ReelfsError):
    """A decoding process died or overran its deadline; the next read gets a fresh one."""
