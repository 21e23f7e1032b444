"""The loops of columns and tables. Whoever needs one imports it where it is called: Numba is dear to import, and only a
counter's hot path has a use for it.
"""

from typing import Final

import numpy as np

from app.columns.compiled import BYTE_ROWS, BYTES, FLAGS, HALVES, INT, INTS, SHORTS, WORDS, compiled, filled, inlined
from app.columns.texts import ABSENT

_M: Final = np.uint64(0xC6A4A7935BD1E995)
_R: Final = np.uint64(47)
_WORD: Final = 8
_ZERO, _ONE = np.uint64(0), np.uint64(1)
# The mask of the first so many bytes of a little-endian word.
MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)


@compiled(WORDS, INTS, INTS, WORDS, filled(WORDS))
def hash_all(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray, seeds: np.ndarray, hashes: np.ndarray) -> None:
    """MurmurHash64A of each text, which its buffer's words hold; `seeds`: one for each, or one for all."""
    for row in range(len(starts)):
        length = lengths[row]
        if length == ABSENT:
            hashes[row] = _ZERO
            continue
        held = seeds[row if len(seeds) > 1 else 0] ^ (np.uint64(length) * _M)
        at = starts[row]
        end = at + length
        while at + _WORD <= end:
            mixed = words[at] * _M
            held = (held ^ ((mixed ^ (mixed >> _R)) * _M)) * _M
            at += _WORD
        if at < end:
            held = (held ^ (words[at] & MASKS[end - at])) * _M
        held = (held ^ (held >> _R)) * _M
        held ^= held >> _R
        hashes[row] = held if held != _ZERO else _ONE


@inlined
def is_same(left: np.ndarray, left_at: int, right: np.ndarray, right_at: int, size: int) -> bool:
    """Whether so many bytes are the same in two buffers, which are given as words; PAD bytes must stand behind them."""
    differ = _ZERO
    at = 0
    while size - at >= _WORD and differ == _ZERO:
        differ = left[left_at + at] ^ right[right_at + at]
        at += _WORD
    if size - at > 0 and differ == _ZERO:
        differ = (left[left_at + at] ^ right[right_at + at]) & MASKS[size - at]
    return differ == _ZERO


@compiled(BYTES, INTS, INTS, filled(BYTE_ROWS))
def copy_all(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray, copies: np.ndarray) -> None:
    """Copies each text into its row of `copies`."""
    for row in range(len(starts)):
        for at in range(lengths[row]):
            copies[row, at] = buffer[starts[row] + at]


@compiled(WORDS, filled(WORDS), filled(INTS))
def unlikely(codes: np.ndarray, slots: np.ndarray, rows: np.ndarray) -> int:
    """How many codes are not in their slot, and their rows; takes them in there."""
    count = 0
    last_bits = np.uint64(len(slots) - 1)
    for row in range(len(codes)):
        code = codes[row]
        slot = code & last_bits
        if slots[slot] != code:
            slots[slot] = code
            rows[count] = row
            count += 1
    return count


@inlined
def _first_from(values: np.ndarray, each: int, low: int, high: int) -> int:
    """The place, of `low` to `high`, of the first sorted value that is not smaller than one."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < each:
            low = middle + 1
        else:
            high = middle
    return low


@compiled(WORDS, WORDS, FLAGS, filled(FLAGS))
def look_all(hashes: np.ndarray, wanted: np.ndarray, marks: np.ndarray, found: np.ndarray) -> None:
    """Which hashes are among the wanted, which are sorted; `marks`: which last bits a wanted one has."""
    last_bits = np.uint64(len(marks) - 1)
    for row in range(len(hashes)):
        each = hashes[row]
        if not marks[each & last_bits]:
            continue
        low = _first_from(wanted, each, 0, len(wanted))
        found[row] = low < len(wanted) and wanted[low] == each


def _find_all(
    wanted: np.ndarray,
    starts: np.ndarray,
    rest: np.ndarray,
    shift: int,
    mask: int,
    rows: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> int:
    """How many of the wanted upper halves of hashes an `Index` holds; their rows, and the first place and the last + 1 of each."""
    count = 0
    for row in range(len(wanted)):
        bucket = wanted[row] >> shift
        low, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
        each = wanted[row] & mask  # what `rest` has of it
        low = _first_from(rest, each, low, end)
        if low == end or rest[low] != each:
            continue
        high = low + 1
        while high < end and rest[high] == each:
            high += 1
        rows[count], first[count], last[count] = row, low, high
        count += 1
    return count


_FOUND: Final = (INT, INT, filled(INTS), filled(INTS), filled(INTS))
find_halves: Final = compiled(HALVES, HALVES, HALVES, *_FOUND)(_find_all)
find_shorts: Final = compiled(HALVES, HALVES, SHORTS, *_FOUND)(_find_all)
