//! The theory's verdicts as a file beside its tables, and the section that shows them in the report of the trainings. Knows
//! no computation.

use std::path::Path;

use anyhow::Result;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::{Content, page};
use crate::claims::Claim;
use crate::grid::decimal;
use crate::job::{self, bad};

/// The version of the file.
const VERSION: u32 = 1;

/// `tables/verdicts.json` of the theory's report.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdicts {
    version: u32,
    profile: String,
    claims: Vec<One>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    id: String,
    place: String,
    /// What the paper says, as the page writes it.
    says: String,
    /// Mean, half of the 95 % interval and number of values; none: not run.
    ours: Option<(f64, Option<f64>, usize)>,
    /// Of an ordering: a difference.
    signed: bool,
    /// `match`, `contradicted`, `open` or `none`, and in words.
    verdict: (String, String),
}

impl Verdicts {
    /// Those of a page.
    pub fn of(c: &Content) -> Self {
        let one = |j: &crate::claims::Judged| {
            let (class, text) = page::words_of(&j.verdict);
            One {
                id: j.claim.id().to_string(),
                place: j.claim.place().to_string(),
                says: j.claim.says(),
                ours: j.ours.map(|s| (s.mean, j.half_width, s.n)),
                signed: matches!(j.claim, Claim::Ordering { .. }),
                verdict: (class.to_string(), text),
            }
        };
        Self {
            version: VERSION,
            profile: c.provenance.profile.clone(),
            claims: c.verdicts().iter().map(one).collect(),
        }
    }

    /// What a file holds.
    ///
    /// Errors: `BadInput` for a file of another version or form.
    pub fn read(path: &Path) -> Result<Self> {
        let found: Self = job::read_json(path)?;
        if found.version != VERSION {
            return Err(bad(format!(
                "inputs.theory: version: {} is unknown, this program reads {VERSION}",
                found.version
            )));
        }
        Ok(found)
    }
}

/// The section; the theory's own page lies in the folder `theory` beside this one's.
pub fn section(v: &Verdicts) -> Markup {
    html! {
        section id="theory" {
            h2 { "The theory" }
            @let count = |class: &str| v.claims.iter().filter(|c| c.verdict.0 == class).count();
            p { "Figures 1, 4(a), 6 and theorems 1 to 5 need no training: the target " code { "theory" } " computes them (here in profile "
                (v.profile) "), with a " a href="../theory/index.html" { "page of its own" } ". "
                (count("match")) " of its claims match, " (count("contradicted")) " are contradicted, "
                (v.claims.len() - count("match") - count("contradicted")) " are open." }
            div.grid tabindex="0" { table.claims {
                thead { tr {
                    th scope="col" { "claim" } th scope="col" { "paper" } th scope="col" { "here" } th.stub scope="col" { "verdict" }
                } }
                tbody {
                    @for c in &v.claims {
                        tr {
                            th scope="row" { a href=(format!("../theory/index.html#c-{}", c.id)) { (c.place) } }
                            td { (c.says) }
                            td {
                                @if let Some((mean, half, n)) = c.ours {
                                    (decimal(mean, 2, c.signed))
                                    small {
                                        @match half {
                                            Some(h) => { "± " (decimal(h, 2, false)) " " span.n { "n " (n) } },
                                            None if n == 1 => "computed",
                                            None => { span.n { "n " (n) } },
                                        }
                                    }
                                } @else { "–" }
                            }
                            td.verdict.(c.verdict.0) { (c.verdict.1) }
                        }
                    }
                }
            } }
        }
    }
}
