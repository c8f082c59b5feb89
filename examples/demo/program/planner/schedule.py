"""Who is busy when, and when a meeting fits."""

from .clock import clock, minutes
from .intervals import gaps, merge


class NoSlot(Exception):
    """No time of the day fits."""


class Schedule:
    """The bookings of one day.

    ``opening`` and ``closing`` bound the day; ``pause`` is the number of minutes that everybody wants between
    two meetings.
    """

    def __init__(self, opening="09:00", closing="17:00", pause=0):
        self.window = (minutes(opening), minutes(closing))
        if self.window[0] >= self.window[1]:
            raise ValueError(f"the day ends before it begins: {opening} to {closing}")
        self.pause = pause
        self.bookings = {}
        self.merges = 0
        self._busy = {}

    def book(self, person, start, end):
        """Books ``person`` from ``start`` to ``end``. Bookings may overlap: invitations are like that."""
        interval = (minutes(start), minutes(end))
        if interval[0] >= interval[1]:
            raise ValueError(f"the meeting ends before it begins: {start} to {end}")
        self.bookings.setdefault(person, []).append(interval)
        self._busy.pop(person, None)

    def busy(self, people):
        """Merged intervals in which at least one of ``people`` is busy. Asked often, so it is remembered."""
        key = frozenset(people)
        if key not in self._busy:
            self.merges += 1
            booked = [interval for person in key for interval in self.bookings.get(person, [])]
            self._busy[key] = merge((start - self.pause, end + self.pause) for start, end in booked)
        return self._busy[key]

    def free(self, people):
        """Intervals in which all of ``people`` are free."""
        return [(clock(start), clock(end)) for start, end in gaps(self.window, self.busy(people))]

    def first_slot(self, people, length, after=None):
        """Start of the earliest slot of ``length`` minutes for all of ``people``, not before ``after``."""
        if length <= 0:
            raise ValueError(f"a meeting takes time: {length} minutes")
        earliest = self.window[0] if after is None else minutes(after)
        for start, end in gaps(self.window, self.busy(people)):
            start = max(start, earliest)
            if end - start >= length:
                return clock(start)
        raise NoSlot(f"{', '.join(sorted(people))}: no {length} minutes left")
