"""The figures that a dump leaves in the image `stats-dump`, in CRIU's format."""

import struct

FIELDS = {1: "freezing_us", 2: "frozen_us", 3: "memory_read_us", 4: "memory_written_us",
          5: "pages_scanned", 7: "pages_written"}


def varints(data):
    """Field numbers with their value: an integer, or the bytes of a message within."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        value = number()
        if key & 7 == 2:  # length-delimited; the message has no other kind besides varints
            value, at = data[at:at + value], at + value
        yield key >> 3, value


def read(image):
    """The figures of a dump, by name. Two magics and a length come before the message."""
    (size,) = struct.unpack_from("<I", image, 8)
    dump = dict(varints(image[12:12 + size]))[1]
    return {FIELDS[field]: value for field, value in varints(dump) if field in FIELDS}
