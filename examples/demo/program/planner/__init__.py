"""A small planner: when can these people meet?"""

from .clock import clock, minutes
from .intervals import gaps, merge
from .schedule import NoSlot, Schedule

__all__ = ["NoSlot", "Schedule", "clock", "gaps", "merge", "minutes"]
