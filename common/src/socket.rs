//! Addresses and listening sockets.

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getpeername,
    getsockname, listen as listen_on, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port; without a host on all addresses, IPv6 and IPv4.
    Tcp {
        /// A name or an address without brackets.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host: None, port } => write!(formatter, "{port}"),
            Address::Tcp {
                host: Some(host),
                port,
            } if host.contains(':') => write!(formatter, "[{host}]:{port}"),
            Address::Tcp {
                host: Some(host),
                port,
            } => write!(formatter, "{host}:{port}"),
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// Rights of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixRights {
    /// Its mode.
    pub mode: u32,
    /// Its owner and group, if others than ours.
    pub owner: Option<(u32, u32)>,
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

fn backlog_of(backlog: i32) -> nix::Result<Backlog> {
    // nix refuses what the kernel would cut silently.
    Backlog::new(backlog.min(i32::from(Backlog::MAXCONN)).max(0)).or(Ok(Backlog::MAXCONN))
}

fn storage(address: SocketAddr) -> SockaddrStorage {
    SockaddrStorage::from(address)
}

/// Binds and listens, close-on-exec and non-blocking, with SO_REUSEADDR.
///
/// # Errors
/// Those of socket(2), bind(2), listen(2).
pub fn listen_tcp(address: SocketAddr, v6only: Option<bool>, backlog: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Stream, FLAGS, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if let Some(v6only) = v6only {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only)?;
    }
    bind(fd.as_raw_fd(), &storage(address))?;
    backlog_again(fd.as_fd(), backlog)?;
    Ok(fd)
}

/// All addresses, IPv6 and IPv4 on one socket; IPv4 alone where there is no IPv6.
///
/// # Errors
/// As [`listen_tcp`].
pub fn listen_any(port: u16, backlog: i32) -> io::Result<OwnedFd> {
    match listen_tcp(
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        Some(false),
        backlog,
    ) {
        Err(why)
            if why.raw_os_error().is_some_and(|errno| {
                errno == libc::EAFNOSUPPORT || errno == libc::EADDRNOTAVAIL
            }) =>
        {
            listen_tcp(
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
                None,
                backlog,
            )
        }
        result => result,
    }
}

/// A unix socket, made under another name and renamed into place: there is no moment at which it has
/// the wrong rights, or refuses. A stale one (nobody answers) is replaced, a live one never.
///
/// # Errors
/// EADDRINUSE when somebody listens there, or the path is no socket; ENAMETOOLONG over 107 bytes.
pub fn listen_unix(path: &Path, rights: UnixRights, backlog: i32) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    if path.as_os_str().as_bytes().len() > 107 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        Ok(_) if somebody_answers(path) => {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        Ok(_) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".{:08x}", crate::time::random() as u32));
    let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    match UnixAddr::new(&temporary) {
        Ok(address) => bind(fd.as_raw_fd(), &address)?,
        // The temporary name is longer than a short last part: by way of the directory's descriptor.
        Err(nix::Error::ENAMETOOLONG) => {
            let open = std::fs::File::open(directory)?;
            let name = temporary.file_name().unwrap_or_default();
            let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(name);
            bind(fd.as_raw_fd(), &UnixAddr::new(&short)?)?;
        }
        Err(why) => return Err(why.into()),
    }
    let made = (|| {
        set_rights(&temporary, rights)?;
        backlog_again(fd.as_fd(), backlog)?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(why) = made {
        let _ = std::fs::remove_file(&temporary);
        return Err(why);
    }
    Ok(fd)
}

/// Gives a unix socket's path its mode and owner. Not to what a link leads to, and not to another file than
/// the socket that is there when we look: whoever may write to the directory can put something else there at
/// any moment, and root would give it away.
///
/// # Errors
/// Those of chmod(2) and chown(2); EPERM where no socket stands there, or one that has another name, too.
pub fn set_rights(path: &Path, rights: UnixRights) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = std::fs::File::from(nix::fcntl::open(path, flags, Mode::empty())?);
    let found = open.metadata()?;
    if !found.file_type().is_socket() || found.nlink() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let held = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    // In a jail without /proc nothing but the path can be given a mode.
    let named = if held.exists() { &*held } else { path };
    std::fs::set_permissions(named, PermissionsExt::from_mode(rights.mode))?;
    if let Some((uid, gid)) = rights.owner {
        nix::unistd::fchownat(
            &open,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_EMPTY_PATH,
        )?;
    }
    Ok(())
}

/// Whether a connect finds a listener. A full backlog (EAGAIN) is one, too.
fn somebody_answers(path: &Path) -> bool {
    let Ok(fd) = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None) else {
        return true;
    };
    let Ok(address) = UnixAddr::new(path) else {
        return false;
    };
    match nix::sys::socket::connect(fd.as_raw_fd(), &address) {
        Ok(()) => true,
        Err(why) => !matches!(why, nix::Error::ECONNREFUSED | nix::Error::ENOENT),
    }
}

/// Listens on `address`; a name is looked up, and its first address that can be bound is taken.
///
/// # Errors
/// As above, or the name is not found.
pub fn listen(address: &Address, rights: UnixRights, backlog: i32) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => listen_unix(path, rights, backlog),
        Address::Tcp { host: None, port } => listen_any(*port, backlog),
        Address::Tcp {
            host: Some(host),
            port,
        } => {
            let mut last = Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
            for found in (host.as_str(), *port).to_socket_addrs()? {
                last = listen_tcp(found, found.is_ipv6().then_some(true), backlog);
                if last.is_ok() {
                    break;
                }
            }
            last
        }
    }
}

/// A bound UDP socket.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn udp(address: SocketAddr, reuse: bool, v6only: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Datagram, FLAGS, None)?;
    if reuse {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only)?;
    }
    bind(fd.as_raw_fd(), &storage(address))?;
    Ok(fd)
}

/// listen(2) on a socket that listens already sets its backlog anew; what waits in it is kept.
///
/// # Errors
/// EINVAL, EADDRINUSE.
pub fn backlog_again(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    Ok(listen_on(&fd, backlog_of(backlog)?)?)
}

// ---- several sockets on one port ----
//
// Sockets of one user with SO_REUSEPORT (socket(7)) that listen on the same address are a group: the
// kernel gives each new connection to one of them, into a queue of its own. In the group they have
// numbers, in the order of their listen(2). When one leaves, the last gets its number
// (net/core/sock_reuseport.c).

/// Lets others of ours listen on the address of `fd`. Set after bind(2) and listen(2), so that these
/// noticed an address that somebody else has, which SO_REUSEPORT would have them share.
///
/// # Errors
/// EOPNOTSUPP for a unix socket.
pub fn open_group(fd: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&fd.as_fd(), sockopt::ReusePort, &true)?)
}

/// One socket more on the address of `member`, the last of the group; blocking or not, as that is.
///
/// # Errors
/// As [`listen_tcp`]; EMFILE.
pub fn join_group(member: impl AsFd, backlog: i32) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let member = member.as_fd();
    let LocalAddr::Inet(address) = local_addr(member)? else {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    };
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Stream, FLAGS, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        let v6only = nix::sys::socket::getsockopt(&member, sockopt::Ipv6V6Only)?;
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only)?;
    }
    let flags = OFlag::from_bits_retain(fcntl(member, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        set_blocking(&fd)?;
    }
    bind(fd.as_raw_fd(), &storage(address))?;
    backlog_again(fd.as_fd(), backlog)?;
    Ok(fd)
}

/// From now on, new connections go to members of the group of `size` that are not `closed`, by chance.
/// What waits in the queues of these stays there, and so do connections whose handshake has begun.
///
/// # Errors
/// ENOPROTOOPT on old kernels; EINVAL when nobody would be left.
pub fn steer_group(member: impl AsFd, size: usize, closed: &[usize]) -> io::Result<()> {
    match selector(size, closed) {
        Some(program) => crate::sys::attach_selector(member.as_fd(), &program),
        None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// random modulo the number of those that are open, then past each closed one on the way.
fn selector(size: usize, closed: &[usize]) -> Option<Vec<crate::sys::Instruction>> {
    const LOAD_ABSOLUTE: u16 = 0x20;
    const RANDOM: u32 = 0xffff_f000 + 56;
    const MODULO: u16 = 0x94;
    const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
    const ADD: u16 = 0x04;
    const RETURN_ACCUMULATOR: u16 = 0x16;
    let mut closed: Vec<u32> = closed
        .iter()
        .filter(|index| **index < size)
        .filter_map(|index| u32::try_from(*index).ok())
        .collect();
    closed.sort_unstable();
    closed.dedup();
    let open = u32::try_from(size).ok()? - closed.len() as u32;
    // BPF_MAXINSNS is 4096.
    if open == 0 || closed.len() > 2000 {
        return None;
    }
    let mut program = vec![(LOAD_ABSOLUTE, 0, 0, RANDOM), (MODULO, 0, 0, open)];
    for index in closed {
        program.push((JUMP_IF_GREATER_OR_EQUAL, 0, 1, index));
        program.push((ADD, 0, 0, 1));
    }
    program.push((RETURN_ACCUMULATOR, 0, 0, 0));
    Some(program)
}

/// Whether a socket listens (SO_ACCEPTCONN, socket(7)).
#[must_use]
pub fn is_listening(fd: impl AsFd) -> bool {
    nix::sys::socket::getsockopt(&fd.as_fd(), sockopt::AcceptConn).unwrap_or(false)
}

/// Clears O_NONBLOCK, for programs that expect accept(2) to wait.
///
/// # Errors
/// EBADF.
pub fn set_blocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sets O_NONBLOCK, as on a socket that we made.
///
/// # Errors
/// EBADF.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// net.core.somaxconn, which cuts every backlog silently (listen(2)).
#[must_use]
pub fn somaxconn() -> Option<i32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddr {
    /// TCP or UDP.
    Inet(SocketAddr),
    /// Unix; empty when unnamed, `@name` when abstract.
    Unix(PathBuf),
}

/// getsockname(2).
///
/// # Errors
/// ENOTSOCK; EAFNOSUPPORT for other families.
pub fn local_addr(fd: impl AsFd) -> io::Result<LocalAddr> {
    address_of(getsockname(fd.as_fd().as_raw_fd())?)
}

/// Who is at the other end of a TCP connection; `None` for any other, or when it is gone already.
#[must_use]
pub fn peer_addr(fd: impl AsFd) -> Option<SocketAddr> {
    let name = getpeername(fd.as_fd().as_raw_fd()).ok()?;
    match address_of(name).ok()? {
        LocalAddr::Inet(address) => Some(address),
        LocalAddr::Unix(_) => None,
    }
}

fn address_of(name: SockaddrStorage) -> io::Result<LocalAddr> {
    if let Some(v4) = name.as_sockaddr_in() {
        return Ok(LocalAddr::Inet(SocketAddr::V4((*v4).into())));
    }
    if let Some(v6) = name.as_sockaddr_in6() {
        return Ok(LocalAddr::Inet(SocketAddr::V6((*v6).into())));
    }
    if let Some(unix) = name.as_unix_addr() {
        let path = match (unix.path(), unix.as_abstract()) {
            (Some(path), _) => path.to_owned(),
            (None, Some(name)) => PathBuf::from(format!("@{}", String::from_utf8_lossy(name))),
            (None, None) => PathBuf::new(),
        };
        return Ok(LocalAddr::Unix(path));
    }
    Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// The queue of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait in it.
    pub length: u32,
    /// As many as may.
    pub limit: u32,
    /// Connections that were dropped because it was full; `None` where the kernel does not count them
    /// (a unix socket lets the client wait instead).
    pub overflows: Option<u32>,
}

/// Looks at a listening socket's queue; `None` for what has none.
#[must_use]
pub fn queue(fd: impl AsFd) -> Option<Queue> {
    let fd = fd.as_fd();
    let (length, limit, overflows) = match local_addr(fd).ok()? {
        LocalAddr::Inet(_) => {
            let (length, limit) = crate::sys::accept_queue(fd)?;
            (length, limit, crate::sys::socket_drops(fd))
        }
        LocalAddr::Unix(_) => {
            let (length, limit) = unix_diag(fd, SHOW_RQLEN, RQLEN)?;
            (length, limit, None)
        }
    };
    Some(Queue {
        length,
        limit,
        overflows,
    })
}

/// Of a listening unix socket: its queue and its backlog (linux/unix_diag.h).
const SHOW_RQLEN: u32 = 0x10;
const RQLEN: u16 = 4;
/// Of a bound unix socket: inode and device of its path.
const SHOW_VFS: u32 = 0x2;
const VFS: u16 = 1;

/// sock_diag(7): two numbers that the kernel tells of a unix socket.
fn unix_diag(fd: BorrowedFd<'_>, show: u32, attribute: u16) -> Option<(u32, u32)> {
    use nix::sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, recv, sendto};
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    const HEADER: usize = 16;
    const MESSAGE: usize = 16;
    let inode = u32::try_from(nix::sys::stat::fstat(fd).ok()?.st_ino).ok()?;
    let mut request = Vec::with_capacity(HEADER + 24);
    request.extend_from_slice(&40u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&inode.to_ne_bytes());
    request.extend_from_slice(&show.to_ne_bytes());
    request.extend_from_slice(&[0xff; 8]);
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        FLAGS,
        SockProtocol::NetlinkSockDiag,
    )
    .ok()?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty()).ok()?;
    let mut answer = [0u8; 1024];
    // The kernel has answered by the time that the request was sent.
    let count = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).ok()?;
    let word = |at: usize| -> Option<u16> {
        Some(u16::from_ne_bytes(
            answer[..count].get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let long = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(
            answer[..count].get(at..at + 4)?.try_into().ok()?,
        ))
    };
    if word(4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut at = HEADER + MESSAGE;
    loop {
        let length = usize::from(word(at)?);
        if word(at + 2)? == attribute {
            return Some((long(at + 4)?, long(at + 8)?));
        }
        at += length.max(4).next_multiple_of(4);
    }
}

/// Whether a connect to `path` ends up at `listener`, which may have been bound under another name and
/// renamed since. Nothing is asked of whoever accepts there, unless the kernel does not tell in another
/// way.
#[must_use]
pub fn leads_to(path: &Path, listener: impl AsFd) -> bool {
    use nix::sys::stat::{major, minor};
    use std::os::unix::fs::MetadataExt;
    let listener = listener.as_fd();
    let Ok(found) = std::fs::metadata(path) else {
        return false;
    };
    // The kernel's own dev_t has other places for the two than that of stat(2).
    let device = (major(found.dev()) << 20 | minor(found.dev())) as u32;
    if unix_diag(listener, SHOW_VFS, VFS) == Some((found.ino() as u32, device)) {
        return true;
    }
    // The inode of an overlay's file is another one below. A connection tells: it bears the name that
    // its listener was bound to.
    let peer = || -> io::Result<LocalAddr> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
        nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        address_of(getpeername(fd.as_raw_fd())?)
    };
    match (peer(), local_addr(listener)) {
        (Ok(peer), Ok(own)) => peer == own && own != LocalAddr::Unix(PathBuf::new()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Two ends of a TCP connection over the loopback, for a client that is no stranger.
///
/// # Errors
/// Those of socket(2), bind(2), connect(2), accept(2); EAGAIN when the connection does not come.
pub fn loopback_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let ours = std::net::TcpStream::connect(listener.local_addr()?)?;
    // Another process may have found the port in the meantime: it is not the one.
    for _ in 0..16 {
        let (theirs, peer) = listener.accept()?;
        if peer == ours.local_addr()? {
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            return Ok((ours.into(), theirs.into()));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Who listens on `address`: pid and command, as far as /proc shows it to us.
#[must_use]
pub fn holder_of(address: &Address) -> Option<(i32, String)> {
    let inode = match address {
        Address::Tcp { port, .. } => ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .find_map(|table| listener_inode(&std::fs::read_to_string(table).ok()?, *port))?,
        Address::Unix(path) => return unix_holder(path),
    };
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(fds) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        if fds.flatten().any(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        }) {
            return Some((pid, command_of(pid)));
        }
    }
    None
}

fn command_of(pid: i32) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.trim().to_owned()
}

/// SO_PEERCRED names whoever called listen(2) (unix(7)). /proc/net/unix would not do: it holds the name
/// that a socket was bound to, and ours are renamed.
fn unix_holder(path: &Path) -> Option<(i32, String)> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None).ok()?;
    nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    let peer = nix::sys::socket::getsockopt(&fd, sockopt::PeerCredentials).ok()?;
    Some((peer.pid(), command_of(peer.pid())))
}

/// Whose socket listens on a port. proc_net_tcp: local address in hex in the second column, state 0A (LISTEN),
/// inode in the tenth.
#[must_use]
pub fn listener_inode(table: &str, port: u16) -> Option<u64> {
    let ending = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = words.get(1)?.ends_with(&ending) && *words.get(3)? == "0A";
        if listens {
            words.get(9)?.parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("socket-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = directory("stale");
        let path = directory.join("s");
        let rights = UnixRights {
            mode: 0o640,
            owner: None,
        };
        let first = listen_unix(&path, rights, 8).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(
            listen_unix(&path, rights, 8).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        drop(first);
        let _second = listen_unix(&path, rights, 8).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        assert_eq!(
            std::fs::read_dir(&directory).unwrap().count(),
            1,
            "no temporary name is left"
        );
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = directory("file");
        let path = directory.join("f");
        std::fs::write(&path, "precious").unwrap();
        let rights = UnixRights {
            mode: 0o600,
            owner: None,
        };
        assert_eq!(
            listen_unix(&path, rights, 8).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn rights_are_given_to_a_socket_and_to_nothing_that_takes_its_place() {
        let directory = directory("rights");
        let (file, path) = (directory.join("f"), directory.join("s"));
        let rights = |mode| UnixRights { mode, owner: None };
        let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o777;
        let _fd = listen_unix(&path, rights(0o600), 8).unwrap();
        set_rights(&path, rights(0o666)).unwrap();
        assert_eq!(mode(&path), 0o666);
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        // A file, a link to one, a link to a socket, and a socket that somebody has given another name.
        let links = [directory.join("to-file"), directory.join("to-socket")];
        std::os::unix::fs::symlink(&file, &links[0]).unwrap();
        std::os::unix::fs::symlink(&path, &links[1]).unwrap();
        for wrong in [&file, &links[0], &links[1]] {
            let refused = set_rights(wrong, rights(0o644)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{wrong:?}");
        }
        std::fs::hard_link(&path, directory.join("other")).unwrap();
        assert!(set_rights(&path, rights(0o644)).is_err());
        assert_eq!((mode(&file), mode(&path)), (0o600, 0o666));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_holder_of_a_port_is_found() {
        let fd = listen_tcp("127.0.0.1:0".parse().unwrap(), None, 8).unwrap();
        let Ok(LocalAddr::Inet(bound)) = local_addr(&fd) else {
            panic!()
        };
        let address = Address::Tcp {
            host: Some("127.0.0.1".to_owned()),
            port: bound.port(),
        };
        assert_eq!(
            holder_of(&address).map(|holder| holder.0),
            Some(std::process::id() as i32)
        );
    }

    #[test]
    fn queues_are_counted() {
        let tcp = listen_tcp("127.0.0.1:0".parse().unwrap(), None, 1).unwrap();
        let Ok(LocalAddr::Inet(bound)) = local_addr(&tcp) else {
            panic!()
        };
        let directory = directory("queue");
        let path = directory.join("s");
        let rights = UnixRights {
            mode: 0o600,
            owner: None,
        };
        let unix = listen_unix(&path, rights, 7).unwrap();
        let empty = Queue {
            length: 0,
            limit: 1,
            overflows: Some(0),
        };
        assert_eq!(queue(&tcp), Some(empty));
        let _one = std::net::TcpStream::connect(bound).unwrap();
        let _two = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let _three = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(queue(&tcp), Some(Queue { length: 1, ..empty }));
        let waiting = Queue {
            length: 2,
            limit: 7,
            overflows: None,
        };
        assert_eq!(queue(&unix), Some(waiting));
        // Two fit into a backlog of one; what comes then is dropped, and counted.
        let _four = std::net::TcpStream::connect(bound).unwrap();
        let fifth =
            std::net::TcpStream::connect_timeout(&bound, std::time::Duration::from_millis(300));
        assert!(fifth.is_err());
        assert!(queue(&tcp).unwrap().overflows.unwrap() > 0);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_path_leads_to_the_socket_that_was_renamed_there_and_to_no_other() {
        let directory = directory("leads");
        let (one, two) = (directory.join("one"), directory.join("two"));
        let rights = UnixRights {
            mode: 0o600,
            owner: None,
        };
        let first = listen_unix(&one, rights, 8).unwrap();
        let second = listen_unix(&two, rights, 8).unwrap();
        assert!(leads_to(&one, &first) && leads_to(&two, &second));
        assert!(!leads_to(&one, &second) && !leads_to(&two, &first));
        std::fs::remove_file(&one).unwrap();
        assert!(!leads_to(&one, &first));
        std::fs::rename(&two, &one).unwrap();
        assert!(leads_to(&one, &second));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_pair_over_the_loopback_is_connected() {
        let (ours, theirs) = loopback_pair().unwrap();
        nix::unistd::write(&ours, b"x").unwrap();
        let mut buffer = [0u8; 2];
        assert_eq!(nix::unistd::read(&theirs, &mut buffer), Ok(1));
    }

    #[test]
    fn a_group_is_joined_steered_and_closed_to_others() {
        let first = listen_any(0, 512).unwrap();
        let Ok(LocalAddr::Inet(bound)) = local_addr(&first) else {
            panic!()
        };
        open_group(&first).unwrap();
        let mut group = vec![first];
        for _ in 0..3 {
            group.push(join_group(&group[0], 512).unwrap());
        }
        // Who does not belong to it finds the address taken, as ever.
        let other = listen_tcp(bound, bound.is_ipv6().then_some(false), 1);
        assert_eq!(other.unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        let mut clients = Vec::new();
        let mut connect = |group: &[OwnedFd]| -> Vec<u32> {
            let before: Vec<u32> = group.iter().map(|fd| queue(fd).unwrap().length).collect();
            for _ in 0..100 {
                let to = (Ipv4Addr::LOCALHOST, bound.port());
                clients.push(std::net::TcpStream::connect(to).unwrap());
            }
            let after = group.iter().map(|fd| queue(fd).unwrap().length);
            after
                .zip(before)
                .map(|(after, before)| after - before)
                .collect()
        };
        assert!(connect(&group).iter().all(|count| *count > 0));
        for closed in [&[3][..], &[0, 2], &[1, 2, 3], &[]] {
            steer_group(&group[0], 4, closed).unwrap();
            for (index, count) in connect(&group).into_iter().enumerate() {
                assert_eq!(count == 0, closed.contains(&index), "{closed:?}: {index}");
            }
        }
        assert!(steer_group(&group[0], 4, &[0, 1, 2, 3]).is_err());
        assert!(is_listening(&group[3]));
        assert!(!is_listening(
            udp("127.0.0.1:0".parse().unwrap(), false, false).unwrap()
        ));
        let directory = directory("group");
        let rights = UnixRights {
            mode: 0o600,
            owner: None,
        };
        let unix = listen_unix(&directory.join("s"), rights, 1).unwrap();
        assert!(open_group(&unix).is_err() && join_group(&unix, 1).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn written_as_read() {
        for text in ["3000", "127.0.0.1:80", "[::1]:80", "unix:/a/b"] {
            assert_eq!(crate::cli::address(text).unwrap().to_string(), text);
        }
    }
}
