import unittest

from planner import clock, minutes


class Clock(unittest.TestCase):
    def test_times_are_minutes(self):
        self.assertEqual(minutes("00:00"), 0)
        self.assertEqual(minutes("09:30"), 570)
        self.assertEqual(minutes("24:00"), 1440)

    def test_minutes_are_times(self):
        for text in ("00:00", "00:59", "09:30", "23:59", "24:00"):
            self.assertEqual(clock(minutes(text)), text)

    def test_nonsense_is_refused(self):
        for text in ("", "9", "9:60", "24:01", "-1:00", "a:b", "1:2:3"):
            with self.assertRaises(ValueError, msg=text):
                minutes(text)

    def test_other_days_are_refused(self):
        for total in (-1, 1441):
            with self.assertRaises(ValueError):
                clock(total)


if __name__ == "__main__":
    unittest.main()
