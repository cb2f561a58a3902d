"""A capture of the packets of one TCP port on loopback: what TCP carried, and what headers took."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

ALL = 3  # ETH_P_ALL
OUTGOING = 4  # PACKET_OUTGOING: on loopback each packet is seen twice
ETHERNET = 14  # bytes of its header
WRAP = 1 << 32
RCVBUFFORCE, ATTACH_FILTER, STATISTICS, PACKET = 33, 26, 6, 263  # of Linux, for setsockopt


def can_capture() -> bool:
    """Whether this process may."""
    with contextlib.suppress(OSError, AttributeError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        return True
    return False


def _filter(port: int) -> bytes:
    """The kernel's filter for packets of a port, so that others' do not fill the buffer."""
    steps = (
        (0x28, 0, 0, 12),  # the kind of packet
        (0x15, 0, 8, 0x0800),  # is IP version 4
        (0x30, 0, 0, 23),  # the protocol
        (0x15, 0, 6, socket.IPPROTO_TCP),
        (0xB1, 0, 0, ETHERNET),  # the length of IP's header
        (0x48, 0, 0, ETHERNET),  # the source's port
        (0x15, 2, 0, port),
        (0x48, 0, 0, ETHERNET + 2),  # the target's
        (0x15, 0, 1, port),
        (0x06, 0, 0, 1 << 18),  # keep
        (0x06, 0, 0, 0),
    )
    return b"".join(struct.pack("HBBI", *step) for step in steps)


@dataclass
class Seen:
    """Bytes that TCP carried to and from the port, each counted once, and of IP's and TCP's headers."""

    up: int = 0
    down: int = 0
    headers: int = 0
    packets: int = 0
    lost: int = 0  # packets that the kernel could not keep for us
    ends: dict[tuple[int, str], int] = field(default_factory=dict)  # where a stream has come to, by port and direction


class Capture:
    """Use it as a context manager, around all connections to the port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seen = Seen()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 1 << 26)
        code = ctypes.create_string_buffer(_filter(self._port))
        program = struct.pack("HL", len(code) // 8, ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, program)
        self._socket.bind(("lo", ALL))
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def until(self, enough: Callable[[Seen], bool], timeout: float = 10.0) -> None:
        """Wait for what is still in the kernel's buffer."""
        deadline = time.monotonic() + timeout
        while not enough(self.seen) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                packet, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if address[2] == OUTGOING:
                self._count(packet[ETHERNET:])
        statistics = self._socket.getsockopt(PACKET, STATISTICS, 8)
        self.seen.lost = struct.unpack("II", statistics)[1]

    def _count(self, packet: bytes) -> None:
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        start = 4 * (packet[0] & 15)
        source, target, sequence = struct.unpack_from("!HHI", packet, start)
        if self._port not in (source, target):
            return
        header = start + 4 * (packet[start + 12] >> 4)
        size, is_syn = len(packet) - header, packet[start + 13] & 2
        way, other = ("up", source) if target == self._port else ("down", target)
        self.seen.packets += 1
        self.seen.headers += header
        key = (other, way)
        if is_syn:
            self.seen.ends[key] = (sequence + 1) % WRAP
        if size and key in self.seen.ends:
            new = (sequence + size - self.seen.ends[key]) % WRAP
            if new < WRAP // 2:  # else it was sent again
                self.seen.ends[key] = (sequence + size) % WRAP
                setattr(self.seen, way, getattr(self.seen, way) + new)
