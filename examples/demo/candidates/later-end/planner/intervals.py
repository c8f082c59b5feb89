"""Half-open intervals of minutes: ``(start, end)`` holds ``start`` and not ``end``."""


def merge(intervals):
    """The same minutes as few intervals, in order; overlapping and touching ones become one."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
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
