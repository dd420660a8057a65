"""Server-sent events as providers send them: bytes in any cut, the data of each line out."""

LINE_LIMIT_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class LineTooLong(Exception):
    """A provider's line is longer than `LINE_LIMIT_BYTES`. Its stream cannot be read on."""


class SseReader:
    """Cuts a body into data lines.

    Each `data:` line is an event of its own and comes out when its line end arrives: no provider spreads one JSON object
    over several, and some leave out the blank line. Event names are not needed, since what they say is also in the data.
    A bare line that begins with `{` is data too: proxies put their errors into a stream like that.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        rest = self._rest
        if rest:
            rest += data
            if b"\n" not in data:
                if len(rest) > LINE_LIMIT_BYTES:
                    raise LineTooLong
                return []
            data = bytes(rest)
            rest.clear()
        lines = data.split(b"\n")
        tail = lines.pop()
        if tail:
            rest += tail
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                found.append(line[5:])
            elif line.startswith((b"{", _BOM)):
                found += _bare(line)
            if len(line) > LINE_LIMIT_BYTES:
                raise LineTooLong
        if len(tail) > LINE_LIMIT_BYTES:
            raise LineTooLong
        return found

    def end(self) -> list[bytes]:
        """The data of a last line without line end."""
        return self.feed(b"\n") if self._rest else []


def _bare(line: bytes) -> list[bytes]:
    line = line.removeprefix(_BOM)
    if line.startswith(b"data:"):
        return [line[5:]]
    return [line] if line.startswith(b"{") else []
