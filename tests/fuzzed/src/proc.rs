//! What /proc says of a process that names itself as it likes.

use common::{cgroup, child};

/// One input.
pub fn run(bytes: &[u8]) {
    let _ = child::parse_stat(bytes);
    // Whatever the name is, the fields are those behind it.
    let (name, rest) = bytes.split_at(bytes.len() / 2);
    let digits: Vec<String> = rest.iter().map(u8::to_string).collect();
    if digits.len() >= 22 {
        let line = [b"1 (", name, b") S ", digits.join(" ").as_bytes()].concat();
        let stat = child::parse_stat(&line).unwrap();
        assert_eq!((stat.state, stat.parent), (b'S', i32::from(rest[0])));
        assert_eq!(stat.start, u64::from(rest[18]));
    }
    let text = String::from_utf8_lossy(bytes);
    for mount in cgroup::mounts(&text) {
        assert!(format!("{mount:?}").len() > 4);
    }
    let _ = cgroup::place(&text);
}
