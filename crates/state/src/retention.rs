//! Which checkpoints a sandbox's limits do not keep: a pure computation.

use deltabox_api::Retention;

use crate::id::CheckpointId;
use crate::ledger::{Ledger, Needs};

/// A checkpoint that may have to go.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub id: CheckpointId,
    pub created_unix_ms: u64,
    /// Stays whatever the limits.
    pub exempt: bool,
    pub needs: Needs,
}

/// The checkpoints, given in the order they were made, that do not keep within the limits. They are taken out of the
/// ledger, which is needed for a limit of bytes only.
pub(crate) fn excess(
    limits: &Retention,
    now_unix_ms: u64,
    checkpoints: &[Candidate],
    mut ledger: Option<&mut Ledger>,
) -> Vec<CheckpointId> {
    let mut gone = Vec::new();
    let mut remove = |place: usize, ledger: &mut Option<&mut Ledger>| {
        gone.push(place);
        if let Some(ledger) = ledger {
            ledger.remove(place);
        }
    };
    let mut left = Vec::new();
    for (place, candidate) in checkpoints
        .iter()
        .enumerate()
        .filter(|(_, candidate)| !candidate.exempt)
    {
        let age = now_unix_ms.saturating_sub(candidate.created_unix_ms);
        let old = limits.keep_age_ms.is_some_and(|limit| age > limit);
        let early = limits
            .keep_last
            .is_some_and(|limit| checkpoints.len() - place > limit);
        match old || early {
            true => remove(place, &mut ledger),
            false => left.push(place),
        }
    }
    if let Some(limit) = limits.keep_bytes {
        for place in left {
            if ledger.as_ref().is_none_or(|ledger| ledger.sum().total() <= limit) {
                break;
            }
            remove(place, &mut ledger);
        }
    }
    gone.sort_unstable();
    gone.into_iter()
        .map(|place| checkpoints[place].id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints 0 to 9, made every ten milliseconds, each with ten bytes of its own and ten more that the next one
    /// needs too; 3 and 9 are exempt.
    fn left(limits: Retention) -> Vec<usize> {
        let candidates: Vec<_> = (0..10)
            .map(|number: usize| Candidate {
                id: number.to_string().as_str().into(),
                created_unix_ms: number as u64 * 10,
                exempt: number == 3 || number == 9,
                needs: Needs::nothing(),
            })
            .collect();
        let needs = (0..10u64)
            .map(|number| std::iter::once(number * 20..number * 20 + 30).collect())
            .collect();
        let gone = excess(&limits, 100, &candidates, Some(&mut Ledger::new(needs)));
        (0..10)
            .filter(|number| !gone.contains(&number.to_string().as_str().into()))
            .collect()
    }

    #[test]
    fn the_oldest_go_until_all_limits_hold() {
        let none = Retention::default();
        assert_eq!(left(none), (0..10).collect::<Vec<_>>());
        let last = |keep| Retention {
            keep_last: Some(keep),
            ..none
        };
        assert_eq!(left(last(100)).len(), 10);
        assert_eq!(left(last(4)), [3, 6, 7, 8, 9]);
        assert_eq!(left(last(0)), [3, 9]);
        let age = |keep| Retention {
            keep_age_ms: Some(keep),
            ..none
        };
        assert_eq!(left(age(40)), [3, 6, 7, 8, 9]);
        // All take 210 bytes; what a checkpoint shares with the next one goes with the later of them.
        let bytes = |keep| Retention {
            keep_bytes: Some(keep),
            ..none
        };
        assert_eq!(left(bytes(210)).len(), 10);
        assert_eq!(left(bytes(209)), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(left(bytes(100)), [3, 7, 8, 9]);
        assert_eq!(left(bytes(0)), [3, 9]);
        let both = Retention {
            keep_last: Some(5),
            ..bytes(100)
        };
        assert_eq!(left(both), [3, 7, 8, 9]);
        assert_eq!(
            left(Retention {
                keep_last: Some(2),
                ..bytes(1000)
            }),
            [3, 8, 9]
        );
    }
}
