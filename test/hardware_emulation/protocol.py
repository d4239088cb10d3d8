"""Packets of Dynamixel Protocol 2.0 (source: ROBOTIS e-Manual): header, byte stuffing, CRC."""

from __future__ import annotations

BROADCAST = 0xFE
PING, READ, WRITE, REBOOT, SYNC_READ, FAST_SYNC_READ, SYNC_WRITE, STATUS = 1, 2, 3, 8, 0x82, 0x8A, 0x83, 0x55
ERROR_INSTRUCTION = 2
HEADER = b"\xff\xff\xfd\x00"


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return table


_CRC = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """Protocol 2.0's CRC-16 (polynomial 0x8005, IBM's BUYPASS) of more data."""
    for byte in data:
        crc = (crc << 8) & 0xFFFF ^ _CRC[(crc >> 8) ^ byte]
    return crc


def packet(motor: int, instruction: int, parameters: bytes) -> bytes:
    """A whole packet, with stuffing and CRC."""
    body = (bytes((instruction,)) + parameters).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    data = HEADER + bytes((motor,)) + (len(body) + 2).to_bytes(2, "little") + body
    return data + crc16(data).to_bytes(2, "little")
