import unittest

from planner import NoSlot, Schedule


class Booking(unittest.TestCase):
    def test_a_new_day_is_free(self):
        self.assertEqual(Schedule().free(["ann"]), [("09:00", "17:00")])

    def test_strangers_are_free(self):
        schedule = Schedule()
        schedule.book("ann", "09:00", "17:00")
        self.assertEqual(schedule.first_slot(["zoe"], 60), "09:00")

    def test_backward_meetings_are_refused(self):
        with self.assertRaises(ValueError):
            Schedule().book("ann", "10:00", "10:00")

    def test_pauses_are_kept(self):
        schedule = Schedule(pause=10)
        schedule.book("ann", "09:30", "10:00")
        self.assertEqual(schedule.free(["ann"]), [("09:00", "09:20"), ("10:10", "17:00")])


class Slots(unittest.TestCase):
    def setUp(self):
        self.schedule = Schedule()
        self.schedule.book("ann", "09:00", "10:00")
        self.schedule.book("bob", "10:00", "11:30")
        self.schedule.book("eve", "16:00", "17:00")

    def test_the_first_gap_that_fits(self):
        self.assertEqual(self.schedule.first_slot(["ann", "bob"], 30), "11:30")
        self.assertEqual(self.schedule.first_slot(["bob"], 60), "09:00")

    def test_not_before(self):
        self.assertEqual(self.schedule.first_slot(["bob"], 30, after="09:45"), "11:30")

    def test_a_full_day_says_so(self):
        with self.assertRaises(NoSlot):
            self.schedule.first_slot(["ann", "bob", "eve"], 300)

    def test_the_same_question_is_answered_from_memory(self):
        for _ in range(100):
            self.schedule.first_slot(["ann", "bob"], 30)
            self.schedule.first_slot(["bob", "ann"], 30)
        self.assertEqual(self.schedule.merges, 1)

    def test_an_afternoon_of_questions(self):
        """A day as it happens: a short meeting inside a long one, and a booking between two questions."""
        day = Schedule()
        day.book("ann", "09:00", "12:00")
        day.book("bob", "09:30", "10:00")
        with self.subTest("a short meeting inside a long one"):
            self.assertEqual(day.first_slot(["ann", "bob"], 30), "12:00")
        day.book("bob", "12:00", "13:00")
        with self.subTest("the same question after another booking"):
            self.assertEqual(day.first_slot(["ann", "bob"], 30), "13:00")


if __name__ == "__main__":
    unittest.main()
