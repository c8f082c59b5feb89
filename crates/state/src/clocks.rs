//! The monotonic and the boot clock, which begin anew with the machine. A sandbox that comes back must not see them go
//! back: it gets a time namespace in which they are ahead.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Both clocks, or how far they are ahead of the machine's, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clocks {
    pub monotonic: i64,
    pub boottime: i64,
}

/// What a checkpoint knows of the clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// What the sandbox saw.
    pub seen: Clocks,
    /// How far that was ahead of the machine's.
    pub ahead: Clocks,
}

impl Clocks {
    /// The machine's clocks.
    pub fn now() -> Self {
        let nanoseconds = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec.saturating_mul(1_000_000_000) + time.tv_nsec
        };
        Self {
            monotonic: nanoseconds(ClockId::Monotonic),
            boottime: nanoseconds(ClockId::Boottime),
        }
    }

    fn each(self, other: Self, with: impl Fn(i64, i64) -> i64) -> Self {
        Self {
            monotonic: with(self.monotonic, other.monotonic),
            boottime: with(self.boottime, other.boottime),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        self.each(other, i64::saturating_sub)
    }

    /// How far ahead of the machine's (`now`) clocks have to be that have shown all these moments.
    pub fn ahead_for(moments: impl IntoIterator<Item = Moment>, now: Self) -> Self {
        let seen = moments.into_iter().map(|moment| moment.seen);
        let latest = seen.fold(now, |latest, seen| latest.each(seen, i64::max));
        latest.minus(now)
    }

    /// The moment at which clocks so far ahead are now.
    pub fn moment(self) -> Moment {
        Moment {
            seen: Self::now().each(self, i64::saturating_add),
            ahead: self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic: i64, boottime: i64) -> Moment {
        Moment {
            seen: Clocks { monotonic, boottime },
            ahead: Clocks::default(),
        }
    }

    #[test]
    fn clocks_are_ahead_only_where_they_would_go_back() {
        let now = at(50, 60).seen;
        assert_eq!(Clocks::ahead_for([], now), Clocks::default());
        assert_eq!(
            Clocks::ahead_for([at(10, 20), at(40, 59)], now),
            Clocks::default()
        );
        assert_eq!(Clocks::ahead_for([at(51, 20), at(40, 100)], now), at(1, 40).seen);
    }
}
