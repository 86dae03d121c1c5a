//! What ran for how long, called by whom: equal calls together. Pure, and without recursion: a program may
//! call itself ten thousand times.

use super::profile::Profile;
use std::collections::HashMap;
use std::fmt::Write;

/// Whether `(idle)` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It does.
    Shown,
    /// The graph is of what ran.
    LeftOut,
}

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The app's own.
    App,
    /// Of a package.
    Package,
    /// Node's own JavaScript.
    Node,
    /// No JavaScript.
    Native,
    /// The garbage collector, and what V8 calls (program) and (idle).
    Engine,
}

impl Origin {
    /// For the legend, and as a class in the graph.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Origin::App => "app",
            Origin::Package => "node_modules",
            Origin::Node => "node",
            Origin::Native => "native",
            Origin::Engine => "engine",
        }
    }
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// `(anonymous)` where it has none.
    pub name: String,
    /// As V8 says it.
    pub url: String,
    /// From 1; 0: none.
    pub line: u64,
}

impl Frame {
    /// Where it is: a path and a line.
    #[must_use]
    pub fn place(&self) -> String {
        let path = self.url.strip_prefix("file://").unwrap_or(&self.url);
        match (path, self.line) {
            ("", _) => String::new(),
            (path, 0) => path.to_owned(),
            (path, line) => format!("{path}:{line}"),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let engine = ["(garbage collector)", "(program)", "(idle)", "(root)"];
        if self.url.is_empty() {
            if engine.contains(&&*self.name) {
                Origin::Engine
            } else {
                Origin::Native
            }
        } else if self.url.starts_with("node:") || self.url.starts_with("internal/") {
            Origin::Node
        } else if self.url.contains("/node_modules/") || self.url.contains("\\node_modules\\") {
            Origin::Package
        } else {
            Origin::App
        }
    }
}

/// A function as called by its parent.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which: an index into [`Tree::frames`].
    pub frame: u32,
    /// Who called: an index into [`Tree::calls`]; the first is its own.
    pub parent: u32,
    /// Frames above it.
    pub depth: u32,
    /// Microseconds in itself.
    pub own: u64,
    /// And in what it called.
    pub total: u64,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The functions.
    pub frames: Vec<Frame>,
    /// Parents before their children; the first is the root of all.
    pub calls: Vec<Call>,
}

impl Tree {
    /// Out of a profile.
    #[must_use]
    pub fn of(profile: &Profile<'_>, idle: Idle) -> Tree {
        let nodes = profile.nodes.as_deref().unwrap_or_default();
        let mut index: HashMap<i64, u32> = HashMap::with_capacity(nodes.len());
        for (at, node) in nodes.iter().enumerate() {
            index.entry(node.id.0).or_insert(at as u32);
        }
        let own = own_times(profile, &index);

        let mut children: Vec<Vec<u32>> = vec![Vec::new(); nodes.len()];
        let mut has_parent = vec![false; nodes.len()];
        let mut adopt = |parent: u32, child: u32| {
            let (Some(list), Some(taken)) = (
                children.get_mut(parent as usize),
                has_parent.get_mut(child as usize),
            ) else {
                return;
            };
            if parent != child && !*taken {
                *taken = true;
                list.push(child);
            }
        };
        for (at, node) in nodes.iter().enumerate() {
            for child in node.children.iter().flatten() {
                if let Some(child) = index.get(&child.0) {
                    adopt(at as u32, *child);
                }
            }
            if let Some(parent) = node.parent.and_then(|parent| index.get(&parent.0)) {
                adopt(*parent, at as u32);
            }
        }

        let mut tree = Tree {
            frames: Vec::new(),
            calls: vec![Call {
                frame: 0,
                parent: 0,
                depth: 0,
                own: 0,
                total: 0,
            }],
        };
        let mut frames: HashMap<Frame, u32> = HashMap::new();
        tree.frame(&mut frames, "(root)", "", -1);
        let mut known: HashMap<(u32, u32), u32> = HashMap::new();
        let mut seen = vec![false; nodes.len()];
        // First what nobody has called; then, in a file that is none of V8's, circles.
        let starts = (0..nodes.len())
            .filter(|at| !has_parent[*at])
            .chain(0..nodes.len());
        for start in starts {
            let mut queue = std::collections::VecDeque::from([(start as u32, 0u32)]);
            while let Some((at, above)) = queue.pop_front() {
                let at = at as usize;
                let (Some(node), Some(seen)) = (nodes.get(at), seen.get_mut(at)) else {
                    continue;
                };
                if std::mem::replace(seen, true) {
                    continue;
                }
                let frame = node.call_frame.as_ref();
                let name = frame.map_or("", |frame| &*frame.function_name.0);
                let url = frame.map_or("", |frame| &*frame.url.0);
                let call = if name == "(root)" && url.is_empty() && above == 0 {
                    0
                } else if name == "(idle)" && url.is_empty() && idle == Idle::LeftOut {
                    continue;
                } else {
                    let line = frame.map_or(-1, |frame| frame.line_number.0);
                    let frame = tree.frame(&mut frames, name, url, line);
                    *known.entry((above, frame)).or_insert_with(|| {
                        let depth = tree.calls.get(above as usize).map_or(0, |call| call.depth);
                        tree.calls.push(Call {
                            frame,
                            parent: above,
                            depth: depth + 1,
                            own: 0,
                            total: 0,
                        });
                        tree.calls.len() as u32 - 1
                    })
                };
                if let (Some(call), Some(own)) = (tree.calls.get_mut(call as usize), own.get(at)) {
                    call.own = call.own.saturating_add(*own);
                }
                queue.extend(children[at].iter().map(|child| (*child, call)));
            }
        }
        tree.add_up();
        tree
    }

    fn frame(&mut self, known: &mut HashMap<Frame, u32>, name: &str, url: &str, line: i64) -> u32 {
        let frame = Frame {
            name: if name.is_empty() { "(anonymous)" } else { name }.to_owned(),
            url: url.to_owned(),
            line: u64::try_from(line).map_or(0, |line| line.saturating_add(1)),
        };
        if let Some(at) = known.get(&frame) {
            return *at;
        }
        let at = self.frames.len() as u32;
        self.frames.push(frame.clone());
        known.insert(frame, at);
        at
    }

    /// Parents stand before their children, so one way back through the list will do.
    fn add_up(&mut self) {
        for call in &mut self.calls {
            call.total = call.own;
        }
        for at in (1..self.calls.len()).rev() {
            let Call { parent, total, .. } = self.calls[at];
            if let Some(parent) = self.calls.get_mut(parent as usize) {
                parent.total = parent.total.saturating_add(total);
            }
        }
    }

    /// The children of each call, those first that took longest.
    #[must_use]
    pub fn children(&self) -> Vec<Vec<u32>> {
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); self.calls.len()];
        for (at, call) in self.calls.iter().enumerate().skip(1) {
            if let Some(list) = lists.get_mut(call.parent as usize) {
                list.push(at as u32);
            }
        }
        let total = |at: u32| self.calls.get(at as usize).map_or(0, |call| call.total);
        for list in &mut lists {
            list.sort_by_key(|at| std::cmp::Reverse(total(*at)));
        }
        lists
    }

    /// Microseconds of all that is shown.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.calls.first().map_or(0, |call| call.total)
    }

    /// A call's function.
    #[must_use]
    pub fn of_call(&self, call: &Call) -> Option<&Frame> {
        self.frames.get(call.frame as usize)
    }

    /// `outer;inner 1234`, in microseconds: what flamegraph.pl, inferno and speedscope read.
    #[must_use]
    pub fn folded(&self) -> String {
        let mut text = String::new();
        let mut lines: Vec<String> = Vec::new();
        for call in self.calls.iter().filter(|call| call.own > 0) {
            // Up to the root; a stack's line is as long as the stack is deep.
            let mut stack = Vec::new();
            let mut at = call;
            while at.depth > 0 {
                stack.push(at.frame);
                match self.calls.get(at.parent as usize) {
                    Some(parent) => at = parent,
                    None => break,
                }
            }
            if stack.is_empty() {
                stack.push(0);
            }
            text.clear();
            for frame in stack
                .iter()
                .rev()
                .filter_map(|at| self.frames.get(*at as usize))
            {
                if !text.is_empty() {
                    text.push(';');
                }
                let place = frame.place();
                let label = if place.is_empty() {
                    frame.name.clone()
                } else {
                    format!("{} {place}", frame.name)
                };
                text.extend(label.chars().map(|letter| match letter {
                    ';' => ':',
                    letter if letter.is_control() => ' ',
                    letter => letter,
                }));
            }
            lines.push(format!("{text} {}\n", call.own));
        }
        lines.sort();
        lines.concat()
    }

    /// The table of `--top`, with its heading: the functions in which most time was spent.
    #[must_use]
    pub fn table(&self, rows: usize) -> String {
        let mut sums = vec![(0u64, 0u64); self.frames.len()];
        for call in &self.calls {
            if let Some((own, _)) = sums.get_mut(call.frame as usize) {
                *own = own.saturating_add(call.own);
            }
        }
        // A function that calls itself has its time once: counted is its outermost call.
        let children = self.children();
        let mut inside = vec![0u32; self.frames.len()];
        let mut stack = vec![(0u32, false)];
        while let Some((at, leaving)) = stack.pop() {
            let Some(call) = self.calls.get(at as usize) else {
                continue;
            };
            let Some(depth) = inside.get_mut(call.frame as usize) else {
                continue;
            };
            if leaving {
                *depth -= 1;
                continue;
            }
            if *depth == 0 {
                if let Some((_, total)) = sums.get_mut(call.frame as usize) {
                    *total = total.saturating_add(call.total);
                }
            }
            *depth += 1;
            stack.push((at, true));
            if let Some(list) = children.get(at as usize) {
                stack.extend(list.iter().map(|child| (*child, false)));
            }
        }
        let mut order: Vec<usize> = (1..self.frames.len()).collect();
        order.retain(|at| sums[*at].1 > 0);
        order.sort_by_key(|at| std::cmp::Reverse((sums[*at].0, sums[*at].1)));
        let all = self.total();
        let part = |time: u64| time as f64 * 100.0 / all.max(1) as f64;
        let ms = |time: u64| time as f64 / 1000.0;
        let mut text = format!(
            "{:>10} {:>6} {:>10} {:>6}  FUNCTION  PLACE\n",
            "SELF ms", "%", "TOTAL ms", "%"
        );
        for at in order.into_iter().take(rows) {
            let (own, total) = sums[at];
            let Some(frame) = self.frames.get(at) else {
                continue;
            };
            let mut label = frame.name.clone();
            let place = frame.place();
            if !place.is_empty() {
                let _ = write!(label, "  {place}");
            }
            let label = label.replace(char::is_control, " ");
            let _ = writeln!(
                text,
                "{:>10.1} {:>6.1} {:>10.1} {:>6.1}  {label}",
                ms(own),
                part(own),
                ms(total),
                part(total)
            );
        }
        text
    }
}

/// Microseconds in which each node ran itself: from its sample to the next one. The last lasts until the
/// end. Clocks of several threads may make a step negative: then it took no time.
fn own_times(profile: &Profile<'_>, index: &HashMap<i64, u32>) -> Vec<u64> {
    let nodes = profile.nodes.as_deref().unwrap_or_default();
    let mut own = vec![0u64; nodes.len()];
    let length = profile.end_time.0.saturating_sub(profile.start_time.0);
    let length = u64::try_from(length).unwrap_or(0);
    let samples = profile.samples.as_deref().unwrap_or_default();
    let deltas = profile.time_deltas.as_deref().unwrap_or_default();
    let mut add = |id: i64, time: u64| {
        if let Some(sum) = index.get(&id).and_then(|at| own.get_mut(*at as usize)) {
            *sum = sum.saturating_add(time);
        }
    };
    if samples.is_empty() {
        // Only counts: each of them as long as the others; a microsecond where no time is known.
        let hits = |node: &super::profile::Node<'_>| u64::try_from(node.hit_count.0).unwrap_or(0);
        let all = nodes
            .iter()
            .fold(0u64, |sum, node| sum.saturating_add(hits(node)));
        for node in nodes {
            let time = if length > 0 && all > 0 {
                u128::from(hits(node)) * u128::from(length) / u128::from(all)
            } else {
                u128::from(hits(node))
            };
            add(node.id.0, u64::try_from(time).unwrap_or(u64::MAX));
        }
        return own;
    }
    if deltas.is_empty() {
        let each = (length / samples.len() as u64).max(1);
        for sample in samples {
            add(sample.0, each);
        }
        return own;
    }
    let mut now = profile.start_time.0;
    for (at, sample) in samples.iter().enumerate() {
        now = now.saturating_add(deltas.get(at).map_or(0, |delta| delta.0));
        let time = match deltas.get(at + 1) {
            Some(next) => next.0,
            None if at + 1 == samples.len() => profile.end_time.0.saturating_sub(now),
            None => 0,
        };
        add(sample.0, u64::try_from(time).unwrap_or(0));
    }
    own
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(text: &str) -> Tree {
        Tree::of(&Profile::read(text.as_bytes()).unwrap(), Idle::LeftOut)
    }

    const SMALL: &str = r#"{"nodes":[
        {"id":1,"callFrame":{"functionName":"(root)","url":"","lineNumber":-1},"children":[2,9,7]},
        {"id":2,"callFrame":{"functionName":"main","url":"file:///app/a.js","lineNumber":0},"children":[3]},
        {"id":3,"callFrame":{"functionName":"main","url":"file:///app/a.js","lineNumber":0},"children":[4]},
        {"id":4,"callFrame":{"functionName":"","url":"node:fs","lineNumber":9}},
        {"id":7,"callFrame":{"functionName":"(idle)","url":"","lineNumber":-1}},
        {"id":9,"callFrame":{"functionName":"(garbage collector)","url":"","lineNumber":-1}}],
        "startTime":100,"endTime":200,"samples":[2,3,4,7,9,4],"timeDeltas":[10,20,-5,30,20,5]}"#;

    #[test]
    fn each_sample_lasts_until_the_next() {
        // 2: 20, 3: -5 is none, 4: 30, idle: 20, gc: 5, 4 again: until the end, 200 - 180.
        let tree = tree(SMALL);
        assert_eq!(tree.total(), 75);
        assert_eq!(
            tree.folded(),
            "(garbage collector) 5\nmain /app/a.js:1 20\nmain /app/a.js:1;main /app/a.js:1;(anonymous) node:fs:10 50\n"
        );
    }

    #[test]
    fn one_that_calls_itself_counts_once() {
        let table = tree(SMALL).table(10);
        let row = table.lines().find(|line| line.contains("main")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words, ["0.0", "26.7", "0.1", "93.3", "main", "/app/a.js:1"]);
        assert!(
            table
                .lines()
                .nth(1)
                .unwrap()
                .ends_with("(anonymous)  node:fs:10")
        );
    }

    #[test]
    fn idle_where_it_is_asked_for() {
        let tree = Tree::of(&Profile::read(SMALL.as_bytes()).unwrap(), Idle::Shown);
        assert_eq!(tree.total(), 95);
    }

    #[test]
    fn counts_alone_share_the_time() {
        let tree = tree(
            r#"{"nodes":[{"id":1,"hitCount":1},{"id":2,"hitCount":3,"parent":1,"callFrame":{"functionName":"f"}}],
            "startTime":0,"endTime":400}"#,
        );
        assert_eq!(tree.folded(), "(anonymous) 100\n(anonymous);f 300\n");
    }

    #[test]
    fn circles_and_strangers_end() {
        let tree = tree(
            r#"{"nodes":[{"id":1,"children":[2,1,77]},{"id":2,"children":[1]},{"id":2,"children":[2]}],
            "samples":[1,2,5],"timeDeltas":[0,1,1],"endTime":9}"#,
        );
        assert_eq!(tree.total(), 2);
    }

    #[test]
    fn a_stack_of_a_hundred_thousand() {
        let mut text = String::from(r#"{"nodes":["#);
        for id in 0..100_000 {
            text.push_str(&format!(
                r#"{{"id":{id},"callFrame":{{"functionName":"f"}},"children":[{}]}},"#,
                id + 1
            ));
        }
        text.push_str(r#"{"id":100000}],"samples":[100000],"timeDeltas":[0],"endTime":7}"#);
        let tree = tree(&text);
        assert_eq!(tree.total(), 7);
        assert_eq!(tree.folded().matches(';').count(), 100_000);
        assert!(tree.table(5).contains("f"));
        assert!(super::super::svg::draw(&tree, "deep").ends_with("</svg>\n"));
    }

    #[test]
    fn whose_it_is() {
        let origin = |name: &str, url: &str| {
            let (name, url) = (name.to_owned(), url.to_owned());
            Frame { name, url, line: 1 }.origin()
        };
        assert_eq!(origin("f", "file:///app/a.js"), Origin::App);
        assert_eq!(origin("f", "/app/node_modules/x/y.js"), Origin::Package);
        assert_eq!(origin("f", "node:internal/fs"), Origin::Node);
        assert_eq!(origin("f", "internal/fs.js"), Origin::Node);
        assert_eq!(origin("stat", ""), Origin::Native);
        assert_eq!(origin("(program)", ""), Origin::Engine);
    }

    /// Pieces of a profile in any order, and what is none.
    fn jsonish() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"nodes\"",
            "\"id\"",
            "\"children\"",
            "\"samples\"",
            "\"timeDeltas\"",
            "\"callFrame\"",
            "\"functionName\"",
            "\"hitCount\"",
            "\"parent\"",
            "\"endTime\"",
            "\"\\ud800\"",
            "\"(root)\"",
            "null",
            "-1",
            "0",
            "1",
            "2",
            "9223372036854775807",
            "1e999",
            "-5.5",
            "true",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    fn check(bytes: &[u8]) {
        for idle in [Idle::Shown, Idle::LeftOut] {
            if let Ok(profile) = Profile::read(bytes) {
                let tree = Tree::of(&profile, idle);
                let _ = (
                    tree.folded(),
                    tree.table(9),
                    super::super::svg::draw(&tree, "t"),
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            check(&bytes);
        }

        #[test]
        fn any_pieces_are_read_or_refused(text in jsonish()) {
            check(text.as_bytes());
        }

        #[test]
        fn whatever_the_numbers_are(
            nodes in prop::collection::vec((-3i64..6, prop::collection::vec(-3i64..6, 0..4), any::<i64>()), 1..9),
            samples in prop::collection::vec((-3i64..6, any::<i64>()), 0..9),
            (start, end) in (any::<i64>(), any::<i64>()),
        ) {
            let nodes: Vec<_> = nodes
                .iter()
                .map(|(id, children, hits)| serde_json::json!({"id": id, "children": children, "hitCount": hits}))
                .collect();
            let (samples, deltas): (Vec<i64>, Vec<i64>) = samples.into_iter().unzip();
            let text = serde_json::json!({"nodes": nodes, "samples": samples, "timeDeltas": deltas,
                "startTime": start, "endTime": end});
            check(text.to_string().as_bytes());
        }
    }
}
