//! Acting on files as another user, one thread at a time: `setfsuid(2)` and `setfsgid(2)`.

use std::io;

use rustix::thread::{capabilities, set_capabilities};

/// Puts the thread's file identity back when it goes out of scope, also in a panic.
struct Restore {
    uid: libc::c_int,
    gid: libc::c_int,
}

impl Drop for Restore {
    fn drop(&mut self) {
        set(self.uid as u32, self.gid as u32);
    }
}

fn set(uid: u32, gid: u32) -> (libc::c_int, libc::c_int) {
    // SAFETY: both calls take plain numbers and affect nothing but the identity of the calling thread.
    unsafe { (libc::setfsuid(uid), libc::setfsgid(gid)) }
}

/// Runs `action` with `id` as the calling thread's user and group for files, keeping all its capabilities. What it
/// creates belongs to `id`; a mount it makes that acts with its maker's credentials (overlayfs) does so for good.
///
/// # Errors
/// `EPERM` when the thread may not take that identity (it needs CAP_SETUID and CAP_SETGID), or from capset(2).
pub fn with_file_owner<T>(id: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    let before = capabilities(None)?;
    let (uid, gid) = set(id, id);
    let restore = Restore { uid, gid };
    // Both calls report the previous value and never an error: asking again tells whether they worked.
    if set(id, id) != (id as libc::c_int, id as libc::c_int) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // Leaving user 0 drops the capabilities over files from the effective set (capabilities(7)).
    set_capabilities(None, before)?;
    let result = action();
    drop(restore);
    set_capabilities(None, before)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_belong_to_the_given_owner_and_the_thread_keeps_its_capabilities() {
        let path = std::env::temp_dir().join(format!("deltabox-fsids-{}", std::process::id()));
        let before = capabilities(None).unwrap();
        let (made, within) = with_file_owner(12345, || {
            (std::fs::write(&path, b"x"), capabilities(None).unwrap())
        })
        .unwrap();
        let owner = std::fs::metadata(&path).map(|meta| (meta.uid(), meta.gid()));
        let _ = std::fs::remove_file(&path);
        made.unwrap();
        assert_eq!(owner.unwrap(), (12345, 12345));
        assert_eq!(within.effective, before.effective);
        assert_eq!(capabilities(None).unwrap().effective, before.effective);
        assert_eq!(set(0, 0), (0, 0), "the identity is back");
    }
}
