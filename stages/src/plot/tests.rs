//! The drawing's promises: same bytes, well-formed, ink that follows the page, nothing outside the frame.

use super::*;

fn example() -> (Vec<Panel>, Vec<Look>) {
    let look = Look { label: "A <b> & \"c\"".into(), colour: Colour(0x2f, 0x80, 0xd2), mark: Mark::Diamond };
    let point =
        |x, mean, half_width| Point { x, mean, half_width, seeds: vec![(0, mean - 1.0), (1, mean + 1.0)] };
    let panel = Panel {
        title: "Worst <class>".into(),
        x: Axis { label: "R".into(), ticks: vec![(1.0, "1".into()), (100.0, "100".into())], log: true },
        unit: "%".into(),
        bounds: (0.0, 100.0),
        bands: false,
        series: vec![Series {
            look: look.clone(),
            points: vec![point(1.0, 60.0, Some(80.0)), point(100.0, 20.0, None)],
        }],
        references: vec![Reference {
            label: "line".into(),
            colour: None,
            points: vec![(1.0, 50.0), (100.0, 50.0)],
        }],
    };
    (vec![panel], vec![look])
}

/// Every tag is closed in order, every attribute quoted, every text escaped: enough of XML for what is written here.
pub fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = vec![];
    for (i, piece) in svg.split('<').enumerate() {
        if i == 0 {
            assert!(piece.trim().is_empty(), "{piece}");
            continue;
        }
        let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("not closed: <{piece}"));
        assert!(!text.contains('>'), "{text}");
        let amps = text.split('&').skip(1).chain(tag.split('&').skip(1));
        for rest in amps {
            assert!(["lt;", "gt;", "amp;", "quot;", "apos;"].iter().any(|e| rest.starts_with(e)), "&{rest}");
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_same_panels_give_the_same_well_formed_bytes() {
    let (panels, looks) = example();
    let svg = figure(&panels, &looks, 2, "a \"figure\"").unwrap();
    assert_eq!(svg, figure(&panels, &looks, 2, "a \"figure\"").unwrap());
    assert_well_formed(&svg);
    assert_well_formed(&panel(&panels[0], "p").unwrap());
    assert!(svg.contains("Worst &lt;class&gt;") && svg.contains("a &quot;figure&quot;"), "{svg}");
}

#[test]
fn the_ink_follows_the_page() {
    let (panels, looks) = example();
    let svg = figure(&panels, &looks, 1, "").unwrap();
    assert!(svg.contains("currentColor") && !svg.contains("#010203") && !svg.contains("#000000"), "{svg}");
    assert!(!svg.contains("http://") || svg.matches("http://").count() == 1, "the name space alone");
}

#[test]
fn intervals_end_at_the_bounds() {
    let (panels, _) = example();
    let frame = Frame::of(&panels[0]);
    assert_eq!(frame.y, (0.0, 100.0));
    assert_eq!(frame.at(1.0, 140.0).1, frame.at(1.0, 100.0).1);
}

#[test]
fn ticks_are_round() {
    let text = |low, high| ticks((low, high)).into_iter().map(|t| t.1).collect::<Vec<_>>().join(" ");
    assert_eq!(text(0.0, 100.0), "0 20 40 60 80 100");
    assert_eq!(text(61.3, 64.2), "61.5 62.0 62.5 63.0 63.5 64.0");
    assert_eq!(text(0.2, 0.9), "0.2 0.4 0.6 0.8");
}
