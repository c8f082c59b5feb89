//! Who a process is: ids, capabilities, `no_new_privs` and seccomp filters.
//!
//! A live process keeps who it is or is made again. A process that has just been made has its maker's credentials and
//! can only give privileges up, which is what programs do, too: so this works wherever the program itself could have
//! got there from its parent.

use deltabox_sys::ptrace;
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::FirstId;
use crate::inject::{Arg, Batch, Buffer, CallId};
use crate::procfs::Status;
use crate::stop::Process;

/// Number of capabilities that fit the kernel's masks.
const CAPABILITIES: i32 = 41;
/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;
/// Most supplementary groups (`NGROUPS_MAX`) that are looked at in one go.
const MOST_GROUPS: usize = 65536;

/// A seccomp filter, oldest first where there are several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    /// Classic BPF, 8 bytes an instruction.
    pub code: Vec<u8>,
}

/// See the module's documentation. Ids are those of the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved user.
    pub uids: [u32; 3],
    /// Filesystem user.
    pub fsuid: u32,
    /// Real, effective, saved group.
    pub gids: [u32; 3],
    /// Filesystem group.
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub capabilities: [u64; 5],
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u64,
    /// Seccomp mode: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
    /// Seccomp filters, oldest first.
    pub filters: Vec<Filter>,
    /// What the engine sees of it in `/proc/PID/status`, to tell cheaply whether it is still the same; filled in by
    /// who knows the sandbox.
    pub seen: Seen,
}

/// What `/proc` tells, with the ids counted from the sandbox's first one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
    capabilities: [u64; 5],
    no_new_privs: bool,
    seccomp: (u32, u32),
}

impl Seen {
    /// From the status of a process in a sandbox whose ids begin at `first`.
    #[must_use]
    pub fn of(status: &Status, first: FirstId) -> Seen {
        let inside = |id| first.inside(id);
        Seen {
            uids: status.uids.map(inside),
            gids: status.gids.map(inside),
            groups: status.groups.iter().copied().map(inside).collect(),
            capabilities: status.capabilities,
            no_new_privs: status.no_new_privs,
            seccomp: (status.seccomp, status.seccomp_filters),
        }
    }
}

/// Questions put to a process.
pub(crate) struct Questions {
    uids: [Buffer; 3],
    gids: [Buffer; 3],
    fsuid: CallId,
    fsgid: CallId,
    groups: Buffer,
    securebits: CallId,
}

/// Adds the questions to a batch.
pub(crate) fn ask(batch: &mut Batch, status: &Status) -> Questions {
    let three = |batch: &mut Batch, number: i64| {
        let buffers = [batch.output(4), batch.output(4), batch.output(4)];
        batch.call(number, &buffers.map(Arg::from));
        buffers
    };
    let uids = three(batch, libc::SYS_getresuid);
    let gids = three(batch, libc::SYS_getresgid);
    // An invalid id changes nothing and tells what is set (setfsuid(2)).
    let fsuid = batch.call(libc::SYS_setfsuid, &[u32::MAX.into()]);
    let fsgid = batch.call(libc::SYS_setfsgid, &[u32::MAX.into()]);
    let count = status.groups.len().min(MOST_GROUPS);
    let groups = batch.output(count * 4);
    batch.call(libc::SYS_getgroups, &[count.into(), groups.into()]);
    let securebits = batch.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]);
    Questions {
        uids,
        gids,
        fsuid,
        fsgid,
        groups,
        securebits,
    }
}

fn id(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_ne_bytes(*four))
}

/// Takes the answers.
pub(crate) fn answers(
    process: &Process,
    batch: &Batch,
    asked: &Questions,
) -> Result<Credentials, TraceError> {
    let status = process.status();
    Ok(Credentials {
        uids: asked.uids.map(|buffer| id(batch.bytes(buffer))),
        fsuid: batch.result(asked.fsuid).unwrap_or(0) as u32,
        gids: asked.gids.map(|buffer| id(batch.bytes(buffer))),
        fsgid: batch.result(asked.fsgid).unwrap_or(0) as u32,
        groups: batch.bytes(asked.groups).chunks_exact(4).map(id).collect(),
        capabilities: status.capabilities,
        no_new_privs: status.no_new_privs,
        securebits: batch.result(asked.securebits).unwrap_or(0),
        seccomp: status.seccomp,
        filters: filters(process)?,
        seen: Seen::default(),
    })
}

fn filters(process: &Process) -> Result<Vec<Filter>, TraceError> {
    let mut found = Vec::new();
    let tid = process.pid();
    let failed = |source| TraceError::Request {
        tid,
        what: "read the seccomp filters of",
        source,
    };
    // The kernel counts from the oldest, whatever ptrace(2) says (`get_nth_filter` in kernel/seccomp.c).
    for index in 0..process.status().seccomp_filters as usize {
        let Some(code) = ptrace::get_seccomp_filter(tid.pid(), index).map_err(failed)? else {
            break;
        };
        let flags = ptrace::get_seccomp_flags(tid.pid(), index).map_err(failed)?;
        found.push(Filter { flags, code });
    }
    Ok(found)
}

/// Gives a process that has just been made the credentials of `image`. The sandbox's ids begin at `first`.
pub(crate) fn restore(process: &mut Process, image: &Credentials, first: FirstId) -> Result<(), TraceError> {
    process.refresh()?;
    let now = process.status().clone();
    let seen = Seen::of(&now, first);
    // /proc does not tell the secure bits; the maker's are hardly ever set.
    if seen == image.seen && image.securebits == 0 {
        return Ok(());
    }
    let mut batch = Batch::new();
    let mut must = Vec::new();
    let groups: Vec<u8> = image
        .groups
        .iter()
        .flat_map(|group| group.to_ne_bytes())
        .collect();
    let list = batch.input(&groups);
    if seen.groups != image.seen.groups {
        must.push((
            batch.call(libc::SYS_setgroups, &[image.groups.len().into(), list.into()]),
            "setgroups",
        ));
    }
    must.push((
        batch.call(libc::SYS_setresgid, &image.gids.map(Arg::from)),
        "setresgid",
    ));
    batch.call(libc::SYS_setfsgid, &[image.fsgid.into()]);
    for capability in 0..CAPABILITIES {
        let bit = 1u64 << capability;
        if now.capabilities[3] & bit != 0 && image.capabilities[3] & bit == 0 {
            let drop = batch.call(
                libc::SYS_prctl,
                &[libc::PR_CAPBSET_DROP.into(), capability.into()],
            );
            must.push((drop, "prctl(PR_CAPBSET_DROP)"));
        }
    }
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_SECUREBITS.into(), image.securebits.into()],
    );
    batch.call(libc::SYS_prctl, &[libc::PR_SET_KEEPCAPS.into(), 1.into()]);
    must.push((
        batch.call(libc::SYS_setresuid, &image.uids.map(Arg::from)),
        "setresuid",
    ));
    batch.call(libc::SYS_setfsuid, &[image.fsuid.into()]);
    must.push((capset(&mut batch, image), "capset"));
    for capability in 0..CAPABILITIES {
        if image.capabilities[4] & (1u64 << capability) != 0 {
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            batch.call(
                libc::SYS_prctl,
                &[libc::PR_CAP_AMBIENT.into(), raise.into(), capability.into()],
            );
        }
    }
    if image.no_new_privs {
        batch.call(
            libc::SYS_prctl,
            &[
                libc::PR_SET_NO_NEW_PRIVS.into(),
                1.into(),
                0.into(),
                0.into(),
                0.into(),
            ],
        );
    }
    let inherited = now.seccomp_filters as usize;
    for filter in image.filters.iter().skip(inherited) {
        must.push((install(&mut batch, filter), "seccomp"));
    }
    process.run(&mut batch)?;
    for (call, name) in must {
        batch.result(call).map_err(|errno| TraceError::Call {
            pid: process.pid(),
            name,
            errno,
        })?;
    }
    process.refresh()
}

fn capset(batch: &mut Batch, image: &Credentials) -> CallId {
    let [inheritable, permitted, effective, ..] = image.capabilities;
    let header = batch.input(&[VERSION_3.to_ne_bytes(), [0; 4]].concat());
    let half = |mask: u64, high: bool| (if high { mask >> 32 } else { mask & 0xffff_ffff }) as u32;
    let data: Vec<u8> = [false, true]
        .into_iter()
        .flat_map(|high| {
            [
                half(effective, high),
                half(permitted, high),
                half(inheritable, high),
            ]
        })
        .flat_map(u32::to_ne_bytes)
        .collect();
    let data = batch.input(&data);
    batch.call(libc::SYS_capset, &[header.into(), data.into()])
}

fn install(batch: &mut Batch, filter: &Filter) -> CallId {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    let code = batch.input(&filter.code);
    // struct sock_fprog: number of instructions, padding, their address.
    let count = (filter.code.len() / 8) as u64;
    let program = batch.input(&[count.to_ne_bytes(), [0; 8]].concat());
    batch.link(program, 8, code);
    batch.call(
        libc::SYS_seccomp,
        &[
            SECCOMP_SET_MODE_FILTER.into(),
            filter.flags.into(),
            program.into(),
        ],
    )
}
