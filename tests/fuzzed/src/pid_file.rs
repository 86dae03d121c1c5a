//! A pid file of anybody's: a number or nothing; and it is no hindrance to a new one.

use common::file::PidFile;

/// One input.
pub fn run(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("fuzz-pid-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    if let Ok(pid) = common::watched::pid_in(&path) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text.lines().next().unwrap().trim().parse(), Ok(pid));
    }
    // Nobody locks it.
    let file = PidFile::create(&path).unwrap();
    let own = std::process::id() as i32;
    assert_eq!(common::watched::pid_in(&path), Ok(own));
    drop(file);
    assert!(!path.exists());
}
