//! Who has to go, who stays, and who has to be made again, and by whom: decided before anything is touched.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::ids::InsidePid;
use crate::image::{Identity, Image, ProcessImage, ZombieImage};

/// PID 1 of the sandbox.
pub const INIT: InsidePid = InsidePid(1);

/// A live process, as far as the plan needs it.
#[derive(Debug, Clone)]
pub struct Present {
    /// Its id.
    pub pid: InsidePid,
    /// Its parent.
    pub parent: InsidePid,
    /// Its session.
    pub session: InsidePid,
    /// Which program it is.
    pub identity: Identity,
    /// Nothing has changed in it that cannot be changed back from outside (credentials, seccomp, ...), compared with
    /// the process of the same identity in the image.
    pub reversible: bool,
}

/// How a process gets the right parent and session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Init clones it.
    Init,
    /// Its parent clones it.
    Parent(InsidePid),
    /// A child of init clones it as its own sibling (`CLONE_PARENT`): an orphan in the session of that process.
    Sibling(InsidePid),
    /// A member of its session, which is not a child of init, clones a process that clones it and ends.
    Orphan(InsidePid),
}

/// One process to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// Its id.
    pub pid: InsidePid,
    /// Who makes it.
    pub by: By,
    /// It starts a session of its own.
    pub leads_session: bool,
    /// It is only needed while others are made (the leader of a session that has ended since).
    pub temporary: bool,
}

/// What has to be done to the processes as such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Live processes to be ended.
    pub kill: Vec<InsidePid>,
    /// Live processes that are changed in place.
    pub keep: Vec<InsidePid>,
    /// Live zombies to be waited for.
    pub reap: Vec<ZombieImage>,
    /// Processes to be made, in this order.
    pub births: Vec<Birth>,
    /// Zombies to be made.
    pub deaths: Vec<ZombieImage>,
}

impl Plan {
    /// Whether somebody is made whose id this is: until then, it must not be the id of a group either.
    #[must_use]
    pub fn makes(&self, pid: InsidePid) -> bool {
        self.births.iter().any(|birth| birth.pid == pid) || self.deaths.iter().any(|zombie| zombie.pid == pid)
    }
}

/// Why a tree cannot be made again.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The kernel offers no way to this combination.
    #[error(
        "process {pid} cannot be created again: it is in session {session}, which its parent {parent} has left"
    )]
    ForeignSession {
        pid: InsidePid,
        session: InsidePid,
        parent: InsidePid,
    },
}

/// Compares what is there with what is wanted.
pub fn plan(present: &[Present], zombies: &[ZombieImage], image: &Image) -> Result<Plan, PlanError> {
    let kept = who_stays(present, zombies, image);
    let mut plan = Plan::default();
    let stay = image.processes.iter().map(|wanted| wanted.pid);
    plan.keep.extend(stay.filter(|pid| kept.contains(pid)));
    plan.kill.extend(
        present
            .iter()
            .map(|process| process.pid)
            .filter(|pid| !kept.contains(pid)),
    );
    let mut sessions = Sessions::new(image, &kept);
    let mut waiting: Vec<&ProcessImage> = image.processes.iter().map(|wanted| &**wanted).collect();
    waiting.retain(|wanted| !kept.contains(&wanted.pid));
    while !waiting.is_empty() {
        let mut later = Vec::new();
        let before = waiting.len();
        for wanted in waiting {
            if sessions.are_ready_for(wanted, image) {
                sessions.birth(wanted, &mut plan.births)?;
            } else {
                later.push(wanted);
            }
        }
        if later.len() == before {
            return Err(sessions.impossible(later[0]));
        }
        waiting = later;
    }
    plan_zombies(zombies, image, &kept, &mut plan);
    Ok(plan)
}

/// A process can stay if it is the same, its parent stays, and its session needs not be begun again: the kernel gives
/// the id of a session (and of a group) to nobody while it has members.
fn who_stays(present: &[Present], zombies: &[ZombieImage], image: &Image) -> HashSet<InsidePid> {
    let live: HashMap<InsidePid, &Present> = present.iter().map(|process| (process.pid, process)).collect();
    let same = |wanted: &ProcessImage| live.get(&wanted.pid).is_some_and(|now| can_stay(now, wanted));
    let mut kept: HashSet<InsidePid> = image
        .processes
        .iter()
        .filter(|wanted| same(wanted))
        .map(|wanted| wanted.pid)
        .collect();
    loop {
        let stays = |pid: InsidePid| kept.contains(&pid);
        let leads_on = |session: InsidePid| {
            let wanted_dead = image.zombies.iter().find(|zombie| zombie.pid == session);
            stays(session)
                || wanted_dead.map_or_else(
                    || image.processes.iter().all(|wanted| wanted.pid != session),
                    |wanted| stays(wanted.parent) && zombies.contains(wanted),
                )
        };
        let leaving: Vec<InsidePid> = image
            .processes
            .iter()
            .filter(|wanted| stays(wanted.pid))
            .filter(|wanted| {
                let orphaned = !is_init(wanted.parent) && !stays(wanted.parent);
                orphaned || !(wanted.session == wanted.pid || leads_on(wanted.session))
            })
            .map(|wanted| wanted.pid)
            .collect();
        if leaving.is_empty() {
            return kept;
        }
        for pid in leaving {
            kept.remove(&pid);
        }
    }
}

/// Zombies belong to their parents, and keep the ids of their groups and sessions taken, too.
fn plan_zombies(zombies: &[ZombieImage], image: &Image, kept: &HashSet<InsidePid>, plan: &mut Plan) {
    let born = |pid: InsidePid| plan.births.iter().any(|birth| birth.pid == pid);
    let can_stay = |zombie: &ZombieImage| {
        image.zombies.contains(zombie)
            && kept.contains(&zombie.parent)
            && !born(zombie.group)
            && !born(zombie.session)
    };
    let (stay, reap): (Vec<_>, Vec<_>) = zombies.iter().partition(|zombie| can_stay(zombie));
    let missing = image.zombies.iter().filter(|wanted| !stay.contains(wanted));
    plan.deaths = missing.cloned().collect();
    plan.reap = reap.into_iter().cloned().collect();
}

fn is_init(pid: InsidePid) -> bool {
    pid == INIT || pid == InsidePid(0)
}

fn can_stay(now: &Present, wanted: &ProcessImage) -> bool {
    now.reversible
        && now.identity == wanted.identity
        && now.session == wanted.session
        && (now.parent == wanted.parent || (is_init(now.parent) && is_init(wanted.parent)))
}

/// Who is in which session while the tree is being made.
struct Sessions {
    /// Of every process that is there by now: session and whether init is its parent.
    members: Vec<(InsidePid, InsidePid, bool)>,
}

impl Sessions {
    fn new(image: &Image, kept: &HashSet<InsidePid>) -> Sessions {
        let there = image
            .processes
            .iter()
            .filter(|process| kept.contains(&process.pid));
        Sessions {
            members: there
                .map(|process| (process.pid, process.session, is_init(process.parent)))
                .collect(),
        }
    }

    /// Whether everybody is there who has a part in making the process: its parent, or a member of its session if
    /// that has a leader.
    fn are_ready_for(&self, wanted: &ProcessImage, image: &Image) -> bool {
        if !is_init(wanted.parent) {
            return self.members.iter().any(|member| member.0 == wanted.parent);
        }
        let is_led = image.processes.iter().any(|other| other.pid == wanted.session);
        wanted.session == wanted.pid
            || !is_led
            || self.members.iter().any(|member| member.1 == wanted.session)
    }

    fn impossible(&self, wanted: &ProcessImage) -> PlanError {
        PlanError::ForeignSession {
            pid: wanted.pid,
            session: wanted.session,
            parent: wanted.parent,
        }
    }

    fn birth(&mut self, wanted: &ProcessImage, births: &mut Vec<Birth>) -> Result<(), PlanError> {
        let leads_session = wanted.session == wanted.pid;
        let by = if !is_init(wanted.parent) {
            let parent = self.members.iter().find(|member| member.0 == wanted.parent);
            let inherits = parent.is_some_and(|parent| parent.1 == wanted.session);
            if !leads_session && !inherits {
                return Err(self.impossible(wanted));
            }
            By::Parent(wanted.parent)
        } else if leads_session || wanted.session == InsidePid(0) || wanted.session == INIT {
            By::Init
        } else {
            self.maker_of_orphan(wanted.session, births)
        };
        births.push(Birth {
            pid: wanted.pid,
            by,
            leads_session,
            temporary: false,
        });
        self.members
            .push((wanted.pid, wanted.session, is_init(wanted.parent)));
        Ok(())
    }

    /// Who makes a child of init in `session`; the leader is made for the time being if there is nobody in it.
    fn maker_of_orphan(&mut self, session: InsidePid, births: &mut Vec<Birth>) -> By {
        let mut members = self.members.iter().filter(|member| member.1 == session);
        if let Some(member) = members.clone().find(|member| member.2) {
            return By::Sibling(member.0);
        }
        if let Some(member) = members.next() {
            return By::Orphan(member.0);
        }
        births.push(Birth {
            pid: session,
            by: By::Init,
            leads_session: true,
            temporary: true,
        });
        self.members.push((session, session, true));
        By::Sibling(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_images::process;
    use std::sync::Arc;

    fn image(processes: &[(i32, i32, i32)]) -> Image {
        let processes = processes
            .iter()
            .map(|&(pid, parent, session)| Arc::new(process(pid, parent, session)));
        Image {
            processes: processes.collect(),
            ..Image::default()
        }
    }

    fn present(processes: &[(i32, i32, i32)]) -> Vec<Present> {
        let one = |&(pid, parent, session): &(i32, i32, i32)| Present {
            pid: InsidePid(pid),
            parent: InsidePid(parent),
            session: InsidePid(session),
            identity: process(pid, parent, session).identity,
            reversible: true,
        };
        processes.iter().map(one).collect()
    }

    fn birth(pid: i32, by: By, leads_session: bool) -> Birth {
        Birth {
            pid: InsidePid(pid),
            by,
            leads_session,
            temporary: false,
        }
    }

    #[test]
    fn the_same_tree_stays() {
        let tree = [(10, 1, 10), (11, 10, 10), (12, 11, 10)];
        let plan = plan(&present(&tree), &[], &image(&tree)).unwrap();
        assert_eq!(plan.keep.len(), 3);
        assert!(plan.kill.is_empty() && plan.births.is_empty());
    }

    #[test]
    fn what_is_new_goes_and_what_is_gone_returns() {
        let now = present(&[(10, 1, 10), (13, 10, 10)]);
        let plan = plan(&now, &[], &image(&[(10, 1, 10), (11, 10, 10)])).unwrap();
        assert_eq!(plan.keep, [InsidePid(10)]);
        assert_eq!(plan.kill, [InsidePid(13)]);
        assert_eq!(plan.births, [birth(11, By::Parent(InsidePid(10)), false)]);
    }

    #[test]
    fn children_of_what_is_made_again_are_made_again() {
        let mut now = present(&[(10, 1, 10), (11, 10, 10), (12, 11, 12)]);
        now[1].reversible = false;
        let plan = plan(&now, &[], &image(&[(10, 1, 10), (11, 10, 10), (12, 11, 12)])).unwrap();
        assert_eq!(plan.kill, [InsidePid(11), InsidePid(12)]);
        let births = [
            birth(11, By::Parent(InsidePid(10)), false),
            birth(12, By::Parent(InsidePid(11)), true),
        ];
        assert_eq!(plan.births, births);
    }

    #[test]
    fn orphans_get_their_session_back() {
        // 20 is an orphan of the living session 10, 30 of the session 29 whose leader is gone.
        let plan = plan(
            &[],
            &[],
            &image(&[(10, 1, 10), (20, 1, 10), (30, 1, 29), (31, 1, 29)]),
        )
        .unwrap();
        let leader = Birth {
            temporary: true,
            ..birth(29, By::Init, true)
        };
        let births = [
            birth(10, By::Init, true),
            birth(20, By::Sibling(InsidePid(10)), false),
            leader,
            birth(30, By::Sibling(InsidePid(29)), false),
            birth(31, By::Sibling(InsidePid(29)), false),
        ];
        assert_eq!(plan.births, births);
    }

    #[test]
    fn orphans_of_a_session_below_another_process_come_after_its_leader() {
        // 20 is an orphan of the session of 11, whose leader is a child of 10.
        let tree = image(&[(10, 1, 10), (20, 1, 11), (11, 10, 11)]);
        let births = [
            birth(10, By::Init, true),
            birth(11, By::Parent(InsidePid(10)), true),
            birth(20, By::Orphan(InsidePid(11)), false),
        ];
        assert_eq!(plan(&[], &[], &tree).unwrap().births, births);
    }

    #[test]
    fn an_impossible_session_is_an_error() {
        let error = plan(&[], &[], &image(&[(10, 1, 10), (11, 10, 7)])).unwrap_err();
        assert!(matches!(
            error,
            PlanError::ForeignSession {
                pid: InsidePid(11),
                ..
            }
        ));
    }

    #[test]
    fn a_session_that_has_to_begin_again_takes_its_members_along() {
        // 20 is an orphan whose session's leader, 10, has ended since: its id is free when 20 has left.
        let now = present(&[(20, 1, 10), (21, 20, 21), (30, 1, 30)]);
        let plan = plan(
            &now,
            &[],
            &image(&[(10, 1, 10), (20, 1, 10), (21, 20, 21), (30, 1, 30)]),
        )
        .unwrap();
        assert_eq!(plan.keep, [InsidePid(30)]);
        assert_eq!(plan.kill, [InsidePid(20), InsidePid(21)]);
        assert_eq!(plan.births[0], birth(10, By::Init, true));
    }

    #[test]
    fn zombies_stay_unless_somebody_needs_the_id_of_their_group() {
        let zombie = |pid, group| ZombieImage {
            pid: InsidePid(pid),
            parent: InsidePid(10),
            group: InsidePid(group),
            session: InsidePid(10),
            status: 0,
            name: String::new(),
        };
        let (same, member, new, old) = (zombie(11, 11), zombie(12, 20), zombie(13, 13), zombie(14, 14));
        let mut wanted = image(&[(10, 1, 10), (20, 10, 10)]);
        wanted.zombies = vec![same.clone(), member.clone(), new.clone()];
        let now = present(&[(10, 1, 10)]);
        let plan = plan(&now, &[same, member.clone(), old.clone()], &wanted).unwrap();
        assert_eq!(plan.reap, [member.clone(), old]);
        assert_eq!(plan.deaths, [member, new]);
        assert!(plan.makes(InsidePid(12)) && plan.makes(InsidePid(20)) && !plan.makes(InsidePid(11)));
    }
}
