//! Who may come in, and where: the directory's rules, sockets, and who is at the other end.

use common::error::{Doing, Error, Result, describe};
use common::exit::Exit;
use common::socket::{self, Address, UnixRights};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, getsockopt, socket, sockopt,
};
use nix::unistd::{Uid, User, geteuid};
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// sun_path holds so many bytes, and the NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// The user's own directory: `$REPLSOCK_DIR`, else by user.
#[must_use]
pub fn directory() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(named) = set("REPLSOCK_DIR") {
        return named;
    }
    if geteuid().is_root() {
        return PathBuf::from("/run/replsock");
    }
    match set("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("replsock"),
        None => of_user(geteuid().as_raw()),
    }
}

/// Where processes of a user go that have no better place.
#[must_use]
pub fn of_user(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/replsock-{uid}"))
}

/// Where sockets may be found: the own directory, and for root those of the users.
#[must_use]
pub fn directories() -> Vec<PathBuf> {
    let mut list = vec![directory()];
    // A named one is meant alone.
    if std::env::var_os("REPLSOCK_DIR").is_none_or(|named| named.is_empty()) {
        let fallback = of_user(geteuid().as_raw());
        if !list.contains(&fallback) && fallback.symlink_metadata().is_ok() {
            list.push(fallback);
        }
    }
    if geteuid().is_root() {
        let inside = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut others: Vec<PathBuf> = inside("/run/user")
            .map(|entry| entry.path().join("replsock"))
            .chain(
                inside("/tmp")
                    .map(|entry| entry.path())
                    .filter(|path| names_its_owner(path)),
            )
            .filter(|path| !list.contains(path) && check(path).is_ok())
            .collect();
        others.sort();
        list.extend(others);
    }
    list
}

/// `/tmp/replsock-UID` that belongs to UID: anybody can make directories there.
fn names_its_owner(path: &Path) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return false;
    };
    path == of_user(found.uid())
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(&format!("use the directory {}", path.display()), why).with_exit(Exit::NotExecutable)
}

/// Refuses (126) what somebody else could put a socket into: a symlink, another's, writable by others. A
/// sticky one (/tmp) is let through: nobody can replace what is ours there, and each socket's server is
/// looked at besides.
///
/// # Errors
/// Which of these it is; 127 where there is nothing.
pub fn check(path: &Path) -> Result<()> {
    check_of(path, Whose::Ours)
}

/// The same for the directory of a socket that was asked for by its path: it may be another user's, whose
/// server [`connect`] then takes there, and nobody else's.
///
/// # Errors
/// As [`check`].
pub fn check_named(path: &Path) -> Result<()> {
    check_of(path, Whose::Anybodys)
}

/// Whose a directory may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Our own user's, or root's.
    Ours,
    /// Any user's.
    Anybodys,
}

fn check_of(path: &Path, whose: Whose) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) => judge(path, &found, whose),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            Err(refused(path, describe(&why)).with_exit(Exit::NotFound))
        }
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            Err(refused(path, describe(&why)))
        }
        Err(why) => Err(refused(path, describe(&why)).with_exit(Exit::Fault)),
    }
}

fn judge(path: &Path, found: &Metadata, whose: Whose) -> Result<()> {
    let own = geteuid();
    if found.file_type().is_symlink() {
        return Err(refused(
            path,
            "it is a symbolic link; name the directory itself",
        ));
    }
    if !found.is_dir() {
        return Err(refused(path, "it is no directory"));
    }
    // Root comes to its users' sockets, and looks at the server's uid there.
    let ours = found.uid() == own.as_raw() || found.uid() == 0 || own.is_root();
    if whose == Whose::Ours && !ours {
        return Err(refused(
            path,
            format!("it belongs to {}", user_name(found.uid())),
        ));
    }
    if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        return Err(refused(
            path,
            format!(
                "others can write there (mode {:04o}); chmod go-w would do",
                found.mode() & 0o7777
            ),
        ));
    }
    Ok(())
}

/// Makes a directory that is for its owner alone, and its parents as they come; one that exists is checked.
///
/// # Errors
/// As [`check`], or it cannot be made (125).
pub fn make(path: &Path) -> Result<()> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent)
            .doing(&format!("make the directory {}", parent.display()))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        Err(why) => return Err(why).doing(&format!("make the directory {}", path.display())),
    }
    check(path)
}

/// `path` as an address can hold it: a long one by way of its directory's descriptor, which must live as
/// long as the address is used.
fn short(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().as_bytes().len() <= LONGEST_PATH {
        return Ok((path.to_owned(), None));
    }
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(parent_of(path))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((short, Some(directory)))
}

fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes a listening socket, non-blocking, with these rights from birth. A stale one is replaced under a
/// lock, a live one never. Our own directory is made if it is missing, as it is after each boot.
///
/// # Errors
/// 126 for the directory; 125: somebody answers there, who is named.
pub fn listen(path: &Path, rights: UnixRights, backlog: i32) -> Result<OwnedFd> {
    let directory = parent_of(path);
    if directory == self::directory() {
        make(directory)?;
    } else {
        check(directory)?;
    }
    let doing = format!("listen on {}", path.display());
    // Two servers that find the same stale socket: one at a time.
    let lock = File::open(directory).doing(&doing)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, why)| Error::new(&doing, describe(&why.into())))?;
    let (address, _directory) = short(path).doing(&doing)?;
    socket::listen_unix(&address, rights, backlog).map_err(|why| {
        let mut text = describe(&why);
        if why.raw_os_error() == Some(libc::EADDRINUSE) {
            let holder = connect(path)
                .map(|(_, peer)| peer.pid)
                .ok()
                .or_else(|| socket::holder_of(&Address::Unix(path.to_owned())).map(|(pid, _)| pid));
            text = match holder {
                Some(pid) => format!("in use by pid {pid}"),
                None => "in use, or no socket".to_owned(),
            };
        }
        Error::new(&doing, text)
    })
}

/// The process at the other end, as the kernel noted it when the connection (or the listener) was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// In our pid namespace; 0 if it is not visible from there.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Who is there.
///
/// # Errors
/// It is no connected unix socket.
pub fn peer(fd: impl AsFd) -> Result<Peer> {
    let found =
        getsockopt(&fd, sockopt::PeerCredentials).doing("ask for the other end's identity")?;
    Ok(Peer {
        pid: found.pid(),
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// A user's name, or its number.
#[must_use]
pub fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

/// Connects, blocking, and makes sure of who the server is: anybody can lay a socket into /tmp. It must be
/// our own user or root, or the one whom the socket's directory belongs to, if nobody else can write there:
/// then the path leads to nobody but him.
///
/// # Errors
/// 127: nothing there, or nobody listens any more; 126: not ours.
pub fn connect(path: &Path) -> Result<(OwnedFd, Peer)> {
    let doing = format!("connect to {}", path.display());
    let (address, _directory) = short(path).map_err(|why| not_connected(&doing, path, &why))?;
    let address = UnixAddr::new(&address).doing(&doing)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .doing(&doing)?;
    connect_to(fd.as_raw_fd(), &address).map_err(|why| not_connected(&doing, path, &why.into()))?;
    let peer = peer(&fd)?;
    let his_own = || {
        let found = parent_of(path).symlink_metadata();
        found.is_ok_and(|found| {
            found.is_dir() && found.uid() == peer.uid && found.mode() & 0o022 == 0
        })
    };
    let allowed = peer.uid == geteuid().as_raw() || peer.uid == 0 || his_own();
    if !allowed {
        return Err(Error::new(
            &doing,
            format!(
                "its server is {}, pid {}: no process of ours",
                user_name(peer.uid),
                peer.pid
            ),
        )
        .with_exit(Exit::NotExecutable));
    }
    Ok((fd, peer))
}

fn not_connected(doing: &str, path: &Path, why: &io::Error) -> Error {
    let (text, exit) = match why.raw_os_error() {
        Some(libc::ECONNREFUSED) => (
            "nobody listens there any more (replsock ls --prune removes it)".to_owned(),
            Exit::NotFound,
        ),
        Some(libc::ENOENT | libc::ENOTDIR) => (describe(why), Exit::NotFound),
        Some(libc::EACCES | libc::EPERM) => (
            match path.symlink_metadata() {
                Ok(found) => format!("it belongs to {}", user_name(found.uid())),
                Err(_) => describe(why),
            },
            Exit::NotExecutable,
        ),
        _ => (describe(why), Exit::Fault),
    };
    Error::new(doing, text).with_exit(exit)
}

/// Whom a server lets in beside its own user and root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups: primary or supplementary.
    pub gids: Vec<u32>,
}

impl Allowed {
    /// Adds `USER` or `@GROUP`.
    ///
    /// # Errors
    /// There is no such one.
    pub fn add(&mut self, text: &str) -> std::result::Result<(), String> {
        let unknown = || format!("'{text}' is unknown; a user, or @ and a group would do");
        if let Some(name) = text.strip_prefix('@') {
            let found = name.parse().ok().or_else(|| {
                let found = nix::unistd::Group::from_name(name).ok().flatten();
                found.map(|group| group.gid.as_raw())
            });
            self.gids.push(found.ok_or_else(unknown)?);
        } else {
            let found = text.parse().ok().or_else(|| {
                let found = User::from_name(text).ok().flatten();
                found.map(|user| user.uid.as_raw())
            });
            self.uids.push(found.ok_or_else(unknown)?);
        }
        Ok(())
    }

    /// Whether that peer may come in; `groups` are its supplementary ones, asked for where they matter.
    #[must_use]
    pub fn lets_in(&self, peer: Peer, groups: impl FnOnce() -> Vec<u32>) -> bool {
        peer.uid == 0
            || peer.uid == geteuid().as_raw()
            || self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || !self.gids.is_empty() && groups().iter().any(|gid| self.gids.contains(gid))
    }

    /// What the socket's mode has to be: who is let in must be able to connect, and is looked at then. One
    /// group alone can be kept apart by the file system already, where we may give the socket to it.
    #[must_use]
    pub fn rights(&self) -> UnixRights {
        let (mode, owner) = match (self.uids.as_slice(), self.gids.as_slice()) {
            ([], []) => (0o600, None),
            ([], [gid]) if may_give_to(*gid) => (0o660, Some((geteuid().as_raw(), *gid))),
            _ => (0o666, None),
        };
        UnixRights { mode, owner }
    }
}

/// chown(2): a member may give a file to a group, and root may.
fn may_give_to(gid: u32) -> bool {
    geteuid().is_root()
        || nix::unistd::getegid().as_raw() == gid
        || nix::unistd::getgroups().is_ok_and(|list| list.iter().any(|own| own.as_raw() == gid))
}

/// The secret of `--tcp`: read from a file of the owner's alone, or made there.
///
/// # Errors
/// 126: others can read it; 125: it cannot be read or made.
pub fn token(path: &Path, make: MakeToken) -> Result<String> {
    let doing = format!("use the token file {}", path.display());
    if make == MakeToken::IfMissing {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            Ok(mut file) => {
                let mut bytes = [0u8; 32];
                let mut random = File::open("/dev/urandom").doing(&doing)?;
                io::Read::read_exact(&mut random, &mut bytes).doing(&doing)?;
                let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                io::Write::write_all(&mut file, format!("{text}\n").as_bytes()).doing(&doing)?;
            }
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Err(why) => return Err(why).doing(&doing),
        }
    }
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .doing(&doing)?;
    let found = file.metadata().doing(&doing)?;
    let own = geteuid();
    if found.permissions().mode() & 0o077 != 0
        || (found.uid() != own.as_raw() && found.uid() != 0 && !own.is_root())
    {
        return Err(Error::new(
            &doing,
            "others can read it, or it is another's; chmod 600 would do",
        )
        .with_exit(Exit::NotExecutable));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(&mut file, 4096), &mut text).doing(&doing)?;
    let text = text.trim().to_owned();
    if text.len() < 16 {
        return Err(Error::new(
            &doing,
            "it holds no token of 16 letters or more",
        ));
    }
    Ok(text)
}

/// Whether a token file is made where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MakeToken {
    /// The server does.
    IfMissing,
    /// The client does not.
    No,
}

/// Compares two tokens in a time that does not depend on where they differ.
#[must_use]
pub fn same_token(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .fold(0u8, |difference, (a, b)| difference | (a ^ b))
            == 0
}

/// The address of `--tcp`: a port, or a loopback address and a port. Nothing else leaves this machine.
///
/// # Errors
/// It is none, or not loopback: then with the line to use instead.
pub fn loopback(text: &str) -> std::result::Result<std::net::SocketAddr, String> {
    let address = common::cli::address(text)?;
    let refused = || {
        format!(
            "'{text}' is not loopback, and whoever gets there owns the app; from another machine: \
             ssh -L local.sock:/THE/SOCKET HOST, and then replsock ./local.sock"
        )
    };
    match address {
        Address::Unix(_) => Err(format!(
            "'{text}' is no TCP address; 127.0.0.1:9230 would do"
        )),
        Address::Tcp { host: None, port } => Ok((std::net::Ipv4Addr::LOCALHOST, port).into()),
        Address::Tcp {
            host: Some(host),
            port,
        } => {
            let ip: std::net::IpAddr = if host == "localhost" {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                host.parse().map_err(|_| refused())?
            };
            if !ip.is_loopback() {
                return Err(refused());
            }
            Ok((ip, port).into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("replsock-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    const OWN: UnixRights = UnixRights {
        mode: 0o600,
        owner: None,
    };

    #[test]
    fn directories_that_others_could_use_are_refused() {
        let path = place("door");
        make(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        for mode in [0o770, 0o707, 0o777] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(
                make(&path).unwrap_err().exit,
                Exit::NotExecutable,
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(check(&path), Ok(()));
        let link = path.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(check(&link).unwrap_err().message.contains("symbolic link"));
        assert_eq!(check(&path.join("none")).unwrap_err().exit, Exit::NotFound);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_taken_over_and_a_live_one_never() {
        let path = place("listen");
        make(&path).unwrap();
        // Longer than an address can be.
        let long = path.join("x".repeat(60)).join("y".repeat(60));
        std::fs::create_dir_all(&long).unwrap();
        for directory in [&path, &long] {
            let name = directory.join("a.sock");
            let first = listen(&name, OWN, 8).unwrap();
            assert_eq!(name.symlink_metadata().unwrap().mode() & 0o777, 0o600);
            let refused = listen(&name, OWN, 8).unwrap_err();
            let pid = std::process::id();
            assert!(
                refused.message.contains(&format!("in use by pid {pid}")),
                "{refused}"
            );
            let (_, peer) = connect(&name).unwrap();
            assert_eq!(peer.pid, pid as i32);
            drop(first);
            assert_eq!(connect(&name).unwrap_err().exit, Exit::NotFound);
            listen(&name, OWN, 8).unwrap();
        }
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn only_loopback() {
        assert_eq!(loopback("9230").unwrap().to_string(), "127.0.0.1:9230");
        assert!(loopback("[::1]:1").is_ok() && loopback("localhost:1").is_ok());
        for text in ["0.0.0.0:1", "10.0.0.1:1", "example.org:1", "[::]:1"] {
            assert!(loopback(text).unwrap_err().contains("ssh -L"), "{text}");
        }
        assert!(loopback("/a.sock").is_err());
    }

    #[test]
    fn tokens() {
        let path = place("token");
        make(&path).unwrap();
        let file = path.join("t");
        assert!(token(&file, MakeToken::No).is_err());
        let made = token(&file, MakeToken::IfMissing).unwrap();
        assert_eq!(made.len(), 64);
        assert!(same_token(&made, &token(&file, MakeToken::No).unwrap()));
        assert!(!same_token(&made, "") && !same_token(&made, &"0".repeat(64)));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(
            token(&file, MakeToken::No).unwrap_err().exit,
            Exit::NotExecutable
        );
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn who_is_let_in() {
        let mut allowed = Allowed::default();
        let peer = |uid, gid| Peer { pid: 1, uid, gid };
        let lets_in = |allowed: &Allowed, uid, gid, more: &[u32]| {
            allowed.lets_in(peer(uid, gid), || more.to_vec())
        };
        assert!(lets_in(&allowed, 0, 0, &[]) && !lets_in(&allowed, 54_321, 54_321, &[]));
        assert_eq!(allowed.rights().mode, 0o600);
        allowed.add("@54322").unwrap();
        assert!(lets_in(&allowed, 1, 54_322, &[]) && lets_in(&allowed, 1, 1, &[2, 54_322]));
        assert!(!lets_in(&allowed, 54_322, 1, &[2]));
        if geteuid().is_root() {
            assert_eq!(allowed.rights().mode, 0o660);
        }
        allowed.add("54321").unwrap();
        assert!(lets_in(&allowed, 54_321, 1, &[]) && !lets_in(&allowed, 54_323, 1, &[]));
        assert_eq!(allowed.rights().mode, 0o666);
        assert!(allowed.add("nobody-of-that-name").is_err());
    }
}
