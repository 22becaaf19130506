"""The memory of keys and values: pages that sequences own, and share where they start alike.

A page holds a fixed number of tokens. A full one is known by its tokens and all before them, so a
prompt that starts like an earlier one (a system message, the turns before) takes its pages over.
Keys and values of a token depend on the tokens up to it alone, bit for bit, so nothing changes
but the time.
"""

from __future__ import annotations

import array
import collections
import ctypes
import itertools
from collections.abc import Sequence

# Fewer tokens than this are read again sooner than they are copied.
_LEAST_COPY = 4
# Pages that a prompt is compared with, the newest first.
_MOST_COMPARED = 256
# Part of all pages that are kept for later prompts while no sequence has them.
_KEPT_PART = 4
# Bytes of pages that are brought into memory before they are needed.
_MOST_PREPARED = 256 << 20

Tokens = tuple[int, ...]


class PagePool:
    """All pages, and the native model that they belong to.

    Memory grows with use, up to `limit` pages. Sequences hold the pool, so the native model ends
    after the last of them, or with them where Python finds them all unused at once.

    Attributes:
        limit: Most pages, those that are kept among them.
        tokens: Tokens of a page.
    """

    def __init__(self, library: ctypes.CDLL, handle: int, *, limit: int) -> None:
        """Own a native model."""
        self._library = library
        self.handle = handle
        self.limit = limit
        self.tokens: int = library.native_page_tokens()
        self._owners: dict[int, int] = {}  # sequences that have a page
        # Full pages, by the number of the page before (0 at the start) and their own tokens.
        self._known: dict[int, dict[Tokens, _Page]] = {}
        self._places: dict[int, tuple[int, Tokens]] = {}  # where a page stands in `_known`
        self._kept: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._numbers = itertools.count(1)

    def __del__(self) -> None:
        """Free the native model.

        Of objects that are unused together any may end first, so sequences may give pages back
        afterwards.
        """
        for page in (*self._owners, *self._kept):
            self._library.native_free_page(self.handle, page)
        self._library.native_destroy(self.handle)
        self.handle = 0

    @property
    def used(self) -> int:
        """Pages that sequences have."""
        return len(self._owners)

    @property
    def kept(self) -> int:
        """Pages that are kept for later prompts."""
        return len(self._kept)

    @property
    def page_bytes(self) -> int:
        """Size of one page."""
        return int(self._library.native_page_bytes(self.handle))

    def take(self) -> int:
        """Return the address of a new page.

        Raises:
            MemoryError: There is none left.
        """
        while self._kept and self.used + self.kept >= self.limit:
            self._forget_oldest()
        page = None
        if self.used + self.kept < self.limit:
            page = self._library.native_new_page(self.handle)
        if page is None:
            raise MemoryError(f"no page for keys and values; {self.used} are in use")
        self._owners[page] = 1
        return int(page)

    def prepare(self) -> bool:
        """Bring a page into memory that a prompt would have to wait for; False when none is left.

        As many are as will be kept in the end, or what a busy start may take.
        """
        most = min(self.limit // _KEPT_PART, _MOST_PREPARED // self.page_bytes)
        unused = min(most, self.limit - self.used) - self.kept
        return unused > 0 and bool(self._library.native_prepare_page(self.handle, unused))

    def share(self, page: int) -> None:
        """Let one more sequence have a page."""
        self._kept.pop(page, None)
        self._owners[page] = self._owners.get(page, 0) + 1

    def give(self, page: int) -> None:
        """Take a page back from a sequence."""
        if not self.handle:
            return  # the native model has ended, and its pages with it
        self._owners[page] -= 1
        if self._owners[page]:
            return
        del self._owners[page]
        if page not in self._places:
            self._library.native_free_page(self.handle, page)
            return
        self._kept[page] = None
        while self.kept > self.limit // _KEPT_PART:
            self._forget_oldest()

    def know(self, before: int, tokens: Tokens, page: int) -> int:
        """Remember what a full page holds; return the number of these tokens at this place."""
        known = self._known.setdefault(before, {}).get(tokens)
        if known is None:
            known = _Page(number=next(self._numbers), address=page)
            self._known[before][tokens] = known
            self._places[page] = (before, tokens)
        return known.number

    def find(self, before: int, tokens: Tokens) -> tuple[int, int] | None:
        """Return number and address of the page with these tokens at this place."""
        known = self._known.get(before, {}).get(tokens)
        return (known.number, known.address) if known else None

    def nearest(self, before: int, tokens: Tokens) -> tuple[int, int]:
        """Return the page at this place that starts most like these tokens, and how far."""
        best, most, start = 0, 0, tokens[:_LEAST_COPY]
        known_here = self._known.get(before, {})
        for other in itertools.islice(reversed(known_here), _MOST_COMPARED):
            if other[:_LEAST_COPY] != start:
                continue
            pairs = zip(other, tokens, strict=False)
            length = next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))
            if length > most:
                best, most = known_here[other].address, length
        return best, most

    def copy(self, page: int, count: int) -> int:
        """Return a new page with the first tokens of another.

        Raises:
            MemoryError: There is none left.
        """
        self.share(page)  # it must not be forgotten for the new one
        try:
            new = self.take()
        finally:
            self.give(page)
        self._library.native_copy_page(self.handle, page, new, count)
        return new

    def forget(self) -> None:
        """Take over no page again that is known by now."""
        while self._kept:
            self._forget_oldest()
        self._known.clear()
        self._places.clear()

    def _forget_oldest(self) -> None:
        page, _ = self._kept.popitem(last=False)
        before, tokens = self._places.pop(page)
        known = self._known[before]
        del known[tokens]
        if not known:
            del self._known[before]
        self._library.native_free_page(self.handle, page)


class _Page:
    """A full page: the number of its place and tokens, and where it lies."""

    def __init__(self, *, number: int, address: int) -> None:
        self.number = number
        self.address = address


class NativeSequence:
    """Tokens that were read, and the pages with their keys and values."""

    def __init__(self, pool: PagePool) -> None:
        """Start empty."""
        self._pool = pool
        self._pages = array.array("Q")
        self._last_full = 0  # number of the last full page
        self._tail: list[int] = []  # tokens behind it
        self.length = 0

    @property
    def address(self) -> int:
        """Where the list of pages lies; valid until it grows."""
        return self._pages.buffer_info()[0]

    def resume(self, prompt: Sequence[int]) -> None:
        """Take over what is known of a prompt, all but its last token; only on an empty one."""
        pool, size = self._pool, self._pool.tokens
        most = len(prompt) - 1  # the last one's logits are not kept
        while self.length + size <= most:
            found = pool.find(self._last_full, tuple(prompt[self.length : self.length + size]))
            if found is None:
                break
            self._last_full, page = found
            pool.share(page)
            self._pages.append(page)
            self.length += size
        rest = tuple(prompt[self.length : min(self.length + size - 1, most)])
        page, count = pool.nearest(self._last_full, rest)
        if count >= _LEAST_COPY:
            try:
                self._pages.append(pool.copy(page, count))
            except MemoryError:
                return
            self._tail = [*rest[:count]]
            self.length += count

    def reserve(self, count: int) -> None:
        """Make room for so many more tokens.

        Raises:
            MemoryError: There is none left.
        """
        while len(self._pages) * self._pool.tokens < self.length + count:
            self._pages.append(self._pool.take())

    def push(self, tokens: Sequence[int]) -> None:
        """These tokens were read."""
        size = self._pool.tokens
        self._tail.extend(tokens)
        self.length += len(tokens)
        while len(self._tail) >= size:
            full, self._tail = tuple(self._tail[:size]), self._tail[size:]
            page = self._pages[(self.length - len(self._tail)) // size - 1]
            self._last_full = self._pool.know(self._last_full, full, page)

    def release(self) -> None:
        """Give all pages back, the last first, which is also the first to be forgotten."""
        while self._pages:
            self._pool.give(self._pages.pop())
        self._tail, self._last_full, self.length = [], 0, 0

    def __del__(self) -> None:
        """A sequence that nobody joined to a batch gives its pages back, too."""
        self.release()
