"""Times of day as minutes since midnight."""


def minutes(text):
    """Minutes since midnight for ``HH:MM``; ``24:00`` is the end of the day."""
    try:
        hours, mins = (int(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"not a time of day: {text!r}") from None
    total = hours * 60 + mins
    if not (0 <= hours and 0 <= mins < 60 and total <= 24 * 60):
        raise ValueError(f"not a time of day: {text!r}")
    return total


def clock(total):
    """``HH:MM`` for minutes since midnight."""
    if not 0 <= total <= 24 * 60:
        raise ValueError(f"not within a day: {total} minutes")
    return f"{total // 60:02d}:{total % 60:02d}"
