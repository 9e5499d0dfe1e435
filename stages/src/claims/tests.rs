//! Verdicts worked by hand, and the committed claims file itself.

use super::*;

const HEAD: &str =
    "version: 1\npaper: p\nmargins: { m: { size: 4, reason: r }, zero: { size: 0, reason: r } }\nclaims:\n";

fn number(value: f64, spread: &str) -> String {
    format!(
        "{HEAD}  - {{ id: a, kind: number, where: w, quantity: q, value: {value}, unit: '%', spread: {spread}, margin: m }}\n"
    )
}

fn seeds(values: &[f64]) -> Measured {
    let seeds = values.iter().enumerate().map(|(i, v)| (i as u64, *v)).collect();
    Measured { unit: "%".into(), seeds, stages: vec![] }
}

fn verdict(file: &str, measured: &[(&str, &[f64])]) -> Verdict {
    let claims = Claims::parse(file).unwrap();
    let measured = measured.iter().map(|(q, v)| (q.to_string(), seeds(v))).collect();
    judge(&claims, &claims.claims[0], &measured).verdict
}

// s = 1, n = 3: half = 4.302653 * sqrt(1 + 1/3) = 4.968; with an exact value 4.302653 / sqrt(3) = 2.484.
const AROUND_60: &[f64] = &[59.0, 60.0, 61.0];

#[test]
fn number_by_hand() {
    // |60 - 64.3| = 4.3 > 4, but 4.3 - 4.968 < 4: open; room 0.3 lies below 1.96 s, so no number of seeds settles it.
    assert_eq!(
        verdict(&number(64.3, "unknown"), &[("q", AROUND_60)]),
        Verdict::Inconclusive(Further::NoNumber)
    );
    // 9 - 4.968 = 4.032 > 4.
    assert_eq!(verdict(&number(69.0, "unknown"), &[("q", AROUND_60)]), Verdict::Contradicted);
    // 1 + 2.484 = 3.484 <= 4 against a constant; 1 + 4.968 > 4 against a draw.
    assert_eq!(verdict(&number(61.0, "exact"), &[("q", AROUND_60)]), Verdict::Match);
    // Room 3: t(n-1) sqrt(1 + 1/n) <= 3 first at n = 5: 2.776 * 1.0954 = 3.041 no; n = 6: 2.571 * 1.0801 = 2.777.
    assert_eq!(
        verdict(&number(61.0, "unknown"), &[("q", AROUND_60)]),
        Verdict::Inconclusive(Further::Seeds(3))
    );
    // The mean of two draws: 4.302653 * sqrt(1/2 + 1/3) = 3.928; 0.05 + 3.928 <= 4.
    assert_eq!(verdict(&number(60.05, "{ mean-of: 2 }"), &[("q", AROUND_60)]), Verdict::Match);
}

#[test]
fn one_seed_or_none() {
    assert_eq!(verdict(&number(60.0, "unknown"), &[("q", &[60.0])]), Verdict::Inconclusive(Further::Unknown));
    assert_eq!(verdict(&number(60.0, "unknown"), &[("other", AROUND_60)]), Verdict::NotRun);
}

#[test]
fn ordering_is_paired_by_seed() {
    let file =
        format!("{HEAD}  - {{ id: a, kind: ordering, where: w, greater: g, lesser: l, margin: zero }}\n");
    // Seeds move both alike: differences 2, 2.1, 1.9, s = 0.1, half = 4.302653 * 0.1 / sqrt(3) = 0.248.
    let g: &[f64] = &[62.0, 72.1, 51.9];
    let l: &[f64] = &[60.0, 70.0, 50.0];
    assert_eq!(verdict(&file, &[("g", g), ("l", l)]), Verdict::Match);
    assert_eq!(verdict(&file, &[("g", l), ("l", g)]), Verdict::Contradicted);
    // Differences 0, 1, 2: mean 1, s = 1, half 2.484: open; 1 is reached at n = 7, four more.
    let g: &[f64] = &[60.0, 71.0, 52.0];
    assert_eq!(verdict(&file, &[("g", g), ("l", l)]), Verdict::Inconclusive(Further::Seeds(4)));
    assert_eq!(verdict(&file, &[("g", l), ("l", l)]), Verdict::Inconclusive(Further::NoNumber));
    assert_eq!(verdict(&file, &[("g", g)]), Verdict::NotRun);
}

#[test]
fn range_by_hand() {
    let file = format!(
        "{HEAD}  - {{ id: a, kind: range, where: w, quantity: q, low: 0.3, high: 0.7, unit: '', margin: zero }}\n"
    );
    assert_eq!(verdict(&file, &[("q", &[0.5, 0.5, 0.5])]), Verdict::Match);
    assert_eq!(verdict(&file, &[("q", &[0.9, 0.9, 0.9])]), Verdict::Contradicted);
    // Mean 0.5, s = 0.1, half = 0.248 > 0.2; room 0.2: t(n-1) 0.1/sqrt(n) <= 0.2 at n = 4: 3.182/2 * 0.1 = 0.159.
    assert_eq!(verdict(&file, &[("q", &[0.4, 0.5, 0.6])]), Verdict::Inconclusive(Further::Seeds(1)));
}

#[test]
fn errors_say_what_and_where() {
    let error = |text: &str| Claims::parse(text).unwrap_err();
    assert_eq!(
        error("version: 2\npaper: p\nmargins: {}\nclaims: []\n"),
        "version: 2 is unknown, this program reads 1"
    );
    let twice = number(1.0, "unknown");
    let line = twice.lines().last().unwrap();
    assert_eq!(error(&format!("{twice}{line}\n")), "claims: a: stands twice");
    assert_eq!(
        error(&twice.replace("margin: m", "margin: nosuch")),
        "claims: a: margin: unknown name `nosuch`"
    );
    assert_eq!(
        error(&twice.replace("size: 4", "size: -4")),
        "margins.m: size: -4 is not a number of at least 0"
    );
    let unknown = error(&twice.replace("unit:", "unti:"));
    assert!(unknown.contains("unknown field `unti`"), "{unknown}");
}

#[test]
fn the_committed_file_is_whole() {
    let text = include_str!("../../../claims.yaml");
    let claims = Claims::parse(text).unwrap();
    let numbers = |prefix: &str| {
        claims
            .claims
            .iter()
            .filter(|c| matches!(c, Claim::Number { .. }) && c.id().starts_with(prefix))
            .count()
    };
    // Table 1: two ratios, three methods, two metrics; Table 2: two data sets, two ratios, three methods, and 31 cells of
    // groups: 8 + 8 of CelebA, 7 of Waterbirds, 4 + 4 of MultiNLI.
    assert_eq!((numbers("table1."), numbers("table2."), numbers("figure4b.")), (12, 12 + 31, 2));
    assert_eq!(claims.printed("table2", "celeba/wide-resnet50/strong/it-group/worst"), Some(89.8));
    assert_eq!(claims.printed("table1", "cifar10/100/it-classifier@best/average"), Some(76.65));
    assert_eq!(claims.printed("table2", "fashion-mnist/10/iw/worst"), Some(73.2));
    assert!(claims.margins.values().all(|m| m.reason.len() > 20));
}
