//! The way to a file, step by step: every directory and every link on it. A look that asks for the file
//! alone finds nothing new on a network file system whose client remembers the way.

use crate::place::{Class, Places};
use crate::signature::{Seen, Signature};
use common::sys::{Attributes, Sync, statx, statx_cached, statx_fd};
use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// Links on the way to one file before it is a loop (MAXSYMLINKS of the kernel).
const LINKS: usize = 40;

/// A name that was looked up in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The directory, without any link in its path.
    pub directory: PathBuf,
    /// Its attributes.
    pub attributes: Attributes,
    /// What was looked up there; empty: everything in it matters.
    pub name: OsString,
    /// Neither it nor any directory above it is on a remote file system: asking for it does not hang.
    pub local: bool,
}

/// What a look has found.
#[derive(Debug)]
pub struct Walk {
    /// The file; an error says nothing about it.
    pub seen: io::Result<Seen>,
    /// Its type and permissions, if it is there.
    pub mode: u32,
    /// The names on the way, in order.
    pub steps: Vec<Step>,
    /// The worst of all file systems on the way.
    pub class: Class,
    /// It goes round in circles.
    pub circle: bool,
    /// Where the file is, or would be, if that can be asked without hanging.
    pub spot: Option<Spot>,
}

/// The place of a regular file on a file system of this machine: its last step is the file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Without any link in it.
    path: CString,
    /// What is there must be on this device, or the way has changed.
    dev: u64,
}

impl Spot {
    /// The file that is there, if that is known at once and beyond doubt: no link, no mount, no directory,
    /// and nothing that would have to be waited for.
    #[must_use]
    pub fn glance(&self) -> Option<Signature> {
        let found = statx_cached(&self.path).ok()?;
        self.trusts(&found).then(|| Signature::from(found))
    }

    fn trusts(&self, found: &Attributes) -> bool {
        found.mode & libc::S_IFMT == libc::S_IFREG && found.dev == self.dev && !found.mount_root
    }
}

struct Frame {
    path: PathBuf,
    attributes: Attributes,
    class: Class,
    local: bool,
}

/// Goes the way to `path`, an absolute one. `..` is taken where it stands, after the links before it.
pub fn walk(path: &Path, places: &mut Places) -> Walk {
    let mut walk = Walk {
        seen: Ok(Seen::Missing),
        mode: 0,
        steps: Vec::new(),
        class: Class::Local,
        circle: false,
        spot: None,
    };
    match go(path, places, &mut walk) {
        Ok(()) => {}
        Err(why) => match why.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => walk.seen = Ok(Seen::Missing),
            Some(libc::ELOOP) => {
                walk.seen = Ok(Seen::Missing);
                walk.circle = true;
            }
            _ => walk.seen = Err(why),
        },
    }
    walk
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A word of a path that is still to go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Up,
    Name(OsString),
    /// A slash at the end: a directory is meant.
    Directory,
}

fn words(path: &Path) -> VecDeque<Word> {
    let mut list: VecDeque<Word> = path
        .components()
        .filter_map(|part| match part {
            Component::ParentDir => Some(Word::Up),
            Component::Normal(name) => Some(Word::Name(name.to_owned())),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        list.push_back(Word::Directory);
    }
    list
}

fn go(path: &Path, places: &mut Places, walk: &mut Walk) -> io::Result<()> {
    // It costs nothing where the file system is local.
    let sync = Sync::Force;
    let root = statx(c"/", sync)?;
    let class = places.class(root.dev, Path::new("/"));
    walk.class = class;
    let mut stack = vec![Frame {
        path: PathBuf::from("/"),
        attributes: root,
        class,
        local: class != Class::Remote,
    }];
    let mut words = words(path);
    let mut links = 0;
    while let Some(word) = words.pop_front() {
        let Some(here) = stack.last() else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let name = match word {
            Word::Directory => continue,
            Word::Up => {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            Word::Name(name) => name,
        };
        walk.steps.push(Step {
            directory: here.path.clone(),
            attributes: here.attributes,
            name: name.clone(),
            local: here.local,
        });
        let next = here.path.join(&name);
        let path = c_path(&next)?;
        walk.spot = (here.local && words.is_empty()).then(|| Spot {
            path: path.clone(),
            dev: here.attributes.dev,
        });
        let found = statx(&path, sync)?;
        match found.mode & libc::S_IFMT {
            libc::S_IFLNK => {
                walk.spot = None;
                links += 1;
                if links > LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = std::fs::read_link(&next)?;
                if target.is_absolute() {
                    stack.truncate(1);
                }
                for word in self::words(&target).into_iter().rev() {
                    words.push_front(word);
                }
            }
            libc::S_IFDIR => {
                walk.spot = None;
                let class = if found.dev == here.attributes.dev {
                    here.class
                } else {
                    places.class(found.dev, &next)
                };
                walk.class = walk.class.max(class);
                let local = here.local && class != Class::Remote;
                stack.push(Frame {
                    path: next,
                    attributes: found,
                    class,
                    local,
                });
            }
            _ if words.is_empty() => {
                walk.mode = found.mode;
                // A file that is mounted by itself (`docker -v FILE:FILE`) lies where it came from, and what
                // is done to it there goes by the directory there: the one here is told nothing.
                let mut class = here.class;
                if found.dev != here.attributes.dev {
                    class = class.max(places.class(found.dev, &next));
                }
                if found.mount_root {
                    class = Class::Remote;
                }
                walk.class = walk.class.max(class);
                // On an overlay it may be on another device than its directory.
                walk.spot = walk.spot.take().filter(|_| class != Class::Remote);
                if let Some(spot) = &mut walk.spot {
                    spot.dev = found.dev;
                }
                // Removed between the two questions: as missing, like everything else on the way.
                let found = fresh(&next, found, class)?;
                walk.seen = Ok(Seen::There(Signature::from(found)));
                return Ok(());
            }
            _ => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        }
    }
    if let Some(here) = stack.last() {
        // A directory is touched by what is made or removed in it.
        walk.steps.push(Step {
            directory: here.path.clone(),
            attributes: here.attributes,
            name: OsString::new(),
            local: here.local,
        });
        walk.mode = here.attributes.mode;
        walk.seen = Ok(Seen::There(Signature::from(here.attributes)));
    }
    Ok(())
}

/// On a remote file system only an open file is asked for at its server for certain (sshfs answers even
/// AT_STATX_FORCE_SYNC from its cache). A file that may not be read is believed as it is.
fn fresh(path: &Path, found: Attributes, class: Class) -> io::Result<Attributes> {
    let regular = found.mode & libc::S_IFMT == libc::S_IFREG;
    if class != Class::Remote || !regular {
        return Ok(found);
    }
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(path);
    match opened {
        Ok(file) => {
            use std::os::fd::AsFd;
            statx_fd(file.as_fd(), Sync::Force)
        }
        Err(why) if matches!(why.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(found),
        Err(why) => Err(why),
    }
}

/// The path as it is meant now: absolute, with `.` and `..` left where they stand.
///
/// # Errors
/// The working directory is gone.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let mut whole = std::env::current_dir()?.into_os_string();
    // PathBuf::join would do the same; but "." alone must stay visible as a directory.
    if whole != OsStr::new("/") {
        whole.push("/");
    }
    whole.push(path);
    Ok(whole.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_path() {
        let name = |text: &str| Word::Name(text.into());
        assert_eq!(
            words(Path::new("/a//./b/../c")),
            [name("a"), name("b"), Word::Up, name("c")]
        );
        assert_eq!(words(Path::new("/a/")), [name("a"), Word::Directory]);
        assert!(
            words(Path::new("/"))
                .iter()
                .all(|word| *word == Word::Directory)
        );
    }

    #[test]
    fn each_step_is_named_and_dots_go_after_links() {
        let dir = std::env::temp_dir().join(format!("walk-{}", std::process::id()));
        let dir = {
            std::fs::create_dir_all(dir.join("releases/7/tmp")).unwrap();
            dir.canonicalize().unwrap()
        };
        std::fs::write(dir.join("releases/7/tmp/restart"), "").unwrap();
        std::fs::write(dir.join("releases/up"), "").unwrap();
        std::os::unix::fs::symlink("releases/7", dir.join("current")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        let mut places = Places::default();
        let mut go = |path: &str| walk(&dir.join(path), &mut places);

        let found = go("current/tmp/restart");
        assert!(matches!(found.seen, Ok(Seen::There(_))));
        let at = |name: &str| {
            found
                .steps
                .iter()
                .filter(|step| step.name == name)
                .map(|step| step.directory.strip_prefix(&dir).unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(at("current"), [PathBuf::new()]);
        assert_eq!(at("releases"), [PathBuf::new()]);
        assert_eq!(at("restart"), [PathBuf::from("releases/7/tmp")]);
        // Not `dir/up`: the link goes first.
        assert!(matches!(go("current/../up").seen, Ok(Seen::There(_))));
        assert!(matches!(go("up").seen, Ok(Seen::Missing)));
        assert!(matches!(go("none/at/all").seen, Ok(Seen::Missing)));
        assert!(matches!(go("releases/up/x").seen, Ok(Seen::Missing)));
        // A slash at the end means a directory.
        assert!(matches!(go("releases/up/").seen, Ok(Seen::Missing)));
        assert!(matches!(go("current/").seen, Ok(Seen::There(_))));
        let circle = go("loop");
        assert!(circle.circle && matches!(circle.seen, Ok(Seen::Missing)));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
