"""``python3 -m planner data/day.json 30 ann bob``: when can these people meet for so long?"""

import json
import sys

from .schedule import NoSlot, Schedule


def main(arguments):
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    path, length, *people = arguments
    with open(path, encoding="utf-8") as file:
        day = json.load(file)
    schedule = Schedule(day["opening"], day["closing"], day.get("pause", 0))
    for person, meetings in day["bookings"].items():
        for start, end in meetings:
            schedule.book(person, start, end)
    try:
        print(schedule.first_slot(people, int(length)))
    except NoSlot as error:
        print(error, file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
