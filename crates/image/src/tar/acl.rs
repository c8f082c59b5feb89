//! POSIX access control lists in the text form that archives hold (`SCHILY.acl.*`), turned into the binary
//! form of the `system.posix_acl_*` attributes (acl(5); `struct posix_acl_xattr_entry` of the kernel).

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// The binary attribute value for a text ACL, or what is wrong with the text. Names of users and groups
/// must be numeric, or carry the number as the fourth field: the names of the image mean nothing here.
pub(crate) fn from_text(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let mut entries = vec![];
    for line in text
        .split([',', '\n'])
        .map(|l| l.split('#').next().unwrap_or("").trim())
    {
        if !line.is_empty() {
            entries.push(entry(line).ok_or_else(|| format!("entry {line:?} is not understood"))?);
        }
    }
    if entries.is_empty() {
        return Err("it is empty".to_owned());
    }
    // The kernel wants them in the order of the tags, and of the ids within a tag.
    entries.sort_by_key(|&(tag, _, id)| (tag, id));
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(value)
}

fn entry(line: &str) -> Option<(u16, u16, u32)> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let (kind, name, permissions) = match fields[..] {
        // The two-field form leaves the empty name out.
        ["mask" | "m" | "other" | "o", permissions] => (fields[0], "", permissions),
        [kind, name, permissions] => (kind, name, permissions),
        [kind, _, permissions, id] => (kind, id, permissions),
        _ => return None,
    };
    let id = if name.is_empty() {
        NO_ID
    } else {
        name.parse().ok()?
    };
    let tag = match (kind, name.is_empty()) {
        ("user" | "u", true) => 0x01,
        ("user" | "u", false) => 0x02,
        ("group" | "g", true) => 0x04,
        ("group" | "g", false) => 0x08,
        ("mask" | "m", true) => 0x10,
        ("other" | "o", true) => 0x20,
        _ => return None,
    };
    let mut bits = 0;
    for c in permissions.chars() {
        bits |= match c {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some((tag, bits, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kernel_form() {
        let value = from_text(b"user::rw-,other::r--,user:1000:rwx,group::r--,mask::rwx").unwrap();
        let mut wanted = vec![2, 0, 0, 0];
        for (tag, bits, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 7, 1000),
            (4, 4, u32::MAX),
            (16, 7, u32::MAX),
            (32, 4, u32::MAX),
        ] {
            wanted.extend_from_slice(&tag.to_le_bytes());
            wanted.extend_from_slice(&bits.to_le_bytes());
            wanted.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(value, wanted);
        assert_eq!(
            from_text(b"user:joe:rwx:1000\nuser::rw-\nother:r--\ngroup::r--\nmask:rwx").unwrap(),
            wanted
        );
    }

    #[test]
    fn names_without_numbers_are_refused() {
        assert!(from_text(b"user:joe:rwx").is_err());
        assert!(from_text(b"nonsense").is_err());
        assert!(from_text(b"").is_err());
    }
}
