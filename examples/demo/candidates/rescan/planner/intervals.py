"""Half-open intervals of minutes: ``(start, end)`` holds ``start`` and not ``end``."""


def merge(intervals):
    """The same minutes as few intervals, in order; overlapping and touching ones become one."""
    merged = sorted(intervals)
    at = 0
    while at + 1 < len(merged):
        (start, end), (next_start, next_end) = merged[at], merged[at + 1]
        if next_start > end:
            at += 1
        elif next_end >= end:
            merged[at : at + 2] = [(start, next_end)]
        # A short one inside a long one changes nothing.
    return merged


def gaps(window, busy):
    """What is left of ``window`` between the intervals of ``busy``, which must be merged."""
    opening, closing = window
    free = []
    at = opening
    for start, end in busy:
        if start > at:
            free.append((at, min(start, closing)))
        at = max(at, end)
        if at >= closing:
            break
    else:
        free.append((at, closing))
    return [(start, end) for start, end in free if start < end]
