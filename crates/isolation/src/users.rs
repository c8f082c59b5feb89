//! Names of users and groups, looked up in the sandbox's own /etc/passwd and /etc/group, as the sandbox may have
//! made them: paths are resolved inside its root, special files are refused, sizes are bounded.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// Larger files are refused.
const SIZE_MAX: u64 = 4 << 20;
/// More supplementary groups are not taken on (the kernel's own bound is 65536).
const GROUPS_MAX: usize = 1024;

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("the sandbox has no {kind} named {name}; see its {file}")]
    Unknown {
        /// user or group.
        kind: &'static str,
        /// As asked for.
        name: String,
        /// Where it was looked up.
        file: &'static str,
    },
    /// A number that no user can have.
    #[error("{kind} id {id} is out of range; ids in a sandbox are below 65536")]
    OutOfRange {
        /// user or group.
        kind: &'static str,
        /// As asked for.
        id: String,
    },
    /// The file cannot be read.
    #[error("cannot read {file} of the sandbox: {source}")]
    Unreadable {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// An identity inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Name, if the user has an entry.
    pub name: Option<String>,
    /// Home directory; `/` without an entry.
    pub home: String,
    /// Login shell; `/bin/sh` without an entry.
    pub shell: String,
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Resolves `user`, `uid`, `user:group`, `uid:gid` or any mixture. A number needs no entry. With an explicit group
/// there are no supplementary groups.
pub fn resolve(root: impl AsFd, spec: &str) -> Result<Identity, UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let passwd = read(root.as_fd(), PASSWD)?;
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(Entry::parse)
        .find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
    let uid = match (number, &entry) {
        (_, Some(entry)) => entry.uid,
        (Some(uid), None) => uid,
        (None, None) if user.bytes().all(|b| b.is_ascii_digit()) && !user.is_empty() => {
            return Err(UserError::OutOfRange {
                kind: "user",
                id: user.to_owned(),
            });
        }
        (None, None) => {
            return Err(UserError::Unknown {
                kind: "user",
                name: user.to_owned(),
                file: PASSWD,
            });
        }
    };
    let name = entry.as_ref().map(|entry| entry.name.to_owned());
    let (gid, groups) = match group {
        Some(group) => (resolve_group(root.as_fd(), group)?, Vec::new()),
        None => {
            let gid = entry.as_ref().map_or(uid, |entry| entry.gid);
            (
                gid,
                name.as_deref()
                    .map_or(Ok(Vec::new()), |name| memberships(root.as_fd(), name, gid))?,
            )
        }
    };
    for (kind, id) in [("user", uid), ("group", gid)] {
        if id >= 65536 {
            return Err(UserError::OutOfRange {
                kind,
                id: id.to_string(),
            });
        }
    }
    let field = |value: Option<&str>, default: &str| match value {
        Some(value) if !value.is_empty() => value.to_owned(),
        _ => default.to_owned(),
    };
    let home = field(entry.as_ref().map(|entry| entry.home), "/");
    let shell = field(entry.as_ref().map(|entry| entry.shell), "/bin/sh");
    Ok(Identity {
        uid,
        gid,
        groups,
        name,
        home,
        shell,
    })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Self {
            name,
            uid,
            gid,
            home,
            shell: fields.next().unwrap_or(""),
        })
    }
}

fn resolve_group(root: impl AsFd, group: &str) -> Result<u32, UserError> {
    if let Ok(gid) = group.parse::<u32>() {
        return Ok(gid);
    }
    let table = read(root, GROUP)?;
    table
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| UserError::Unknown {
            kind: "group",
            name: group.to_owned(),
            file: GROUP,
        })
}

/// Groups that list the user, without the primary one.
fn memberships(root: impl AsFd, user: &str, primary: u32) -> Result<Vec<u32>, UserError> {
    let table = read(root, GROUP)?;
    let mut groups: Vec<u32> = table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let gid: u32 = fields.nth(2)?.parse().ok()?;
            fields
                .next()?
                .split(',')
                .any(|member| member == user)
                .then_some(gid)
        })
        .filter(|gid| *gid != primary && *gid < 65536)
        .take(GROUPS_MAX)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// The content of a regular file of the root; empty if there is none.
fn read(root: impl AsFd, file: &'static str) -> Result<String, UserError> {
    let unreadable = |source: io::Error| UserError::Unreadable { file, source };
    let opened: Result<OwnedFd, _> = openat2(
        root,
        file,
        // A FIFO must not make this wait.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let opened = match opened {
        Ok(opened) => opened,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(unreadable(error.into())),
    };
    let stat = fstat(&opened).map_err(|e| unreadable(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 > SIZE_MAX {
        return Err(unreadable(io::Error::other(
            "it is not a regular file of a sensible size",
        )));
    }
    let mut content = Vec::new();
    std::fs::File::from(opened)
        .take(SIZE_MAX)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}
