//! `stages WORD [job.json]`: maps a word to a stage, prints its error and picks the exit code. Knows no stage's work.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use stages::job::{self, Job};

/// What a word stands for.
enum Entry {
    /// A stage: reads a job (the second word, `job.json` without one).
    Stage(fn(Job) -> Result<()>),
    /// Anything else: gets the words after it.
    Words(fn(&[String]) -> Result<()>),
}

#[rustfmt::skip]
const ENTRIES: &[(&str, Entry)] = &[
    ("fetch", Entry::Stage(stages::fetch::run)),
    ("prepare", Entry::Stage(stages::prepare::run)),
    ("subsample", Entry::Stage(stages::subsample::run)),
    ("sheet", Entry::Stage(stages::sheet::run)),
    ("train", Entry::Stage(stages::train::run)),
    ("upweight", Entry::Stage(stages::upweight::run)),
    ("evaluate", Entry::Stage(stages::evaluate::run)),
    ("geometry", Entry::Stage(stages::geometry::run)),
    ("table", Entry::Stage(stages::table::run)),
    ("figure", Entry::Stage(stages::figure::run)),
    ("report", Entry::Stage(stages::report::run)),
    ("synthetic/bench", Entry::Words(stages::synthetic::bench::run)),
    ("synthetic/boundary", Entry::Stage(stages::synthetic::boundary::run)),
    ("synthetic/bound", Entry::Stage(stages::synthetic::bound::run)),
    ("synthetic/direction", Entry::Stage(stages::synthetic::direction::run)),
    ("synthetic/errata", Entry::Stage(stages::synthetic::errata::run)),
    ("synthetic/figure4", Entry::Stage(stages::synthetic::figure4::run)),
    ("synthetic/figure6", Entry::Stage(stages::synthetic::figure6::run)),
    ("synthetic/peeled", Entry::Stage(stages::synthetic::peeled::run)),
    ("synthetic/separators", Entry::Stage(stages::synthetic::separators::run)),
    ("synthetic/shift", Entry::Stage(stages::synthetic::shift::run)),
    ("synthetic/show", Entry::Stage(stages::synthetic::show::run)),
    ("bench", Entry::Words(stages::bench::run)),
    ("check", Entry::Words(stages::check::run)),
    ("identity", Entry::Words(stages::identity::run)),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(word) = words.first() else {
        eprintln!("stages: a word is missing, one of: {}", known());
        return ExitCode::from(2);
    };
    let name = word.clone();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{name}: internal error: {info}");
        std::process::exit(1);
    }));
    match run(word, &words[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{word}: {error:#}");
            ExitCode::from(job::exit_code(&error))
        }
    }
}

fn run(word: &str, rest: &[String]) -> Result<()> {
    let entry = ENTRIES.iter().find(|(name, _)| *name == word).map(|(_, entry)| entry);
    match entry.ok_or_else(|| unknown(word))? {
        Entry::Words(function) => function(rest),
        Entry::Stage(function) => {
            job::watch_stop()?;
            let job = Job::open(Path::new(rest.first().map_or("job.json", String::as_str)))?;
            rayon::ThreadPoolBuilder::new()
                .num_threads(job.threads())
                .build_global()
                .context("cannot start threads")?;
            function(job)
        }
    }
}

fn known() -> String {
    ENTRIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn unknown(word: &str) -> anyhow::Error {
    let nearest =
        ENTRIES.iter().map(|(name, _)| *name).min_by_key(|name| strsim::damerau_levenshtein(name, word));
    let hint = nearest.map(|name| format!("\nhint: did you mean `{name}`?")).unwrap_or_default();
    job::bad(format!("unknown word, one of {} is expected{hint}", known()))
}
