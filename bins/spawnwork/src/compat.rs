//! `--compat`: the sockets in the variables of other masters, for programs that were written for those.
//!
//! einhorn sets EINHORN_FD_0, EINHORN_FD_1 and so on (in the order of its `-b`), EINHORN_FD_COUNT,
//! EINHORN_FDS (the same, with spaces between; its clients of old read it alone), EINHORN_MASTER_PID
//! (which a worker compares with its parent's pid), EINHORN_CHILD_INDEX, and later versions
//! EINHORN_FD_FAMILY_0 and so on. Server::Starter sets SERVER_STARTER_PORT, `host:port=fd` or
//! `port=fd` or `path=fd` with semicolons between, and SERVER_STARTER_GENERATION, from 1.

use crate::cli::Compat;
use crate::plan::Listen;
use common::error::{Error, Result};
use common::socket::{self, Address, LocalAddr};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

/// Refuses what the variables cannot say.
///
/// # Errors
/// A path that holds what stands between two sockets (2).
pub fn check(wanted: &[Compat], listen: &[Listen]) -> Result<()> {
    if !wanted.contains(&Compat::ServerStarter) {
        return Ok(());
    }
    for one in listen {
        let path = match one {
            Listen::Bind(_, Address::Unix(path)) => path.clone(),
            Listen::Bind(_, Address::Tcp { .. }) => continue,
            Listen::Take(_, inherited) => match socket::local_addr(&inherited.fd) {
                Ok(LocalAddr::Unix(path)) => path,
                Ok(LocalAddr::Inet(_)) | Err(_) => continue,
            },
        };
        let bytes = path.as_os_str().as_bytes();
        if bytes.contains(&b'=') || bytes.contains(&b';') {
            return Err(Error::usage(format!(
                "--compat server-starter: '{}' holds '=' or ';', which SERVER_STARTER_PORT has between its parts; take another path",
                path.display()
            )));
        }
    }
    Ok(())
}

/// A variable of another master above us: the descriptors that it names are not handed on.
#[must_use]
pub fn is_foreign(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"EINHORN_") || name.starts_with(b"SERVER_STARTER_")
}

/// What a worker gets.
#[must_use]
pub fn variables(
    wanted: &[Compat],
    slot: usize,
    generation: u32,
    sockets: &[(Address, Rc<OwnedFd>)],
) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| list.push((name.to_owned(), value));
    let numbered = || {
        sockets
            .iter()
            .zip(common::fds::FIRST..)
            .map(|((address, fd), number)| (address, fd, number))
    };
    if wanted.contains(&Compat::Einhorn) {
        for (index, (_, fd, number)) in numbered().enumerate() {
            set(&format!("EINHORN_FD_{index}"), number.to_string());
            set(&format!("EINHORN_FD_FAMILY_{index}"), family(fd).to_owned());
        }
        let all: Vec<String> = numbered().map(|(_, _, fd)| fd.to_string()).collect();
        set("EINHORN_FD_COUNT", all.len().to_string());
        set("EINHORN_FDS", all.join(" "));
        set("EINHORN_MASTER_PID", std::process::id().to_string());
        set("EINHORN_CHILD_INDEX", slot.to_string());
    }
    if wanted.contains(&Compat::ServerStarter) {
        let all: Vec<String> = numbered()
            .map(|(address, _, number)| format!("{}={number}", spelled(address)))
            .collect();
        set("SERVER_STARTER_PORT", all.join(";"));
        set("SERVER_STARTER_GENERATION", generation.to_string());
    }
    list
}

/// As Server::Starter writes it: a path stands for itself.
fn spelled(address: &Address) -> String {
    match address {
        Address::Unix(path) => path.display().to_string(),
        Address::Tcp { .. } => address.to_string(),
    }
}

fn family(fd: &OwnedFd) -> &'static str {
    match socket::local_addr(fd) {
        Ok(LocalAddr::Inet(address)) if address.is_ipv6() => "AF_INET6",
        Ok(LocalAddr::Unix(_)) => "AF_UNIX",
        Ok(LocalAddr::Inet(_)) | Err(_) => "AF_INET",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_in_the_words_of_each() {
        let tcp = || Rc::new(socket::listen_tcp("127.0.0.1:0".parse().unwrap(), None, 1).unwrap());
        let any = Rc::new(socket::listen_any(0, 1).unwrap());
        let v6 = matches!(socket::local_addr(&*any), Ok(LocalAddr::Inet(name)) if name.is_ipv6());
        let address = |text: &str| common::cli::address(text).unwrap();
        let sockets = [
            (address("127.0.0.1:81"), tcp()),
            (address("82"), any),
            (address("[::1]:83"), tcp()),
            (address("unix:/run/a.sock"), tcp()),
        ];
        let all: std::collections::BTreeMap<String, String> =
            variables(&[Compat::Einhorn, Compat::ServerStarter], 4, 7, &sockets)
                .into_iter()
                .collect();
        let value = |name: &str| all.get(name).map(String::as_str);
        assert_eq!(value("EINHORN_FD_COUNT"), Some("4"));
        assert_eq!(value("EINHORN_FD_0"), Some("3"));
        assert_eq!(value("EINHORN_FD_3"), Some("6"));
        assert_eq!(value("EINHORN_FD_4"), None);
        assert_eq!(value("EINHORN_FDS"), Some("3 4 5 6"));
        assert_eq!(value("EINHORN_FD_FAMILY_0"), Some("AF_INET"));
        assert_eq!(
            value("EINHORN_FD_FAMILY_1"),
            Some(if v6 { "AF_INET6" } else { "AF_INET" })
        );
        assert_eq!(value("EINHORN_CHILD_INDEX"), Some("4"));
        assert_eq!(
            value("SERVER_STARTER_PORT"),
            Some("127.0.0.1:81=3;82=4;[::1]:83=5;/run/a.sock=6")
        );
        assert_eq!(value("SERVER_STARTER_GENERATION"), Some("7"));
        assert!(variables(&[], 0, 1, &sockets).is_empty());
    }

    #[test]
    fn a_path_that_cannot_be_said_is_refused() {
        let listen = |path: &str| vec![Listen::Bind(String::new(), Address::Unix(path.into()))];
        for path in ["/run/a=b", "/run/a;b"] {
            assert!(check(&[Compat::ServerStarter], &listen(path)).is_err());
            assert!(check(&[Compat::Einhorn], &listen(path)).is_ok());
        }
        assert!(check(&[Compat::ServerStarter], &listen("/run/a")).is_ok());
    }
}
