//! Views of a run: bars on a terminal, plain lines without one, the event log. Consumers of events and of nothing else.

mod machine;

pub use machine::Json;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::Color;
use crate::estimate::Estimate;
use crate::event::{Event, Summary, View};

/// Without a terminal a stage's progress is shown at most this often,
const NOTE_EVERY: Duration = Duration::from_secs(20);
/// and a stage that says nothing is mentioned this often.
const ALIVE_EVERY: Duration = Duration::from_secs(50);
/// Event logs that are kept.
const KEPT_LOGS: usize = 50;

/// A line on stderr. A reader that has gone (`2>&1 | head`) ends nothing, as `eprintln` would by its panic.
pub fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether to colour what goes to stderr.
pub fn colored(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
        }
    }
}

/// The view for where stderr leads.
pub fn view(color: Color) -> Box<dyn View> {
    let paint = Paint(colored(color));
    match io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb") {
        true => Box::new(Bars::new(paint)),
        false => Box::new(Plain { paint, running: BTreeMap::new() }),
    }
}

/// All views of a run.
pub fn views(color: Color, json: bool, cache: &std::path::Path) -> Vec<Box<dyn View>> {
    let mut views: Vec<Box<dyn View>> = vec![view(color), Box::new(EventLog::new(cache))];
    if json {
        views.push(Box::new(machine::Json));
    } else if let Some(github) = machine::GitHub::here() {
        views.push(Box::new(github));
    }
    views
}

/// Seconds as one reads them.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.0995 => format!("{:.0} ms", s * 1e3),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{} min {:02} s", s.round() as u64 / 60, s.round() as u64 % 60),
        s => format!("{} h {:02} min", (s / 60.0).round() as u64 / 60, (s / 60.0).round() as u64 % 60),
    }
}

#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn word(self, word: &str) -> String {
        let code = match word {
            "done" => "32",
            "FAILED" | "error" => "1;31",
            "warning" | "stopped" | "retry" => "33",
            "passed" => "32",
            _ => "36",
        };
        // Padded before it is painted: the codes have no width.
        self.with(code, &format!("{word:>8}"))
    }
}

/// The lines that an event is worth; none for those that only move a bar.
fn lines(paint: Paint, event: &Event) -> Vec<String> {
    let line = |word: &str, text: String| format!("{}  {text}", paint.word(word));
    match event {
        Event::Warning { text } => vec![line("warning", text.clone())],
        Event::Building { program, command } => vec![line("build", format!("{program}: {command}"))],
        Event::Built { program, seconds: s, .. } => {
            vec![line("built", format!("{program} ({})", seconds(*s)))]
        }
        Event::Estimate { estimate } => vec![line("estimate", estimate_line(estimate))],
        Event::Rehearsal { classes, stages } => {
            let what =
                format!("{classes} of {stages} stages, one of each class, before the first of a long plan");
            vec![line("rehearse", what)]
        }
        Event::Rehearsed { stage, seconds: s } => vec![line("passed", format!("{stage} ({})", seconds(*s)))],
        Event::Elsewhere { stage, pid } => {
            vec![line("waiting", format!("{stage}: another itpipe (process {pid}) is making it"))]
        }
        Event::Started { stage, cause, resumed, .. } => {
            let resumed = if *resumed { ", resumes" } else { "" };
            vec![line("start", format!("{stage} ({cause}{resumed})"))]
        }
        Event::Finished { stage, seconds: s, .. } => vec![line("done", format!("{stage} ({})", seconds(*s)))],
        Event::Retried { stage, attempt, error } => {
            vec![line("retry", format!("{stage}: {error}: attempt {attempt}"))]
        }
        Event::Failed { stage, error, tail, log, seconds: s } => {
            let mut lines = vec![line("FAILED", format!("{stage} ({}): {error}", seconds(*s)))];
            lines.extend(tail.iter().map(|text| format!("          | {text}")));
            if !log.is_empty() {
                lines.push(format!("          log: {log}"));
            }
            lines
        }
        Event::Interrupted { stage, seconds: s } => {
            vec![line("stopped", format!("{stage} ({}): its scratch folder is kept", seconds(*s)))]
        }
        Event::NotRun { stage, because } => vec![line("not run", format!("{stage}: needs {because}"))],
        Event::Published { path, written, .. } => {
            vec![line("publish", format!("{path} ({written} file{})", if *written == 1 { "" } else { "s" }))]
        }
        Event::Ended { summary } => vec![summary_line(summary)],
        Event::Begun { .. }
        | Event::Planned { .. }
        | Event::UpToDate { .. }
        | Event::Rehearsing { .. }
        | Event::Progress { .. } => Vec::new(),
    }
}

fn summary_line(summary: &Summary) -> String {
    let mut parts = Vec::new();
    for (count, what) in [
        (summary.ran, "ran"),
        (summary.up_to_date, "up to date"),
        (summary.failed, "failed"),
        (summary.not_run, "not run"),
        (summary.interrupted, "stopped"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if parts.is_empty() {
        parts.push("no stages".into());
    }
    let compared = match summary.estimated > 0.0 {
        true => {
            format!("; what was estimated at {} took {}", seconds(summary.estimated), seconds(summary.spent))
        }
        false => String::new(),
    };
    format!("{} in {}{compared}", parts.join(", "), seconds(summary.seconds))
}

/// `3 h 20 min for 40 stages (2 of unknown time), 1.2 GB on the disk, 300 MB to bring`.
pub fn estimate_line(estimate: &Estimate) -> String {
    let Estimate { stages, unknown, wall, bytes, download, .. } = *estimate;
    let s = if stages == 1 { "" } else { "s" };
    let mut text = match unknown == stages {
        true => format!("time unknown for {stages} stage{s}"),
        false => format!("{} for {stages} stage{s}", seconds(wall)),
    };
    if unknown > 0 && unknown < stages {
        text += &format!(" ({unknown} of unknown time)");
    }
    for (bytes, what) in [(bytes, "on the disk"), (download, "to bring")] {
        if bytes > 0 {
            text += &format!(", {} {what}", size(bytes));
        }
    }
    text
}

/// Bytes as one reads them.
pub fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e3 => format!("{bytes} bytes"),
        b if b < 999.5e3 => format!("{:.0} kB", b / 1e3),
        b if b < 999.5e6 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

struct Alive {
    since: Instant,
    shown: Instant,
    note: String,
}

/// One line at the start and the end of each stage, and now and then for a long one.
struct Plain {
    paint: Paint,
    running: BTreeMap<String, Alive>,
}

impl Plain {
    /// Lines for the stages of which nothing was said for long.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for (stage, alive) in &mut self.running {
            if now - alive.shown >= ALIVE_EVERY {
                alive.shown = now;
                let note = if alive.note.is_empty() { String::new() } else { format!(": {}", alive.note) };
                let time = seconds((now - alive.since).as_secs_f64());
                lines.push(format!("{}  {stage} ({time}){note}", self.paint.word("running")));
            }
        }
        lines
    }

    fn print(&self, lines: &[String]) {
        let mut err = io::stderr().lock();
        for line in lines {
            // A closed stderr must not end a run.
            let _ = writeln!(err, "{line}");
        }
    }
}

impl View for Plain {
    fn event(&mut self, event: &Event) {
        self.print(&lines(self.paint, event));
        let now = Instant::now();
        match event {
            Event::Started { stage, .. } | Event::Rehearsing { stage } => {
                self.running.insert(stage.clone(), Alive { since: now, shown: now, note: String::new() });
            }
            Event::Finished { stage, .. }
            | Event::Rehearsed { stage, .. }
            | Event::Failed { stage, .. }
            | Event::Interrupted { stage, .. } => {
                self.running.remove(stage);
            }
            Event::Progress { stage, done, total, note } => {
                if let Some(alive) = self.running.get_mut(stage) {
                    alive.note = progress_note(*done, *total, note);
                    if now - alive.shown >= NOTE_EVERY {
                        alive.shown = now;
                        let text = format!(
                            "{stage} ({}): {}",
                            seconds((now - alive.since).as_secs_f64()),
                            alive.note
                        );
                        let line = format!("{}  {text}", self.paint.word("running"));
                        self.print(&[line]);
                    }
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self) {
        let lines = self.due(Instant::now());
        self.print(&lines);
    }
}

fn progress_note(done: f64, total: f64, note: &str) -> String {
    let percent = if total > 0.0 {
        format!("{:.0} %", (100.0 * done / total).clamp(0.0, 100.0))
    } else {
        String::new()
    };
    [percent.as_str(), note].iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

/// A bar for each running stage, one for all.
struct Bars {
    paint: Paint,
    multi: MultiProgress,
    /// Stages that are wanted, and those that have come to an end.
    stages: u64,
    ended: u64,
    total: Option<ProgressBar>,
    running: BTreeMap<String, ProgressBar>,
    stage_style: ProgressStyle,
}

impl Bars {
    fn new(paint: Paint) -> Bars {
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ")
        };
        Bars {
            paint,
            multi: MultiProgress::new(),
            stages: 0,
            ended: 0,
            total: None,
            running: BTreeMap::new(),
            stage_style: style("  {elapsed:>5} [{bar:20}] {prefix} {wide_msg}"),
        }
    }

    fn print(&self, lines: &[String]) {
        for line in lines {
            let _ = self.multi.println(line);
        }
    }
}

impl View for Bars {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Begun { stages, .. } => self.stages = *stages as u64,
            Event::Started { stage, .. } | Event::Rehearsing { stage } => {
                // Not drawn before something starts: a run with nothing to do shows one line.
                if self.total.is_none() {
                    let style = ProgressStyle::with_template("  {elapsed:>5} [{bar:20}] {pos}/{len} stages")
                        .unwrap_or_else(|_| ProgressStyle::default_bar())
                        .progress_chars("=> ");
                    let total = self.multi.add(ProgressBar::new(self.stages).with_style(style));
                    total.set_position(self.ended);
                    self.total = Some(total);
                }
                let bar = ProgressBar::new(1).with_style(self.stage_style.clone()).with_prefix(stage.clone());
                let bar = self.multi.insert(0, bar);
                bar.enable_steady_tick(Duration::from_millis(500));
                self.running.insert(stage.clone(), bar);
            }
            Event::Progress { stage, done, total, note } => {
                if let Some(bar) = self.running.get(stage).filter(|_| *total > 0.0) {
                    bar.set_length((*total * 1e3).max(0.0) as u64);
                    bar.set_position((*done * 1e3).max(0.0) as u64);
                    bar.set_message(note.clone());
                }
            }
            _ => {}
        }
        let ended = match event {
            Event::Finished { stage, .. }
            | Event::Rehearsed { stage, .. }
            | Event::Failed { stage, .. }
            | Event::Interrupted { stage, .. } => Some(stage),
            _ => None,
        };
        if let Some(bar) = ended.and_then(|stage| self.running.remove(stage)) {
            bar.finish_and_clear();
        }
        if matches!(event, Event::Finished { .. } | Event::UpToDate { .. } | Event::Failed { .. }) {
            self.ended += 1;
            if let Some(total) = &self.total {
                total.set_position(self.ended);
            }
        }
        match event {
            // The bar shows it.
            Event::Started { .. } => {}
            Event::Ended { .. } => {
                if let Some(total) = self.total.take() {
                    total.finish_and_clear();
                }
                let _ = self.multi.clear();
                for line in lines(self.paint, event) {
                    say(format_args!("{line}"));
                }
            }
            event => self.print(&lines(self.paint, event)),
        }
    }
}

/// All events of a run as lines of JSON in `runs/` of the store; a run in which nothing happens writes none.
pub struct EventLog {
    folder: PathBuf,
    held: Vec<String>,
    file: Option<BufWriter<File>>,
    broken: bool,
}

impl EventLog {
    pub fn new(cache: &std::path::Path) -> EventLog {
        EventLog { folder: cache.join("runs"), held: Vec::new(), file: None, broken: false }
    }

    fn open(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut old: Vec<PathBuf> = std::fs::read_dir(&self.folder)?.flatten().map(|e| e.path()).collect();
        old.sort();
        let surplus = old.len().saturating_sub(KEPT_LOGS - 1);
        old.iter().take(surplus).for_each(|path| _ = std::fs::remove_file(path));
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let file = File::create(self.folder.join(format!("{now:015}-{}.jsonl", std::process::id())))?;
        self.file = Some(BufWriter::new(file));
        Ok(())
    }
}

impl View for EventLog {
    fn event(&mut self, event: &Event) {
        if self.broken
            || (self.file.is_none() && matches!(event, Event::UpToDate { .. } | Event::Ended { .. }))
        {
            return;
        }
        let Ok(line) = serde_json::to_string(event) else { return };
        self.held.push(line);
        if self.file.is_none() {
            if matches!(event, Event::Begun { .. }) {
                return;
            }
            self.broken = self.open().is_err();
        }
        if let Some(file) = &mut self.file {
            for line in self.held.drain(..) {
                self.broken |= writeln!(file, "{line}").is_err();
            }
            if !matches!(event, Event::Progress { .. }) {
                self.broken |= file.flush().is_err();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten minutes of a stage, a tick each second as the loop has it: never more than a minute without a line.
    #[test]
    fn without_a_terminal_a_minute_is_never_silent() {
        for speaks in [false, true] {
            let mut plain = Plain { paint: Paint(false), running: BTreeMap::new() };
            plain.event(&Event::Started {
                stage: "train".into(),
                key: String::new(),
                cause: "no result yet".into(),
                resumed: false,
            });
            let start = Instant::now();
            if speaks {
                let note = "epoch 3/400 loss 0.5".into();
                plain.event(&Event::Progress { stage: "train".into(), done: 1.0, total: 4.0, note });
            }
            let (mut last, mut lines) = (0, Vec::new());
            for second in 1..=600 {
                let due = plain.due(start + Duration::from_secs(second));
                if !due.is_empty() {
                    assert!(second - last <= 60, "{} s of silence", second - last);
                    last = second;
                    lines.extend(due);
                }
            }
            assert!(600 - last <= 60 && lines.len() >= 10, "{lines:?}");
            let note = if speaks { ": 25 %, epoch 3/400 loss 0.5" } else { "" };
            assert!(
                lines[0].starts_with(" running  train (5") && lines[0].ends_with(&format!(" s){note}")),
                "{lines:?}"
            );
        }
    }
}
