//! The arithmetic of nirvana-fleet(7), played through: a thousand hosts, of which each looks in its own phase, acts by
//! splay or waits for a lock. The figures of the page are what comes out here.
//!
//!     cargo test --package bench --test fleet_sums -- --nocapture
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Instant;

const HOSTS: usize = 1000;
/// How long a host's reload takes, in seconds; so the page has it.
const RELOAD: f64 = 10.0;
/// From the end of one turn to the start of the next, in seconds: the engine's round trips, three clients started.
const HANDOVER: f64 = 0.1;
/// `--settle`, in seconds.
const SETTLE: f64 = 0.1;
/// `--interval`, in seconds.
const INTERVAL: f64 = 1.0;
/// `--action-timeout`, in seconds.
const ACTION_TIMEOUT: f64 = 60.0;
/// NFS operations of a look at a file in the mounted directory itself, as tests/uml/nfs.py counts them.
const OPERATIONS_V3: usize = 4;
const OPERATIONS_V4: usize = 3;
/// So often in a lease etcd's client renews it (clientv3/lease.go).
const RENEWALS: f64 = 3.0;

/// splitmix64: the same numbers on each machine.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn parts(&mut self) -> Vec<f64> {
        (0..HOSTS).map(|_| self.part()).collect()
    }
}

/// Looks a second in the mean of ten intervals, and in the busiest tenth of a second of them.
fn looks(interval: f64, chance: &mut Chance) -> (f64, usize) {
    let span = interval * 10.0;
    let mut tenths = vec![0usize; (span * 10.0).round() as usize];
    let mut all = 0usize;
    for phase in chance.parts() {
        let mut at = phase * interval;
        while at < span {
            all += 1;
            let tenth = (at * 10.0) as usize;
            if let Some(count) = tenths.get_mut(tenth) {
                *count += 1;
            }
            at += interval;
        }
    }
    (all as f64 / span, *tenths.iter().max().unwrap())
}

/// When each host has seen one touch at 0 and is ready to act.
fn ready(chance: &mut Chance) -> Vec<f64> {
    let phases = chance.parts().into_iter();
    phases.map(|phase| phase * INTERVAL + SETTLE).collect()
}

/// By splay alone: how many reload at once in the mean, and at most.
fn together(splay: f64, chance: &mut Chance) -> (f64, usize) {
    let mut changes: Vec<(f64, i32)> = Vec::new();
    for at in ready(chance) {
        let begin = at + chance.part() * splay;
        changes.push((begin, 1));
        changes.push((begin + RELOAD, -1));
    }
    changes.sort_by(|one, other| one.partial_cmp(other).unwrap());
    let (mut now, mut most) = (0, 0);
    for (_, change) in &changes {
        now += change;
        most = most.max(now);
    }
    let span = changes.last().unwrap().0 - changes[0].0;
    (HOSTS as f64 * RELOAD / span, most as usize)
}

/// How a roll went.
struct Roll {
    done: usize,
    /// When the last one is over, in seconds.
    end: f64,
    /// The mean wait for the lock, in seconds.
    wait: f64,
}

/// Under locks, of which each host wants one: a queue for each. Who waits and works longer than `limit` is ended,
/// and lets go. The first so many `dead` die in their turn: their lease runs out first.
fn locked(queue_of: &[usize], limit: f64, dead: usize, lease: f64, chance: &mut Chance) -> Roll {
    let locks = queue_of.iter().max().unwrap() + 1;
    let mut arrivals: Vec<(f64, usize)> = ready(chance)
        .into_iter()
        .zip(queue_of.iter().copied())
        .collect();
    arrivals.sort_by(|one, other| one.partial_cmp(other).unwrap());
    let mut queues = vec![VecDeque::new(); locks];
    for (at, queue) in arrivals {
        queues[queue].push_back(at);
    }
    let mut roll = Roll {
        done: 0,
        end: 0.0,
        wait: 0.0,
    };
    let (mut began, mut died) = (0usize, 0usize);
    for queue in queues {
        let mut free = 0.0f64;
        for at in queue {
            let begin = free.max(at) + HANDOVER;
            let over = at + limit;
            if begin >= over {
                continue;
            }
            began += 1;
            roll.wait += begin - at;
            if died < dead {
                died += 1;
                free = begin + lease;
            } else if begin + RELOAD > over {
                free = over;
            } else {
                roll.done += 1;
                free = begin + RELOAD;
            }
            roll.end = roll.end.max(free);
        }
    }
    roll.wait /= began as f64;
    roll
}

/// Renewals of leases a second, in the mean of a minute, while all wait.
fn renewals(lease: f64, chance: &mut Chance) -> f64 {
    let every = lease / RENEWALS;
    let mut all = 0usize;
    for phase in chance.parts() {
        let mut at = phase * every;
        while at < 60.0 {
            all += 1;
            at += every;
        }
    }
    all as f64 / 60.0
}

/// `2h 48m`, `16m 50s`, `10s`.
fn time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, 0) => format!("{minutes}m"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, 0, _) => format!("{hours}h"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

/// `4,000`
fn number(value: f64) -> String {
    let value = value.round() as u64;
    if value < 1000 {
        value.to_string()
    } else {
        format!("{},{:03}", value / 1000, value % 1000)
    }
}

/// The rows of the page's tables.
fn rows() -> Vec<String> {
    let chance = &mut Chance(9);
    let mut rows = Vec::new();
    for interval in [1.0, 5.0, 10.0, 30.0] {
        let (mean, most) = looks(interval, chance);
        rows.push(format!(
            ".It {} Ta {} Ta {} Ta {}",
            time(interval),
            number(mean * OPERATIONS_V3 as f64),
            number(mean * OPERATIONS_V4 as f64),
            number((most * OPERATIONS_V3) as f64),
        ));
    }
    for splay in [600.0, 1800.0, 3600.0, 10_100.0] {
        let (mean, most) = together(splay, chance);
        rows.push(format!(".It {} Ta {mean:.1} Ta {most}", time(splay)));
    }
    let none = f64::INFINITY;
    for locks in [1, 5, 10, 50] {
        let even: Vec<usize> = (0..HOSTS).map(|host| host % locks).collect();
        let drawn: Vec<usize> = (0..HOSTS)
            .map(|_| (chance.next() % locks as u64) as usize)
            .collect();
        let even = locked(&even, none, 0, 0.0, chance);
        let drawn = locked(&drawn, none, 0, 0.0, chance);
        assert_eq!((even.done, drawn.done), (HOSTS, HOSTS));
        rows.push(format!(
            ".It {locks} Ta {} Ta {} Ta {}",
            time(even.end),
            time(even.wait),
            time(drawn.end)
        ));
    }
    for lease in [10.0, 60.0] {
        let dead = locked(&[0; HOSTS], none, 10, lease, chance);
        let alive = locked(&[0; HOSTS], none, 0, lease, chance);
        // The dead have no reload to wait for.
        let price = dead.end - (alive.end - 10.0 * (RELOAD + HANDOVER));
        rows.push(format!(
            ".It {} Ta {} Ta {}",
            time(lease),
            number(renewals(lease, chance)),
            time(price)
        ));
    }
    let cut = locked(&[0; HOSTS], ACTION_TIMEOUT, 0, 0.0, chance);
    rows.push(format!("lets {} hosts of a thousand through", cut.done));
    rows
}

/// What an operator works out by hand: it must be what was played.
#[test]
fn the_formulas_hold() {
    let chance = &mut Chance(1);
    let (mean, _) = looks(5.0, chance);
    assert!((mean - HOSTS as f64 / 5.0).abs() < 1.0, "{mean}");
    let roll = locked(&[0; HOSTS], f64::INFINITY, 0, 0.0, chance);
    let formula = HOSTS as f64 * (RELOAD + HANDOVER);
    // The first has to see the touch.
    let slack = INTERVAL + SETTLE;
    assert!(
        roll.end >= formula && roll.end < formula + slack,
        "{}",
        roll.end
    );
    assert!(
        (roll.wait - formula / 2.0).abs() < RELOAD + slack,
        "{}",
        roll.wait
    );
    let kept = renewals(10.0, chance);
    assert!((kept - 300.0).abs() < 5.0, "{kept}");
    let (mean, most) = together(3600.0, chance);
    assert!(mean > 2.7 && most > 2 * mean as usize, "{mean} {most}");
}

#[test]
fn the_figures_of_the_page_are_these() {
    let since = Instant::now();
    let rows = rows();
    println!("{}", rows.join("\n"));
    println!("{:?}", since.elapsed());
    let path = kit::root().join("man/man7/nirvana-fleet.7");
    let page = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = page.lines().collect();
    let mut wrong = String::new();
    for row in &rows {
        if !lines.contains(&row.as_str()) {
            let _ = writeln!(wrong, "not in the page: {row}");
        }
    }
    // And no other rows are in its tables.
    let tables = lines
        .iter()
        .filter(|line| line.starts_with(".It ") && line.contains(" Ta ") && !line.contains("Em"));
    for line in tables {
        if !rows.iter().any(|row| row == line) {
            let _ = writeln!(wrong, "only in the page: {line}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let page = page.replace('\n', " ");
    for (name, value) in [
        ("HANDOVER", "a tenth of a second"),
        ("OPERATIONS", "four operations of NFSv3, three of NFSv4"),
    ] {
        assert!(page.contains(value), "{name}");
    }
}

/// What is taken from elsewhere is what stands there.
#[test]
fn the_constants_are_those_of_the_tools() {
    let page = std::fs::read_to_string(kit::root().join("man/man1/watchtouch.1")).unwrap();
    for (option, value) in [
        ("interval", time(INTERVAL)),
        ("settle", format!("{}ms", SETTLE * 1000.0)),
        ("action-timeout", format!("{ACTION_TIMEOUT}s")),
    ] {
        let (_, text) = page
            .split_once(&format!(".It Fl -{option} Ar D\n"))
            .unwrap();
        let text = text.split(".It Fl ").next().unwrap();
        let wanted = format!("The default is\n.Cm {value} .");
        assert!(text.contains(&wanted), "--{option}: {wanted}");
    }
    let script = std::fs::read_to_string(kit::root().join("tests/uml/nfs.py")).unwrap();
    let counted = format!("{{3: {OPERATIONS_V3}, 4: {OPERATIONS_V4}}}");
    assert!(script.contains(&counted), "{counted}");
}

/// The page shows the example as it is.
#[test]
fn the_script_of_the_page_is_the_example() {
    let root = kit::root();
    let script = std::fs::read_to_string(root.join("examples/fleet/roll")).unwrap();
    let page = std::fs::read_to_string(root.join("man/man7/nirvana-fleet.7")).unwrap();
    let page = page.replace("\\(dq", "\"").replace("\\-", "-");
    for line in script.lines().filter(|line| !line.is_empty()) {
        assert!(page.contains(&format!("\n{line}\n")), "{line}");
    }
}
