//! What /proc and the cgroups say to spawnwork of its orphans and limits. A process writes its environment
//! as it likes.

use crate::{adopt, cpus};

/// One input.
pub fn run(bytes: &[u8]) {
    if let Some((mark, _, _, _)) = adopt::claim(bytes) {
        assert!(mark.key.is_absolute());
        // What one master has written another one reads.
        let environ = [
            b"SPAWNWORK_PID=1\0",
            adopt::VARIABLE.as_bytes(),
            b"=",
            std::os::unix::ffi::OsStrExt::as_bytes(mark.value().as_os_str()),
        ]
        .concat();
        let (again, master, slot, generation) = adopt::claim(&environ).unwrap();
        assert_eq!((again, master, slot, generation), (mark, 1, 0, 0));
    }
    let text = String::from_utf8_lossy(bytes);
    let uids = adopt::uids(&text);
    assert!(uids.len() <= text.len());
    for signal in 1..=64 {
        let _ = adopt::catches(&text, signal);
    }
    if let Some(cpus) = cpus::parse_max(&text) {
        assert!(cpus > 0);
    }
    let mut mask = [0; 8];
    let length = bytes.len().min(8);
    mask[..length].copy_from_slice(&bytes[..length]);
    let mask = u64::from_le_bytes(mask);
    let status = format!("Name:\tx\nUid:\t1\t2\t3\t4\nSigCgt:\t{mask:016x}\n");
    assert_eq!(adopt::uids(&status), [1, 2, 3, 4]);
    for signal in 1..=64 {
        assert_eq!(
            adopt::catches(&status, signal),
            mask >> (signal - 1) & 1 == 1
        );
    }
}
