//! `attach`: a person at a terminal. Lines are edited here and go over as whole expressions, so that no key
//! waits for an event loop.

use crate::audit::Trail;
use crate::cli::{Attach, Eval};
use crate::eval::GRACE;
use crate::events;
use crate::frames::Hello;
use crate::link::{Came, Link, wait_for};
use crate::target::Target;
use crate::terminal;
use crate::wire::{Answer, Request};
use common::cli::{note, print};
use common::error::{Error, Result};
use common::exit::Exit;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{geteuid, isatty};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler,
    Helper, KeyCode, KeyEvent, Modifiers, RepeatCount,
};
use std::cell::RefCell;
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So long a key may wait for a completion: an agent lets a client whose share is spent wait for a second.
const COMPLETION: Duration = Duration::from_millis(1500);
/// A loop that is not blocked says hello within microseconds.
const GREETING: Duration = Duration::from_secs(5);

/// The session, until one of both sides ends it.
pub fn run(order: Attach) -> Result<Exit> {
    let terminal = isatty(common::sys::standard(0)).unwrap_or(false);
    let target = crate::inject::target(&order.reach)?;
    let (cols, rows) = common::sys::window_size(common::sys::standard(0)).unwrap_or((80, 24));
    let hello = Hello {
        mode: if terminal { "pty" } else { "pipe" }.to_owned(),
        cols,
        rows,
        term: std::env::var("TERM").unwrap_or_default(),
        read_only: order.read_only,
        ..Hello::default()
    };
    let deadline = Some(Instant::now() + GREETING);
    let (link, answer) = Link::meet(&target.place, &hello, deadline)?;
    if answer.mode == "serve" {
        let mut trail = trail(&order)?;
        trail.say(events::CONNECTED, &[]);
        let order = crate::served::Order {
            reach: &order.reach,
            input: crate::served::Input::Stdin,
            timeout: None,
        };
        return crate::served::run(link, &answer, order);
    }
    if !terminal {
        // A script: the same as eval.
        drop(link);
        return crate::eval::run(Eval {
            reach: order.reach,
            expression: Vec::new(),
            all: false,
            compare: false,
            json: false,
            timeout: Some(order.timeout),
            read_only: order.read_only,
            raw: false,
            limit: 1 << 20,
            force: false,
        });
    }
    let mut trail = trail(&order)?;
    trail.say(events::CONNECTED, &[]);
    let interrupts = terminal::guard(&[])?;
    let session = Session {
        link: Rc::new(RefCell::new(link)),
        interrupts,
        trail,
        order: &order,
        asked_to_end: None,
    };
    let end = session.talk(&target);
    terminal::restore();
    end
}

fn trail(order: &Attach) -> Result<Trail> {
    let reach = &order.reach;
    Trail::open(reach.audit.as_deref(), reach.audit_expr, &reach.target)
}

struct Session<'a> {
    link: Rc<RefCell<Link>>,
    interrupts: SignalFd,
    trail: Trail,
    order: &'a Attach,
    /// What would have ended the app, when it was typed first.
    asked_to_end: Option<String>,
}

/// What follows after an evaluation.
enum Next {
    Prompt,
    Detach,
}

impl Session<'_> {
    fn talk(mut self, target: &Target) -> Result<Exit> {
        let pid = self.link.borrow().peer.pid;
        let info = {
            let mut link = self.link.borrow_mut();
            let id = link.ask(Request {
                op: "info",
                ..Request::default()
            })?;
            link.answer(id, Some(Instant::now() + GREETING))?
        };
        let peer = self.link.borrow().peer;
        note(&format!(
            "{} {}, pid {pid}, user {}. This is the live app: Ctrl-D or ^] q leaves it alone.",
            info.runtime,
            common::control::visible(&info.version),
            crate::door::user_name(peer.uid)
        ));
        let sign = if geteuid().is_root() { '#' } else { '>' };
        let name = match target.worker {
            Some(worker) => format!("{}/{worker}", target.app),
            None => target.app.clone(),
        };
        let prompt = format!("[{pid}] {name}{sign} ");
        let detach = Arc::new(AtomicBool::new(false));
        let mut editor = self.editor(&detach)?;
        let history = history_file(&target.app);
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        let mut code = String::new();
        loop {
            // Control-C that was typed before counts for nothing; one behind the line is meant for it.
            while let Ok(Some(_)) = self.interrupts.read_signal() {}
            let typed = editor.readline(if code.is_empty() { &prompt } else { "... " });
            match typed {
                Ok(line) => {
                    if !code.is_empty() {
                        code.push('\n');
                    }
                    code.push_str(&line);
                }
                Err(ReadlineError::Interrupted) if detach.load(Ordering::Relaxed) => {
                    note("detached");
                    return Ok(Exit::Ok);
                }
                Err(ReadlineError::Interrupted) => {
                    code.clear();
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(Exit::Ok),
                Err(why) => return Err(Error::new("read from the terminal", why)),
            }
            if code.trim().is_empty() {
                code.clear();
                continue;
            }
            if code.trim() == ".exit" {
                return Ok(Exit::Ok);
            }
            if !self.whole(&code)? {
                continue;
            }
            let whole = std::mem::take(&mut code);
            let kept = editor.add_history_entry(&whole).unwrap_or(false);
            if let (Some(path), true) = (&history, kept) {
                let _ = editor.append_history(path);
            }
            match self.evaluate(&whole)? {
                Next::Prompt => {}
                Next::Detach => return Ok(Exit::Ok),
            }
        }
    }

    fn editor(&self, detach: &Arc<AtomicBool>) -> Result<Editor<Names, FileHistory>> {
        let failed = |why: ReadlineError| Error::new("edit lines on this terminal", why);
        let config = Config::builder()
            .history_ignore_space(true)
            .max_history_size(1000)
            .map_err(failed)?
            .completion_type(rustyline::CompletionType::List)
            .build();
        let mut editor: Editor<Names, FileHistory> = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Names(self.link.clone())));
        let escape = Escape {
            begun: AtomicBool::new(false),
            detach: detach.clone(),
        };
        editor.bind_sequence(Event::Any, EventHandler::Conditional(Box::new(escape)));
        Ok(editor)
    }

    /// Whether the app's own parser wants no more lines. One that does not answer gets it as it is.
    fn whole(&mut self, code: &str) -> Result<bool> {
        let mut link = self.link.borrow_mut();
        let id = link.ask(Request {
            op: "check",
            code: Some(code.to_owned()),
            ..Request::default()
        })?;
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        loop {
            match link.receive(deadline)? {
                Came::Answer(answer) if answer.id == Some(id) => {
                    return Ok(answer.whole || !answer.ok);
                }
                Came::Answer(answer) => aside(&answer),
                Came::Nothing => return Ok(true),
            }
        }
    }

    fn evaluate(&mut self, code: &str) -> Result<Next> {
        let force = self
            .asked_to_end
            .take()
            .is_some_and(|before| before == code);
        let begun = Instant::now();
        let limit = self.order.timeout;
        let id = self.link.borrow_mut().ask(Request {
            op: "eval",
            code: Some(code.to_owned()),
            mode: Some("text"),
            timeout_ms: Some(limit.as_millis() as u64),
            // A person stops the waiting for a promise himself.
            wait_ms: Some(0),
            read_only: Some(self.order.read_only),
            colors: Some(terminal::colours(1)),
            limit: Some(1 << 20),
            force: Some(force),
            ..Request::default()
        })?;
        let mut interrupted = 0;
        let mut say_at: Option<Instant> = None;
        loop {
            loop {
                let Some(answer) = self.link.borrow_mut().next_answer() else {
                    break;
                };
                if answer.id != Some(id) {
                    aside(&answer);
                    continue;
                }
                self.trail.evaluated(code, answer.ok, begun.elapsed());
                self.show(&answer, code)?;
                return Ok(Next::Prompt);
            }
            let ready = {
                let link = self.link.borrow();
                wait_for(&[link.as_fd(), self.interrupts.as_fd()], say_at)?
            };
            if !ready.contains(&true) {
                say_at = None;
                note(&match (limit + GRACE).checked_sub(begun.elapsed()) {
                    _ if limit.is_zero() => "running, without a time limit; Ctrl-C again leaves it alone".to_owned(),
                    Some(left) => format!(
                        "running, the time limit ends it in {}; Ctrl-C again leaves it alone",
                        common::time::say(left.saturating_sub(GRACE))
                    ),
                    None => "still running: a native call, or the app's own loop is blocked; Ctrl-C again leaves it alone".to_owned(),
                });
                continue;
            }
            if ready.get(1) == Some(&true) {
                while let Ok(Some(_)) = self.interrupts.read_signal() {
                    interrupted += 1;
                }
                if interrupted > 1 {
                    note("detached; what was begun goes on");
                    return Ok(Next::Detach);
                }
                // Ends the waiting for a promise; what runs cannot hear it, and does not answer soon.
                self.link.borrow_mut().ask(Request {
                    op: "cancel",
                    ..Request::default()
                })?;
                say_at = Some(Instant::now() + Duration::from_millis(300));
            }
            if ready.first() == Some(&true) {
                self.link.borrow_mut().read()?;
            }
        }
    }

    fn show(&mut self, answer: &Answer, code: &str) -> Result<()> {
        if answer.ok {
            print(&answer.text)?;
            if answer.truncated {
                note("(cut)");
            }
        } else if answer.would_end {
            self.asked_to_end = Some(code.to_owned());
            note("This ends the APP, not the session. Type it again to do it.");
        } else {
            note(&answer.text);
        }
        Ok(())
    }
}

/// What nobody asked for.
fn aside(answer: &Answer) {
    if answer.event.as_deref() == Some("guarded") {
        note(&format!(
            "(kept from the app, since it was typed in: {})",
            common::control::visible(&answer.text)
        ));
    }
}

/// `^] q`. As a sequence it cannot be bound: the editor's own ^] (search a letter) would take the q.
struct Escape {
    begun: AtomicBool,
    detach: Arc<AtomicBool>,
}

impl ConditionalEventHandler for Escape {
    fn handle(&self, event: &Event, _: RepeatCount, _: bool, _: &EventContext) -> Option<Cmd> {
        let key = event.get(0).copied()?;
        let begun = self.begun.swap(false, Ordering::Relaxed);
        if key == KeyEvent(KeyCode::Char(']'), Modifiers::CTRL) {
            self.begun.store(!begun, Ordering::Relaxed);
            return Some(Cmd::Noop);
        }
        if begun && key == KeyEvent(KeyCode::Char('q'), Modifiers::NONE) {
            self.detach.store(true, Ordering::Relaxed);
            return Some(Cmd::Interrupt);
        }
        None
    }
}

/// Completes from the live objects.
struct Names(Rc<RefCell<Link>>);

impl Helper for Names {}
impl Highlighter for Names {}
impl Validator for Names {}
impl Hinter for Names {
    type Hint = String;
}

impl Completer for Names {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let nothing = Ok((at, Vec::new()));
        let text = line.get(..at).unwrap_or_default();
        let Ok(mut link) = self.0.try_borrow_mut() else {
            return nothing;
        };
        let asked = link.ask(Request {
            op: "complete",
            text: Some(text.to_owned()),
            ..Request::default()
        });
        let found = asked.and_then(|id| link.answer(id, Some(Instant::now() + COMPLETION)));
        let Ok(answer) = found else {
            return nothing;
        };
        // The agent counts UTF-16 units, of the last 4096; the word itself is ASCII.
        let units = text.encode_utf16().count().min(4096);
        let word = units.saturating_sub(answer.start);
        Ok((at.saturating_sub(word), answer.list))
    }
}

/// `$XDG_STATE_HOME/replsock/APP.history`, in a directory of the user's alone.
fn history_file(app: &str) -> Option<PathBuf> {
    let named = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")))?;
    std::fs::create_dir_all(&state).ok()?;
    let directory = state.join("replsock");
    match DirBuilder::new().mode(0o700).create(&directory) {
        Ok(()) => {}
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    crate::door::check(&directory).ok()?;
    Some(directory.join(format!("{app}.history")))
}
