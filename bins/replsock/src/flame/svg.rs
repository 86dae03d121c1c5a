//! The flame graph: one SVG that needs nothing else. Callers above those whom they call, so that a browser
//! opens it at its root. A click zooms, search marks; without JavaScript it is still a picture.

use super::tree::{Frame, Origin, Tree};
use std::fmt::Write;

/// Pixels: the whole, of which the graph has all but a margin of 10 on either side.
const WIDE: f64 = 1200.0;
const GRAPH: f64 = 1180.0;
const ROW: u32 = 16;
const HEAD: u32 = 66;

/// What would be narrower is not drawn: nobody sees it, and it is most of a large profile.
const NARROWEST: f64 = 0.1;

/// Deeper calls are not drawn: browsers draw no more than some 30 000 pixels well.
const DEEPEST: u32 = 1500;

const SCRIPT: &str = include_str!("flame.js");

const STYLE: &str = "\
svg{background:#fff;font:11px monospace}\
.c{cursor:pointer}.c:hover rect{stroke:#000;stroke-width:.8}\
.above{opacity:.5}.found rect{fill:#d63ad6!important}.found text{fill:#fff}\
text{fill:#222}.c text{pointer-events:none}h1{font-size:15px}\
#reset{cursor:pointer;text-decoration:underline}\
input{font:11px monospace;width:150px;box-sizing:border-box}";

/// Draws it.
#[must_use]
pub fn draw(tree: &Tree, title: &str) -> String {
    let places = lay_out(tree);
    let deepest = places.iter().map(|place| place.depth).max().unwrap_or(0);
    let high = HEAD + (deepest + 1) * ROW + 40;
    let mut out = String::new();
    let _ = write!(
        out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDE}\" height=\"{high}\" viewBox=\"0 0 {WIDE} {high}\">\n\
         <style>{STYLE}</style>\n<text x=\"10\" y=\"22\" style=\"font-size:15px\">"
    );
    escape(&mut out, title);
    let _ = write!(
        out,
        "</text>\n<text x=\"10\" y=\"40\">{:.1} ms on the processor; a click zooms</text>\n\
         <text id=\"reset\" x=\"800\" y=\"22\">whole graph (Esc)</text>\n\
         <foreignObject id=\"box\" x=\"1030\" y=\"8\" width=\"160\" height=\"22\"></foreignObject>\n\
         <text id=\"status\" x=\"1190\" y=\"44\" text-anchor=\"end\"></text>\n",
        ms(tree.total())
    );
    legend(&mut out);
    for place in &places {
        call(&mut out, tree, place);
    }
    if tree.calls.iter().any(|call| call.depth > DEEPEST) {
        let y = high - 20;
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{y}\">what is deeper than {DEEPEST} calls is not drawn</text>"
        );
    }
    let _ = write!(out, "<script><![CDATA[\n{SCRIPT}]]></script>\n</svg>\n");
    out
}

fn ms(time: u64) -> f64 {
    time as f64 / 1000.0
}

/// Where a call is drawn: from and how much, as parts of the whole.
struct Place {
    call: u32,
    from: f64,
    part: f64,
    depth: u32,
}

fn lay_out(tree: &Tree) -> Vec<Place> {
    let all = tree.total();
    let children = tree.children();
    let mut places = Vec::new();
    let mut stack = vec![(0u32, 0.0f64)];
    while let Some((at, from)) = stack.pop() {
        let Some(call) = tree.calls.get(at as usize) else {
            continue;
        };
        let part = if all == 0 {
            f64::from(u8::from(at == 0))
        } else {
            call.total as f64 / all as f64
        };
        if part * GRAPH < NARROWEST || call.depth > DEEPEST {
            continue;
        }
        let mut next = from;
        for child in children.get(at as usize).into_iter().flatten() {
            stack.push((*child, next));
            let total = tree.calls.get(*child as usize).map_or(0, |call| call.total);
            next += total as f64 / all.max(1) as f64;
        }
        places.push(Place {
            call: at,
            from,
            part,
            depth: call.depth,
        });
    }
    places
}

fn call(out: &mut String, tree: &Tree, place: &Place) {
    let Some(call) = tree.calls.get(place.call as usize) else {
        return;
    };
    let Some(frame) = tree.of_call(call) else {
        return;
    };
    let all = if place.call == 0 { "all" } else { &frame.name };
    let (x, width) = (10.0 + place.from * GRAPH, place.part * GRAPH);
    let y = HEAD + place.depth * ROW;
    let _ = write!(
        out,
        "<g class=\"c\" data-x=\"{:.9}\" data-w=\"{:.9}\" data-d=\"{}\" data-n=\"",
        place.from, place.part, place.depth
    );
    escape(out, all);
    out.push_str("\"><title>");
    escape(out, all);
    let where_ = frame.place();
    if !where_.is_empty() {
        out.push('\n');
        escape(out, &where_);
    }
    let _ = write!(
        out,
        "\n{:.1} ms, {:.1} %; itself {:.1} ms; {}",
        ms(call.total),
        place.part * 100.0,
        ms(call.own),
        frame.origin().name()
    );
    let _ = write!(
        out,
        "</title><rect x=\"{x:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{}\" rx=\"1\" fill=\"{}\"/><text x=\"{:.2}\" y=\"{}\">",
        (width - 0.3).max(NARROWEST),
        ROW - 1,
        colour(frame),
        x + 3.0,
        y + 11,
    );
    // For whoever shows no scripts: as many letters as fit, of 6.7 pixels each.
    let room = ((width - 4.0) / 6.7).max(0.0) as usize;
    if room >= 3 {
        let cut: String = all.chars().take(room).collect();
        escape(out, &cut);
    }
    out.push_str("</text></g>\n");
}

/// Hue, saturation, lightness, and how far the lightness goes with the name, so that neighbours differ.
fn shade(origin: Origin) -> (u32, u32, u32) {
    match origin {
        Origin::App => (22, 90, 62),
        Origin::Package => (48, 85, 62),
        Origin::Node => (120, 40, 64),
        Origin::Native => (212, 55, 70),
        Origin::Engine => (0, 0, 76),
    }
}

fn colour(frame: &Frame) -> String {
    let (hue, saturation, lightness) = shade(frame.origin());
    let mark = frame.name.bytes().fold(7u32, |mark, byte| {
        mark.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    format!("hsl({hue},{saturation}%,{}%)", lightness + mark % 13)
}

fn legend(out: &mut String) {
    let origins = [
        Origin::App,
        Origin::Package,
        Origin::Node,
        Origin::Native,
        Origin::Engine,
    ];
    for (at, origin) in origins.into_iter().enumerate() {
        let (hue, saturation, lightness) = shade(origin);
        let x = 10 + at * 110;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"48\" width=\"10\" height=\"10\" fill=\"hsl({hue},{saturation}%,{lightness}%)\"/>\
             <text x=\"{}\" y=\"57\">{}</text>",
            x + 14,
            origin.name()
        );
    }
}

/// Text of XML 1.0: what has a meaning there is escaped; what may not stand there at all, even escaped
/// (control characters, U+FFFE, U+FFFF), becomes U+FFFD.
fn escape(out: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            letter if letter.is_control() => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_to_xml() {
        let mut out = String::new();
        escape(&mut out, "<a & \"b\" 'c'>\u{0}\u{7f}\u{ffff}é");
        assert_eq!(
            out,
            "&lt;a &amp; &quot;b&quot; &#39;c&#39;&gt;\u{fffd}\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn the_script_can_stand_in_an_svg() {
        assert!(!SCRIPT.contains("]]>") && SCRIPT.len() < 4096);
        // No address but the namespace of XHTML: nothing is fetched.
        assert_eq!(SCRIPT.matches("://").count(), 1);
    }
}
