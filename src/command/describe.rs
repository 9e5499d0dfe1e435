//! Commands that tell of itpipe itself or begin a pipeline: config, schema, completions, man, init. Start no stage.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use clap::CommandFactory;
use clap::parser::ValueSource;

use super::print;
use crate::cli::{Cli, Global};
use crate::error::{Error, at};
use crate::session;

/// Every option, pool and variable with its value and its origin.
pub fn config(global: &Global) -> Result<u8, Error> {
    let (root, file) = session::find(global)?;
    let (pipeline, _) = session::read(global, &root, &file)?;
    let matches = Cli::command().get_matches();
    let mut deepest = &matches;
    while let Some((_, below)) = deepest.subcommand() {
        deepest = below;
    }
    let origin = |id: &str| match deepest.value_source(id) {
        Some(ValueSource::CommandLine) => format!("--{id}"),
        Some(ValueSource::EnvVariable) => format!("ITPIPE_{}", id.to_uppercase()),
        _ => "default".to_string(),
    };
    let mut rows: Vec<(String, String, String)> = Vec::new();
    let mut row = |name: &str, value: String, origin: String| rows.push((name.into(), value, origin));
    let from = match &global.file {
        Some(_) => origin("file"),
        None => "found here or above".into(),
    };
    row("file", file.display().to_string(), from);
    let profile = if global.profile.is_some() { origin("profile") } else { "default-profile".into() };
    row("profile", pipeline.profile.clone(), profile);
    let cache = global.cache.clone().unwrap_or_else(|| root.join("cache"));
    row("cache", cache.display().to_string(), origin("cache"));
    row("color", format!("{:?}", global.color).to_lowercase(), origin("color"));
    row(
        "salt",
        format!("'{}'", pipeline.salt),
        if pipeline.salt.is_empty() { "default" } else { "salt" }.into(),
    );
    for (name, capacity) in crate::run::pools(&pipeline) {
        let declared = pipeline.pools.contains_key(&name);
        let origin = match name.as_str() {
            _ if declared => "pools",
            "cpu" => "default: the cores",
            "gpu" => "default: those that are there",
            _ => "default",
        };
        row(&format!("pools.{name}"), capacity.to_string(), origin.into());
    }
    // What the environment says of a run.
    for option in Cli::command().find_subcommand("run").into_iter().flat_map(|run| run.get_arguments()) {
        let variable = option.get_env().filter(|_| !option.is_global_set()).and_then(|name| name.to_str());
        if let (Some(name), Some(variable)) = (option.get_long(), variable)
            && let Ok(value) = std::env::var(variable)
        {
            row(&format!("run.{name}"), value, variable.into());
        }
    }
    let set = origin("set");
    for (name, value) in &pipeline.vars {
        let origin = match pipeline.origins.get(name).cloned().unwrap_or_default() {
            by_set if by_set.starts_with("-S") && set == "ITPIPE_SET" => set.clone(),
            other => other,
        };
        row(&format!("vars.{name}"), value.to_string(), origin);
    }
    let width = |of: fn(&(String, String, String)) -> &String, most: usize| {
        rows.iter().map(|row| of(row).chars().count()).filter(|n| *n <= most).max().unwrap_or(0)
    };
    let (names, values) = (width(|row| &row.0, 60), width(|row| &row.1, 40));
    let mut out = String::new();
    for (name, value, origin) in &rows {
        let _ = writeln!(out, "{name:<names$}  {value:<values$}  {origin}");
    }
    print(&out);
    Ok(0)
}

/// The JSON Schema of `pipeline.yaml`.
pub const SCHEMA: &str = include_str!("../../schema/pipeline.schema.json");

pub fn schema() -> Result<u8, Error> {
    print(SCHEMA);
    Ok(0)
}

pub fn completions(shell: clap_complete::Shell) -> Result<u8, Error> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "itpipe", &mut out);
    print(&String::from_utf8_lossy(&out));
    Ok(0)
}

pub fn man() -> Result<u8, Error> {
    let mut out = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut out)
        .map_err(|e| Error::environment(format!("the manual page: {e}")))?;
    print(&String::from_utf8_lossy(&out));
    Ok(0)
}

const FIRST_PIPELINE: &str = include_str!("init.yaml");

/// Writes a small pipeline that runs.
///
/// # Errors
/// There is one already, or the folder cannot be written.
pub fn init(folder: &Path) -> Result<u8, Error> {
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let path = folder.join("pipeline.yaml");
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let hint = "itpipe run runs it; name another folder for a new one";
            return Err(Error::input(format!("{}: is there already\n  hint: {hint}", path.display())));
        }
        other => other.map_err(at(&path))?,
    };
    file.write_all(FIRST_PIPELINE.as_bytes()).map_err(at(&path))?;
    // The store is no part of a repository's history; what stands in the file already is kept.
    let ignore = folder.join(".gitignore");
    let before = std::fs::read_to_string(&ignore).unwrap_or_default();
    if !before.lines().any(|line| matches!(line.trim(), "/cache" | "/cache/" | "cache" | "cache/")) {
        let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        std::fs::write(&ignore, format!("{before}{gap}/cache\n")).map_err(at(&ignore))?;
    }
    let next = if folder == Path::new(".") { String::new() } else { format!("cd {} && ", folder.display()) };
    print(&format!("{}: three stages\nnext: {next}itpipe run\n", path.display()));
    Ok(0)
}
