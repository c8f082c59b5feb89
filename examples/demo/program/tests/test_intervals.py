import unittest

from planner import gaps, merge


class Merge(unittest.TestCase):
    def test_nothing_is_nothing(self):
        self.assertEqual(merge([]), [])

    def test_apart_stays_apart(self):
        self.assertEqual(merge([(1, 2), (5, 6)]), [(1, 2), (5, 6)])

    def test_overlapping_becomes_one(self):
        self.assertEqual(merge([(1, 4), (3, 6)]), [(1, 6)])

    def test_touching_becomes_one(self):
        self.assertEqual(merge([(1, 3), (3, 6)]), [(1, 6)])

    def test_order_does_not_matter(self):
        self.assertEqual(merge([(8, 9), (1, 3), (2, 5)]), [(1, 5), (8, 9)])

    def test_a_chain_becomes_one(self):
        self.assertEqual(merge([(1, 3), (2, 5), (4, 7), (6, 9)]), [(1, 9)])

    def test_two_halves_inside_a_long_one(self):
        self.assertEqual(merge([(0, 9), (2, 3), (3, 9)]), [(0, 9)])

    def test_the_same_twice_is_once(self):
        self.assertEqual(merge([(1, 2), (1, 2)]), [(1, 2)])


class Gaps(unittest.TestCase):
    def test_an_empty_day_is_free(self):
        self.assertEqual(gaps((0, 10), []), [(0, 10)])

    def test_between_meetings(self):
        self.assertEqual(gaps((0, 10), [(2, 3), (5, 6)]), [(0, 2), (3, 5), (6, 10)])

    def test_meetings_at_the_edges(self):
        self.assertEqual(gaps((0, 10), [(0, 3), (8, 10)]), [(3, 8)])

    def test_meetings_over_the_edges(self):
        self.assertEqual(gaps((5, 10), [(0, 6), (9, 20)]), [(6, 9)])

    def test_a_full_day_has_none(self):
        self.assertEqual(gaps((0, 10), [(0, 10)]), [])


if __name__ == "__main__":
    unittest.main()
