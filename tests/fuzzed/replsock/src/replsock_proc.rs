//! What /proc says to replsock of listening ports, and of the cgroups whose memory a process shares.

use crate::{inject, room};
use common::{cgroup, socket};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// As the kernel writes a path in mountinfo (seq_path(): blank, tab, newline and backslash).
fn escaped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in bytes {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                out.extend_from_slice(format!("\\{byte:03o}").as_bytes())
            }
            byte => out.push(*byte),
        }
    }
    out
}

/// One input.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines() {
        if let Some((_, address)) = inject::listener(line) {
            assert!(!address.ip().is_unspecified());
        }
    }
    let _ = socket::listener_inode(&text, 80);
    let (places, mounts) = text.split_at(text.find('\0').unwrap_or(0));
    for (_, below, _) in room::groups(places, mounts) {
        assert!(below.is_relative() && !below.starts_with(".."));
    }
    port(bytes);
    path(&text);
}

/// A port that is listened on is found, by both who look for one.
fn port(bytes: &[u8]) {
    let mut all = [0; 26];
    let length = bytes.len().min(all.len());
    all[..length].copy_from_slice(&bytes[..length]);
    let (ip, port) = (
        <[u8; 16]>::try_from(&all[..16]).unwrap(),
        u16::from_le_bytes([all[16], all[17]]),
    );
    let inode = u64::from_le_bytes(<[u8; 8]>::try_from(&all[18..]).unwrap());
    let word = |part: &[u8]| format!("{:08X}", u32::from_ne_bytes(part.try_into().unwrap()));
    let four = word(&ip[..4]);
    let six: String = ip.chunks(4).map(word).collect();
    let addresses: [(String, IpAddr); 2] = [
        (four, Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into()),
        (six, Ipv6Addr::from(ip).into()),
    ];
    for (host, ip) in addresses {
        let line = format!(
            "   0: {host}:{port:04X} {host}:0000 0A 00000000:00000000 00:00000000 00000000  0 0 {inode} 1 0 100 0 0 10 0"
        );
        let expected = if ip.is_unspecified() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            ip
        };
        assert_eq!(
            inject::listener(&line),
            Some((inode, SocketAddr::new(expected, port)))
        );
        let table = format!("  sl  local_address ...\n{line}\n");
        assert_eq!(socket::listener_inode(&table, port), Some(inode));
        assert_eq!(socket::listener_inode(&table, port ^ 1), None);
    }
}

/// A process in a group of any name is found there, below any root.
fn path(text: &str) {
    let clean: Vec<&str> = text
        .split(['/', '\n', '\r', '\0'])
        .filter(|name| !name.is_empty() && *name != "." && *name != "..")
        .take(4)
        .collect();
    let way = clean.join("/");
    let decoded = |text: &[u8]| cgroup::unescaped(&String::from_utf8_lossy(text));
    assert_eq!(decoded(&escaped(way.as_bytes())), PathBuf::from(&way));
    let Some((root, below)) = way.split_once('/') else {
        return;
    };
    let root = String::from_utf8(escaped(format!("/{root}").as_bytes())).unwrap();
    let mounts = format!("36 31 0:33 {root} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n");
    let found = room::groups(&format!("0::/{way}\n"), &mounts);
    let found: Vec<(PathBuf, PathBuf)> = found
        .into_iter()
        .map(|(point, below, _)| (point, below))
        .collect();
    assert_eq!(
        found,
        [(PathBuf::from("/sys/fs/cgroup"), PathBuf::from(below))]
    );
}
