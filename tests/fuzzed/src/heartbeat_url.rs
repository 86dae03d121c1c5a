//! heartbeat's URLs and expectations, as they stand on its command line.

#[path = "../../../bins/heartbeat/src/expect.rs"]
mod expect;
#[path = "../../../bins/heartbeat/src/url.rs"]
mod url;

/// One input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = expect::parse(text);
    let _ = url::Url::parse(text);
}
