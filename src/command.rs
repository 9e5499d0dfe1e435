//! The commands, each a short function over the session. Knows what to print on stdout; the work is done elsewhere.

mod data;
mod describe;
mod inspect;
mod keep;

use std::fmt::Write as _;

use crate::cli::{CacheCommand, Cli, Command, ConfigCommand, DataCommand, Global, GraphFormat};
use crate::error::Error;
use crate::estimate::{Classes, Costs};
use crate::event::{Event, View};
use crate::keys::Keys;
use crate::plan::{Fate, plan};
use crate::progress;
use crate::session::{self, Session};
use crate::why::Cause;

/// Does what the command line says. Returns the exit code.
pub fn run(cli: Cli) -> Result<u8, Error> {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => crate::run::command(global, &args),
        Command::Plan { targets, json } => plan_command(global, &targets, json),
        Command::Why { stage, not: true, .. } => inspect::why_not(global, &stage),
        Command::Why { stage, json: true, .. } => inspect::why_json(global, &stage),
        Command::Why { stage, manifest, .. } => why(global, &stage, manifest),
        Command::Graph { targets, format } => graph(global, &targets, format),
        Command::Log { stage, follow } => inspect::log(global, &stage, follow),
        Command::Show { stage, json } => inspect::show(global, &stage, json),
        Command::Diff { left, right } => inspect::diff(global, &left, &right),
        Command::Validate => validate(global),
        Command::Doctor => inspect::doctor(global),
        Command::Accept { stage, reason } => keep::accept(global, &stage, &reason),
        Command::Verify { targets, mirror } => keep::verify(global, &targets, mirror.as_deref()),
        Command::Data(DataCommand::Ls) => data::list(global),
        Command::Data(DataCommand::Fetch(args)) => data::fetch(global, &args),
        Command::Data(DataCommand::Verify { targets }) => data::verify(global, &targets),
        Command::Data(DataCommand::Licences) => data::licences(global),
        Command::Config(ConfigCommand::Show) => describe::config(global),
        Command::Schema => describe::schema(),
        Command::Init { folder } => describe::init(&folder),
        Command::Completions { shell } => describe::completions(shell),
        Command::Man => describe::man(),
        Command::Cache(CacheCommand::Ls) => keep::list(global),
        Command::Cache(CacheCommand::Verify) => keep::verify_store(global),
        Command::Cache(CacheCommand::Gc { dry_run }) => keep::gc(global, dry_run),
        Command::Cache(CacheCommand::Path { stage }) => keep::path(global, stage.as_deref()),
    }
}

/// Prints to stdout; a reader that has seen enough (`| head`) ends nothing, a full disk ends the program.
fn print(text: &str) {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        crate::progress::say(format_args!("itpipe: the output cannot be written: {error}"));
        std::process::exit(i32::from(crate::error::ENVIRONMENT));
    }
}

/// What the stages of a plan come to: how many of each name, and what their sources bring.
#[derive(Default)]
struct Work<'p> {
    stages: std::collections::BTreeMap<&'p str, usize>,
    sources: usize,
    files: usize,
    bytes: u64,
    /// Files whose length is not promised.
    unknown: usize,
}

impl<'p> Work<'p> {
    fn add(&mut self, stage: &'p crate::pipeline::Stage) {
        *self.stages.entry(&stage.base).or_default() += 1;
        let Some(files) = &stage.files else { return };
        self.sources += 1;
        self.files += files.len();
        self.bytes += files.values().filter_map(|promise| promise.size).sum::<u64>();
        self.unknown += files.values().filter(|promise| promise.size.is_none()).count();
    }

    fn text(&self) -> String {
        let mut out = String::new();
        if !self.stages.is_empty() {
            let each: Vec<String> = self.stages.iter().map(|(name, n)| format!("{n} {name}")).collect();
            let _ = writeln!(out, "of these: {}", each.join(", "));
        }
        if self.sources > 0 {
            let unknown = match self.unknown {
                0 => String::new(),
                n => format!(", and {n} files of unknown size"),
            };
            let _ = writeln!(
                out,
                "to fetch: {} files of {} sources, {} bytes{unknown}",
                self.files, self.sources, self.bytes
            );
        }
        out
    }
}

fn plan_command(global: &Global, targets: &[String], json: bool) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let stages = session.graph.upstream(&session.select(targets)?);
    let mut view = if json { Some(progress::Json) } else { None };
    let mut out = String::new();
    let mut tell = |word: &str, name: &str, text: String| match &mut view {
        Some(view) => {
            view.event(&Event::Planned { stage: name.into(), fate: word.into(), cause: text });
        }
        None if word == "up-to-date" => {}
        None => _ = writeln!(out, "{word:<8} {name}: {text}"),
    };
    for (name, program) in session.programs_of(&stages) {
        if session.programs().current(program)?.is_none() {
            tell("build", name, program.build.clone().unwrap_or_else(|| program.path.clone()));
        }
    }
    let (mut current, mut run, mut may, mut stuck) = (0, 0, 0, 0);
    let mut to_run = Vec::new();
    let mut work = Work::default();
    for (id, fate) in plan(&session, &stages)? {
        let name = &session.stage(id).name;
        if matches!(fate, Fate::Run(_) | Fate::After(_)) {
            to_run.push(id);
            work.add(session.stage(id));
        }
        match fate {
            Fate::UpToDate(output) => {
                current += 1;
                tell("up-to-date", name, output.key.to_string());
            }
            Fate::Run(cause) => {
                run += 1;
                tell("run", name, cause.to_string());
            }
            Fate::After(first) => {
                may += 1;
                tell("maybe", name, format!("after {}", session.stage(first).name));
            }
            Fate::Stuck(why) => {
                stuck += 1;
                tell("stuck", name, why);
            }
        };
    }
    let classes = Classes::new(&session);
    let estimate = (!to_run.is_empty()).then(|| Costs::open(&session, &classes).estimate(&to_run));
    if let (Some(view), Some(estimate)) = (&mut view, estimate) {
        view.event(&Event::Estimate { estimate });
    }
    if !json {
        let _ = write!(out, "{run} to run, {may} that depend on them, {current} up to date");
        out.push_str(&if stuck > 0 { format!(", {stuck} that cannot run\n") } else { "\n".into() });
        out.push_str(&work.text());
        if let Some(estimate) = estimate.filter(|of| of.unknown < of.stages || of.download > 0) {
            let _ = writeln!(out, "estimate: {}", progress::estimate_line(&estimate));
        }
        print(&out);
    }
    let _ = session.stat.save();
    Ok(if stuck > 0 { crate::error::BAD_INPUT } else { 0 })
}

fn why(global: &Global, stage: &str, manifest: bool) -> Result<u8, Error> {
    let session = Session::open(global)?;
    let id = session.select_one(stage)?;
    let stages = session.graph.upstream(&[id]);
    let fates = plan(&session, &stages)?;
    let mut out = String::new();
    let name = &session.stage(id).name;
    if let Some((_, fate)) = fates.iter().find(|(stage, _)| *stage == id) {
        let _ = match fate {
            Fate::UpToDate(output) => {
                let _ = writeln!(out, "{name}: up to date, key {}", output.key.short());
                match inspect::last_start(&session, name, Some(&output.key)) {
                    Some((_, cause)) => writeln!(out, "  ran last because of {cause}"),
                    None => Ok(()),
                }
            }
            Fate::Run(cause) => {
                let _ = writeln!(out, "{name}: would run: {cause}");
                if let Cause::Changed(changes) | Cause::Instead { changes, .. } = cause {
                    for change in changes.iter().take(40) {
                        let _ = writeln!(out, "  {change}");
                    }
                    if changes.len() > 40 {
                        let _ = writeln!(out, "  … and {} more", changes.len() - 40);
                    }
                }
                let mut follow = session.graph.downstream(&[id]).into_iter().filter(|next| *next != id);
                let names: Vec<&str> =
                    follow.by_ref().take(5).map(|id| session.stage(id).name.as_str()).collect();
                let more = follow.count();
                match (names.is_empty(), more) {
                    (true, _) => Ok(()),
                    (false, 0) => writeln!(out, "  then looks at {}", names.join(", ")),
                    (false, more) => writeln!(out, "  then looks at {} and {more} more", names.join(", ")),
                }
            }
            Fate::After(first) => {
                let what = fates.iter().find_map(|(stage, fate)| match fate {
                    Fate::Run(cause) if stage == first => Some(format!("would run: {cause}")),
                    Fate::Stuck(why) if stage == first => Some(format!("cannot run: {why}")),
                    _ => None,
                });
                let first = &session.stage(*first).name;
                let what = what.unwrap_or_else(|| "would run".into());
                writeln!(out, "{name}: would be looked at after {first}, which {what}")
            }
            Fate::Stuck(why) => writeln!(out, "{name}: cannot run: {why}"),
        };
    }
    if manifest {
        let keys = Keys::current(&session, &stages)?;
        for (field, value) in inspect::manifest(&session, &keys, id, &fates)? {
            let _ = writeln!(out, "  {field} = {value}");
        }
    }
    print(&out);
    Ok(0)
}

fn graph(global: &Global, targets: &[String], format: GraphFormat) -> Result<u8, Error> {
    let (root, file) = session::find(global)?;
    let (pipeline, graph) = session::read(global, &root, &file)?;
    let stages = match targets.is_empty() {
        true => graph.order().to_vec(),
        false => graph.upstream(&graph.select(&pipeline, targets).map_err(Error::input)?),
    };
    let text = match format {
        GraphFormat::Text => graph.text(&pipeline, &stages),
        GraphFormat::Dot => graph.dot(&pipeline, &stages),
        GraphFormat::Svg => graph.svg(&pipeline, &stages),
        GraphFormat::Mermaid => graph.mermaid(&pipeline, &stages),
        GraphFormat::Json => graph.json(&pipeline, &stages),
    };
    print(&text);
    Ok(0)
}

fn validate(global: &Global) -> Result<u8, Error> {
    let (root, file) = session::find(global)?;
    let (pipeline, _) = session::read(global, &root, &file)?;
    let mut problems = Vec::new();
    for (_, stage) in pipeline.iter() {
        let missing = stage.named().filter(|(_, path)| !root.join(path).exists());
        problems.extend(missing.map(|(field, path)| {
            format!("{}: {}: {field}: ./{path}: no such file", stage.location, stage.name)
        }));
        let what = format!("{}: {}: code", stage.kind.location, stage.name);
        if let Err(error) = crate::code::files(&root, &stage.kind.code, &what) {
            problems.push(error.text);
        }
    }
    problems.dedup();
    if !problems.is_empty() {
        return Err(Error::input(problems.join("\n")));
    }
    print(&format!(
        "{}: {} stages, profile {}: good\n",
        file.display(),
        pipeline.stages.len(),
        pipeline.profile
    ));
    Ok(0)
}

/// Builds what is needed and says so on stderr.
fn built<'a>(
    session: &'a Session,
    stages: &[crate::pipeline::StageId],
    global: &Global,
) -> Result<Keys<'a>, Error> {
    let mut view = crate::progress::view(global.color);
    Keys::build(session, stages, &mut |event: Event| view.event(&event))
}
