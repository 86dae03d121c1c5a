//! A .cpuprofile of anybody's: read and drawn in each way, or refused; and what is drawn can stand in an SVG.

#[path = "../../../bins/replsock/src/flame/profile.rs"]
mod profile;
#[path = "../../../bins/replsock/src/flame/svg.rs"]
mod svg;
#[path = "../../../bins/replsock/src/flame/tree.rs"]
mod tree;

use profile::Profile;

/// One input.
pub fn run(bytes: &[u8]) {
    let Ok(profile) = Profile::read(bytes) else {
        return;
    };
    for idle in [tree::Idle::Shown, tree::Idle::LeftOut] {
        let tree = tree::Tree::of(&profile, idle);
        let drawn = svg::draw(&tree, "]]></script>\u{0}");
        assert!(drawn.ends_with("</svg>\n"));
        // One script, and it is ours: the names are escaped.
        assert_eq!(drawn.matches("<script").count(), 1);
        assert_eq!(drawn.matches("]]>").count(), 1);
        assert!(!drawn.contains('\u{0}'));
        let _ = tree.table(30);
        for line in tree.folded().lines() {
            let (_, time) = line.rsplit_once(' ').unwrap();
            time.parse::<u64>().unwrap();
        }
    }
}
