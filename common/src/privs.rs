//! Users, groups, limits: looked up before any fork, used after it.

use crate::error::{Error, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Group, Uid};
use std::ffi::CString;
use std::path::PathBuf;

/// Whom a child is to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name, the number where it has none.
    pub name: String,
    /// Its uid.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    /// Its home.
    pub home: PathBuf,
    /// Its shell.
    pub shell: PathBuf,
}

/// Looks `USER[:GROUP]` up, names or numbers.
///
/// # Errors
/// Unknown, or this process may not become it.
pub fn look_up(spec: &str) -> Result<User> {
    let (name, group) = spec
        .split_once(':')
        .map_or((spec, None), |(user, group)| (user, Some(group)));
    let doing = format!("use user '{spec}'");
    let found = match name.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(Uid::from_raw(uid)),
        Err(_) => nix::unistd::User::from_name(name),
    };
    let found = found.map_err(|why| Error::new(&doing, crate::error::describe(&why.into())))?;
    let group = match group {
        None => None,
        Some(group) => {
            let found = match group.parse::<u32>() {
                Ok(gid) => Some(gid),
                Err(_) => Group::from_name(group)
                    .ok()
                    .flatten()
                    .map(|group| group.gid.as_raw()),
            };
            Some(found.ok_or_else(|| Error::new(&doing, format!("unknown group '{group}'")))?)
        }
    };
    let user = match (found, name.parse::<u32>()) {
        (Some(user), _) => {
            let gid = group.unwrap_or(user.gid.as_raw());
            let groups = CString::new(user.name.as_str())
                .ok()
                .and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok())
                .map_or_else(
                    || vec![gid],
                    |groups| groups.into_iter().map(Gid::as_raw).collect(),
                );
            User {
                name: user.name,
                uid: user.uid.as_raw(),
                gid,
                groups,
                home: user.dir,
                shell: user.shell,
            }
        }
        // A number that nobody is named after, as containers have it.
        (None, Ok(uid)) => {
            let gid = group.ok_or_else(|| {
                Error::new(&doing, "a number without a name needs a group: UID:GID")
            })?;
            User {
                name: uid.to_string(),
                uid,
                gid,
                groups: vec![gid],
                home: "/".into(),
                shell: "/bin/sh".into(),
            }
        }
        (None, Err(_)) => return Err(Error::new(&doing, format!("unknown user '{name}'"))),
    };
    let own = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    if own.0 != 0 && own != (user.uid, user.gid) {
        return Err(Error::new(
            &doing,
            "only root can change to another user or group",
        ));
    }
    Ok(user)
}

/// Becomes `user` for good: groups, gid, uid, and no way back. To be called before any other thread
/// exists. Who is that user already stays as he is.
///
/// # Errors
/// EPERM; or root could be had back.
pub fn become_user(user: &User) -> Result<()> {
    let doing = format!("become user '{}'", user.name);
    let failed = |why: nix::Error| Error::new(&doing, crate::error::describe(&why.into()));
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if nix::unistd::geteuid().is_root() {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups).map_err(failed)?;
    }
    nix::unistd::setresgid(gid, gid, gid).map_err(failed)?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed)?;
    if !uid.is_root() && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(Error::new(&doing, "root can be had back"));
    }
    // The kernel took /proc/self/fd from us by that (proc(5)); what is in our memory is the user's own.
    let _ = nix::sys::prctl::set_dumpable(true);
    Ok(())
}

/// `--nofile`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nofile {
    /// The soft limit raised to the hard one.
    Default,
    /// The same, said aloud.
    Max,
    /// This many.
    Count(u64),
}

/// RLIMIT_NOFILE for a child, soft and hard.
///
/// # Errors
/// More than this process may grant.
pub fn nofile(wanted: Nofile) -> Result<(u64, u64)> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|why| Error::new("read RLIMIT_NOFILE", crate::error::describe(&why.into())))?;
    match wanted {
        Nofile::Default | Nofile::Max => Ok((hard, hard)),
        Nofile::Count(count) if count <= hard => Ok((count, hard)),
        Nofile::Count(count) => {
            let most = if nix::unistd::geteuid().is_root() {
                most_open_files()
            } else {
                hard
            };
            if count <= most {
                Ok((count, count))
            } else {
                Err(Error::new(
                    &format!("set --nofile {count}"),
                    format!("the limit is {most}; root raises it up to fs.nr_open"),
                ))
            }
        }
    }
}

/// Raises the soft limit of our own descriptors to the hard one, and says what children are to get back: programs
/// that use select(2) rely on the usual 1024. `None` when that was not possible; then nothing has changed.
#[must_use]
pub fn raise_nofile() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    crate::sys::inherited_are_below(soft);
    Some((soft, hard))
}

/// fs.nr_open: not even root gets more (getrlimit(2)).
fn most_open_files() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1 << 20)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn who_is_who() {
        let own = nix::unistd::geteuid();
        let user = nix::unistd::User::from_uid(own).unwrap().unwrap();
        assert_eq!(look_up(&user.name).unwrap().uid, own.as_raw());
        assert_eq!(look_up(&own.to_string()).unwrap().name, user.name);
        assert!(
            look_up("no-such-user-here")
                .unwrap_err()
                .message
                .contains("unknown user")
        );
        assert!(
            look_up(&format!("{}:no-such-group", user.name))
                .unwrap_err()
                .message
                .contains("unknown group")
        );
    }

    #[test]
    fn limits() {
        let (soft, hard) = nofile(Nofile::Default).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(nofile(Nofile::Count(64)).unwrap().0, 64);
        assert!(nofile(Nofile::Count(u64::MAX)).is_err());
    }
}
