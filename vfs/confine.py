"""What a decoding process gives up: files (Landlock), network, programs and other processes (seccomp).

Both are the kernel's, asked for by plain system calls: a process cannot take them back, and neither can what
a hostile video makes of it. Where the kernel lacks one, the other is used alone, and `confine` says so.

What stays: reading Python, its libraries and those of the system (modules are imported late), the pipes it
has, memory, threads, and one kind of socket: to the daemon, which feeds it bytes. System call numbers and the
layouts are those of linux/landlock.h, linux/seccomp.h and asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

#: The address of a socket whose name the kernel chose: family, a zero byte, five digits (unix(7)).
_AUTOBIND_LENGTH = 2 + 1 + 5

_PR_SET_NO_NEW_PRIVS, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FLAG_TSYNC = 38, 1, 1
_CLONE_THREAD, _AF_UNIX = 0x10000, 1
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

#: AUDIT_ARCH_* and the numbers of system calls, by machine: x86_64 first, then aarch64; -1 = it has none.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CALLS: Mapping[str, tuple[int, int]] = {
    "socket": (41, 198), "connect": (42, 203), "sendto": (44, 206), "clone": (56, 220), "clone3": (435, 435),
    "kill": (62, 129), "tgkill": (234, 131), "seccomp": (317, 277), "prlimit64": (302, 261),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
#: Refused whatever their arguments are.
_REFUSED: Mapping[str, tuple[int, int]] = {
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "kcmp": (312, 272),
    "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "fsopen": (430, 430), "open_tree": (428, 428),
    "chmod": (90, -1), "fchmodat": (268, 53), "chown": (92, -1), "fchownat": (260, 54),
    "utimensat": (280, 88),    "setxattr": (188, 5), "lsetxattr": (189, 6), "memfd_secret": (447, 447),
}  # fmt: skip

#: What a decoder may read: programs' own files, never data of users or of the system's configuration.
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES_READ = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/sys/devices/system")
_DEVICES_WRITE = ("/dev/null", "/dev/dri")

# linux/landlock.h: LANDLOCK_ACCESS_FS_* of each ABI, as bits; handled = refused unless a rule allows it.
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR, _FS_IOCTL_DEV = 1, 2, 4, 8, 1 << 15
_FS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
#: Regular files: read, list, write, truncate, create, remove.
_FS_FILES = _FS_READ_FILE | _FS_READ_DIR | _FS_WRITE_FILE | 1 << 14 | 1 << 8 | 1 << 5
_NET_TCP = 3  # bind and connect, from ABI 4
_SCOPE_SIGNAL = 2  # from ABI 6


def confine(folder: str | None = None) -> tuple[str, ...]:
    """Give up what this process does not need; must be called while it has one thread.

    folder: the one in which files may be read, written, created and removed.
    The names of what holds from now on: `files`, `system calls`. Empty where the kernel has neither.
    """
    done = []
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ()
    machine = platform.machine()
    if sys.maxsize <= 1 << 32 or machine not in _ARCHITECTURES:
        return ()
    if _restrict_files(libc, readable(), folder):
        done.append("files")
    if _filter_calls(libc, *_ARCHITECTURES[machine]):
        done.append("system calls")
    return tuple(done)


def landlock_abi() -> int:
    """The version of Landlock this kernel has, 0 = none."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(_CALLS["landlock_create_ruleset"][0], None, 0, 1)
    return max(0, found)


def readable() -> tuple[str, ...]:
    """The folders and files a decoder may read: where its code comes from."""
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(os.path.isabs, sys.path)}
    own.add(str(Path(__file__).resolve().parents[1]))
    code = {os.path.realpath(path) for path in own} - {"/"}
    return tuple(path for path in sorted({*code, *_SYSTEM, *_DEVICES_READ}) if os.path.exists(path))


def _restrict_files(libc: ctypes.CDLL, paths: Iterable[str], folder: str | None = None) -> bool:
    """Landlock: `paths` may be read, nothing but `folder` may be written, no TCP. False where the kernel has
    it not.
    """
    abi = landlock_abi()
    if abi < 1:
        return False
    handled = _FS_BY_ABI[max(known for known in _FS_BY_ABI if known <= abi)]
    attributes = struct.pack("<QQQ", handled, _NET_TCP if abi >= 4 else 0, _SCOPE_SIGNAL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules: int = libc.syscall(_CALLS["landlock_create_ruleset"][0], attributes[:size], size, 0)
    if rules < 0:
        return False
    try:
        for path in paths:
            _allow(libc, rules, path, _FS_READ_FILE | _FS_READ_DIR | _FS_EXECUTE)
        for path in _DEVICES_WRITE:
            _allow(
                libc, rules, path, (_FS_READ_FILE | _FS_WRITE_FILE | _FS_READ_DIR | _FS_IOCTL_DEV) & handled
            )
        if folder is not None:
            _allow(libc, rules, folder, _FS_FILES & handled)
        return bool(libc.syscall(_CALLS["landlock_restrict_self"][0], rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            access &= ~_FS_READ_DIR
        # struct landlock_path_beneath_attr, packed; type 1 = LANDLOCK_RULE_PATH_BENEATH.
        rule = struct.pack("<Qi", access, descriptor)
        libc.syscall(_CALLS["landlock_add_rule"][0], rules, 1, rule, 0)
    finally:
        os.close(descriptor)


# -- seccomp ------------------------------------------------------------------------------------------------

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4


def _argument(index: int) -> int:
    """Where the low half of an argument stands in struct seccomp_data (little-endian)."""
    return 16 + 8 * index


def program(column: int, architecture: int, pid: int) -> list[Instruction]:
    """The filter as classic BPF. column: of `_CALLS`. What is not named is allowed."""

    def when(name: str, *body: Instruction) -> list[Instruction]:
        """`body` for this system call; each body ends in a return."""
        number = _CALLS[name][column]
        return [(_EQUAL, 0, len(body), number), *body] if number >= 0 else []

    refuse, allow = (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)

    def only_if(index: int, kind: int, value: int) -> tuple[Instruction, ...]:
        """Allowed when an argument is as said."""
        return ((_LOAD, 0, 0, _argument(index)), (kind, 0, 1, value), allow, refuse)

    made: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32, which would be another table of numbers
        (_RETURN, 0, 0, _KILL),
        *when("socket", *only_if(0, _EQUAL, _AF_UNIX)),
        *when("connect", *only_if(2, _EQUAL, _AUTOBIND_LENGTH)),
        *when("sendto", *only_if(4, _EQUAL, 0)),
        *when("clone", *only_if(0, _ANY_BIT, _CLONE_THREAD)),
        *when(
            "clone3", (_RETURN, 0, 0, _ERRNO | _ENOSYS)
        ),  # its flags are in memory: the C library uses clone
        *when("kill", *only_if(0, _EQUAL, pid)),
        *when("tgkill", *only_if(0, _EQUAL, pid)),
        *when("prlimit64", *only_if(0, _EQUAL, 0)),
    ]
    for numbers in _REFUSED.values():
        if numbers[column] >= 0:
            made += [(_EQUAL, 0, 1, numbers[column]), refuse]
    return [*made, allow]


def _filter_calls(libc: ctypes.CDLL, column: int, architecture: int) -> bool:
    """seccomp, for all threads. False where the kernel has it not."""
    instructions = program(column, architecture, os.getpid())
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filters = Program(len(instructions), ctypes.addressof(buffer))
    number = _CALLS["seccomp"][column]
    done: int = libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FLAG_TSYNC, ctypes.byref(filters))
    return done == 0
