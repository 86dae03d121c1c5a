//! A pid file of anybody's: a number or nothing; and it is no hindrance to a new one.

use common::file::PidFile;

/// One input.
pub fn run(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("fuzz-pid-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
    let number = std::str::from_utf8(line)
        .ok()
        .map(|line| line.trim().parse());
    match (common::watched::pid_in(&path), number) {
        (Ok(pid), number) => assert_eq!(number, Some(Ok(pid))),
        // Short ones are read, whatever stands behind them.
        (Err(_), Some(Ok(pid))) => assert!(line.len() > 64, "{pid}"),
        (Err(_), None | Some(Err(_))) => {}
    }
    // Nobody locks it.
    let file = PidFile::create(&path).unwrap();
    let own = std::process::id() as i32;
    assert_eq!(common::watched::pid_in(&path), Ok(own));
    drop(file);
    assert!(!path.exists());
}
