//! Memberships in multicast groups. The kernel lists the groups of an interface, and tells of each socket whether it
//! is in a given one, with which filter of sources (`MCAST_MSFILTER`, RFC 3678).

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

use deltabox_sys::socket::{option, set_option};
use serde::{Deserialize, Serialize};

use super::diag::interface_addresses;
use super::live::Live;
use super::room;

/// A socket's membership in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    group: Group,
    /// The `struct group_filter` of the kernel: sources that are let through, or kept out.
    filter: Vec<u8>,
}

/// A group on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    interface: u32,
    address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Address {
    Four([u8; 4]),
    Six([u8; 16]),
}

const MCAST_MSFILTER: i32 = 48;
/// Offsets in `struct group_filter`.
const SOURCES: usize = 140;
const HEADER: usize = 144;
const ADDRESS_SIZE: usize = 128;
/// Several times what `net.ipv4.igmp_max_msf` allows by default.
const MAX_SOURCES: u32 = 64;

impl Group {
    fn level(&self) -> i32 {
        match self.address {
            Address::Four(_) => libc::IPPROTO_IP,
            Address::Six(_) => libc::IPPROTO_IPV6,
        }
    }

    /// The question for the filter of this group.
    fn filter(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + ADDRESS_SIZE * MAX_SOURCES as usize];
        bytes[..4].copy_from_slice(&self.interface.to_ne_bytes());
        let (family, at, address): (i32, usize, &[u8]) = match &self.address {
            Address::Four(four) => (libc::AF_INET, 12, four),
            Address::Six(six) => (libc::AF_INET6, 16, six),
        };
        bytes[8..10].copy_from_slice(&(family as u16).to_ne_bytes());
        bytes[at..at + address.len()].copy_from_slice(address);
        bytes[SOURCES..HEADER].copy_from_slice(&MAX_SOURCES.to_ne_bytes());
        bytes
    }

    /// `struct ip_mreqn` or `struct ipv6_mreq`.
    fn request(&self, own_address: [u8; 4]) -> Vec<u8> {
        match &self.address {
            Address::Four(four) => [*four, own_address, self.interface.to_ne_bytes()].concat(),
            Address::Six(six) => [six.as_slice(), &self.interface.to_ne_bytes()].concat(),
        }
    }
}

/// The groups that anybody in the sandbox is in.
pub(super) fn groups(live: &Live) -> io::Result<Vec<Group>> {
    let Some(process) = live.processes.first() else {
        return Ok(Vec::new());
    };
    let read = |name| {
        let path = format!("/proc/{}/net/{name}", process.pid.as_raw_nonzero());
        match std::fs::read_to_string(path) {
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        }
    };
    let mut found = parse_four(&read("igmp")?);
    found.extend(parse_six(&read("igmp6")?));
    Ok(found)
}

/// A line per interface, then one for each group, indented.
fn parse_four(text: &str) -> Vec<Group> {
    let mut interface = 0;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let Some(first) = line.split_whitespace().next() else {
            continue;
        };
        if !line.starts_with('\t') {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(address) = u32::from_str_radix(first, 16) {
            let address = Address::Four(address.to_ne_bytes());
            found.push(Group { interface, address });
        }
    }
    found
}

/// A line per group: number and name of the interface, address.
fn parse_six(text: &str) -> Vec<Group> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?.parse().ok()?;
        let address = u128::from_str_radix(fields.nth(1)?, 16).ok()?;
        let address = Address::Six(address.to_be_bytes());
        Some(Group { interface, address })
    };
    text.lines().filter_map(parse).collect()
}

/// Those of the groups that a socket is in.
pub(super) fn read(socket: BorrowedFd<'_>, groups: &[Group], six: bool) -> io::Result<Vec<Membership>> {
    let mut found = Vec::new();
    for group in groups {
        if !six && matches!(group.address, Address::Six(_)) {
            continue;
        }
        let mut filter = group.filter();
        match option(socket, group.level(), MCAST_MSFILTER, &mut filter) {
            Ok(len) => {
                filter.truncate(len);
                let group = *group;
                found.push(Membership { group, filter });
            }
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Has a socket leave and join groups until it is in the wanted ones.
pub(super) fn restore(
    live: &Live,
    socket: BorrowedFd<'_>,
    groups: &[Group],
    six: bool,
    wanted: &[Membership],
) -> io::Result<()> {
    let now = read(socket, groups, six)?;
    if now == wanted {
        return Ok(());
    }
    for membership in now.iter().filter(|m| !wanted.contains(m)) {
        let group = &membership.group;
        let leave = match group.address {
            Address::Four(_) => libc::IP_DROP_MEMBERSHIP,
            Address::Six(_) => libc::IPV6_DROP_MEMBERSHIP,
        };
        set_option(socket, group.level(), leave, &group.request([0; 4]))?;
    }
    // Whoever joined by the address of the interface leaves by that, too.
    let addresses: HashMap<u32, [u8; 4]> = room::inside(live, None, interface_addresses)?;
    for membership in wanted.iter().filter(|m| !now.contains(m)) {
        let group = &membership.group;
        let join = match group.address {
            Address::Four(_) => libc::IP_ADD_MEMBERSHIP,
            Address::Six(_) => libc::IPV6_ADD_MEMBERSHIP,
        };
        let own = addresses.get(&group.interface).copied().unwrap_or_default();
        set_option(socket, group.level(), join, &group.request(own))?;
        if membership.filter[SOURCES - 4..].iter().any(|&byte| byte != 0) {
            set_option(socket, group.level(), MCAST_MSFILTER, &membership.filter)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::os::fd::AsFd;

    #[test]
    fn lists_are_understood() {
        let four = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n3\teth0      :     2      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let group = parse_four(four)[0];
        assert_eq!(group.interface, 3);
        assert_eq!(group.address, Address::Four([224, 0, 0, 1]));
        let six = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        let Address::Six(address) = parse_six(six)[0].address else {
            panic!("not IPv6");
        };
        assert_eq!((address[..2].to_vec(), address[15]), (vec![0xff, 2], 1));
    }

    #[test]
    fn a_membership_is_found_and_only_in_its_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        if socket
            .join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 7), &Ipv4Addr::LOCALHOST)
            .is_err()
        {
            return;
        }
        let groups = parse_four(&std::fs::read_to_string("/proc/self/net/igmp").unwrap());
        let found = read(socket.as_fd(), &groups, false).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].group.address, Address::Four([239, 7, 7, 7]));
        assert!(read(other.as_fd(), &groups, false).unwrap().is_empty());
    }
}
