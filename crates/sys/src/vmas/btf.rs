//! The kernel's description of its own types (BTF, Documentation/bpf/btf.rst).

/// What the program has to know of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    /// Number of the function that iterators over mappings attach to.
    pub(super) iterator: u32,
    /// Offset of `vm_start` in `struct vm_area_struct`.
    pub(super) start: i16,
    /// Offset of `vm_flags`.
    pub(super) flags: i16,
}

// Kinds of types.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;

/// Finds the places in the bytes of `/sys/kernel/btf/vmlinux`.
pub(super) fn find(bytes: &[u8]) -> Option<Places> {
    let types = Types::of(bytes)?;
    let mut iterator = None;
    let mut mapping = None;
    for (number, &at) in types.at.iter().enumerate() {
        match types.kind(at)? {
            FUNCTION if types.is_named(at, b"bpf_iter_task_vma") => iterator = u32::try_from(number + 1).ok(),
            STRUCT if types.is_named(at, b"vm_area_struct") => mapping = Some(at),
            _ => {}
        }
    }
    let mapping = mapping?;
    Some(Places {
        iterator: iterator?,
        start: types.member(mapping, b"vm_start")?,
        flags: types.member(mapping, b"vm_flags")?,
    })
}

struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
    /// Where each type begins; the first has number 1.
    at: Vec<usize>,
}

impl<'a> Types<'a> {
    fn of(bytes: &'a [u8]) -> Option<Types<'a>> {
        // struct btf_header: magic and version, header length, types (offset, length), names (offset, length).
        let field = |at| word(bytes, at);
        let body = bytes.get(field(4)?..)?;
        let part = |offset: usize, length: usize| body.get(offset..)?.get(..length);
        let types = part(field(8)?, field(12)?)?;
        let names = part(field(16)?, field(20)?)?;
        let mut at = Vec::with_capacity(types.len() / 40);
        let mut next = 0;
        while next < types.len() {
            at.push(next);
            let info = word(types, next + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, info & 0xffff);
            next += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * members,
                    6 | 13 => 8 * members,
                    _ => 0,
                };
        }
        Some(Types { types, names, at })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        u32::try_from(word(self.types, at + 4)? >> 24 & 0x1f).ok()
    }

    /// Whether the name that is noted at this place is `name`.
    fn is_named(&self, at: usize, name: &[u8]) -> bool {
        let noted = word(self.types, at).and_then(|start| self.names.get(start..));
        noted.and_then(|noted| noted.strip_prefix(name)?.first()) == Some(&0)
    }

    /// The offset of a member in bytes, also of one inside of members without a name.
    fn member(&self, at: usize, name: &[u8]) -> Option<i16> {
        let info = word(self.types, at + 4)?;
        // With the highest bit set, the upper byte of an offset is the size of a bit field.
        let mask = if info >> 31 == 1 {
            0xff_ffff
        } else {
            u32::MAX as usize
        };
        (0..info & 0xffff).find_map(|place| {
            let member = at + 12 + 12 * place;
            let offset = i16::try_from((word(self.types, member + 8)? & mask) / 8).ok()?;
            if self.is_named(member, name) {
                return Some(offset);
            }
            let inner = *self.at.get(word(self.types, member + 4)?.checked_sub(1)?)?;
            let is_part = self.is_named(member, b"") && matches!(self.kind(inner)?, STRUCT | UNION);
            is_part
                .then(|| self.member(inner, name)?.checked_add(offset))
                .flatten()
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes) as usize)
}
