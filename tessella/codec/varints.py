"""Numbers of any size as bytes, and a reader that never goes past the end."""

from __future__ import annotations

from tessella.errors import BitstreamError

LONGEST = 9
"""Most bytes of a number, which then is below 2^63."""


def varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first; all bytes but the last have bit 7 set.

    >>> varint(300).hex()
    'ac02'
    """
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class ByteReader:
    """Reads the fields of a file one after another.

    Args:
        data: the bytes.
        stop: where the fields end.
    """

    def __init__(self, data: bytes, stop: int) -> None:
        self.data = data
        self.place = 0
        self.stop = stop

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return self.stop - self.place

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes.

        Raises:
            BitstreamError: when there are fewer; ``what`` names the field.
        """
        if count > self.left:
            raise BitstreamError(f"the file is damaged: it ends within {what}")
        start = self.place
        self.place += count
        return self.data[start : self.place]

    def number(self, what: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
        """The next number.

        Raises:
            BitstreamError: when it is cut short, longer than necessary, or out of bounds.
        """
        value = 0
        for place in range(LONGEST):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                break
        # A number has one way to be written, so that equal archives are equal bytes.
        if byte >= 0x80 or (byte == 0 and place > 0):
            raise BitstreamError(f"the file is damaged: {what} is no number")
        if not least <= value <= most:
            raise BitstreamError(f"the file is damaged: {what} is {value:,}")
        return value
