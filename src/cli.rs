//! The command line and its `ITPIPE_` variables. Nothing else reads either, but for one variable of tests in `device`.
//! Knows no pipeline.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
    0  done: every wanted stage has its result
    1  a stage failed (or `verify`, `diff`, `cache verify` found a difference)
    2  bad usage, bad pipeline, or an input that is not there
    3  the store, the lock file or the machine: unwritable, full, damaged
  130  stopped by Ctrl-C (143 by SIGTERM); stages that could keep a checkpoint have kept it

Every option can be given as a variable: ITPIPE_PROFILE=smoke is --profile smoke.";

/// Runs the stages of pipeline.yaml whose inputs changed, and says why.
#[derive(Debug, Parser)]
#[command(name = "itpipe", version, about, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The pipeline; its folder is the repository. Without it: pipeline.yaml here or in a folder above
    #[arg(long, value_name = "FILE", global = true, env = "ITPIPE_FILE")]
    pub file: Option<PathBuf>,
    /// The profile whose variables are in force; without it the pipeline's default-profile
    #[arg(long, value_name = "NAME", global = true, env = "ITPIPE_PROFILE")]
    pub profile: Option<String>,
    /// Set a variable of the pipeline for this run, value as YAML; such a run does not write pipeline.lock
    #[arg(
        short = 'S',
        long = "set",
        value_name = "NAME=VALUE",
        global = true,
        env = "ITPIPE_SET",
        value_delimiter = '\n'
    )]
    pub set: Vec<String>,
    /// The folder of the store; without it: cache/ beside the pipeline
    #[arg(long, value_name = "DIR", global = true, env = "ITPIPE_CACHE")]
    pub cache: Option<PathBuf>,
    /// Colours in the output; NO_COLOR is respected
    #[arg(long, value_name = "WHEN", global = true, env = "ITPIPE_COLOR", default_value = "auto")]
    pub color: Color,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

/// How stages are run.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Stages: a name, a base name (all its instances) or a pattern such as 'train[cifar10,*]'; none: all
    pub targets: Vec<String>,
    /// Capacity of the pool `cpu`; without it the number of cores
    #[arg(short, long, value_name = "N", env = "ITPIPE_JOBS", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// After a failure go on with all that does not depend on it (the default)
    #[arg(short, long, env = "ITPIPE_KEEP_GOING", value_parser = clap::builder::BoolishValueParser::new(), overrides_with = "fail_fast")]
    pub keep_going: bool,
    /// After a failure start nothing new
    #[arg(long, env = "ITPIPE_FAIL_FAST", value_parser = clap::builder::BoolishValueParser::new())]
    pub fail_fast: bool,
    /// A folder with the files that sources would download
    #[arg(long, value_name = "DIR", env = "ITPIPE_MIRROR")]
    pub mirror: Option<PathBuf>,
    /// Accept a licence that needs consent, by its id; it is recorded in the store
    #[arg(long, value_name = "ID", env = "ITPIPE_ACCEPT_LICENCE", value_delimiter = ',')]
    pub accept_licence: Vec<String>,
    /// Refuse sources whose bytes neither the pipeline nor its lock knows
    #[arg(long, env = "ITPIPE_LOCKED", value_parser = clap::builder::BoolishValueParser::new())]
    pub locked: bool,
    /// Sources must not use the network
    #[arg(long, env = "ITPIPE_OFFLINE", value_parser = clap::builder::BoolishValueParser::new())]
    pub offline: bool,
    /// Do not rehearse a long plan before it runs
    #[arg(long, env = "ITPIPE_NO_REHEARSAL", value_parser = clap::builder::BoolishValueParser::new())]
    pub no_rehearsal: bool,
    /// Print every event as a line of JSON on stdout, nothing else
    #[arg(long, env = "ITPIPE_JSON", value_parser = clap::builder::BoolishValueParser::new())]
    pub json: bool,
    /// Run again whenever the pipeline, its code or a file that a stage reads changes; Ctrl-C ends it
    #[arg(long, env = "ITPIPE_WATCH", value_parser = clap::builder::BoolishValueParser::new())]
    pub watch: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring stages up to date
    Run(RunArgs),
    /// Say what `run` would do, and why; runs nothing
    Plan {
        /// Stages, as for run
        targets: Vec<String>,
        /// As lines of JSON
        #[arg(long, env = "ITPIPE_JSON", value_parser = clap::builder::BoolishValueParser::new())]
        json: bool,
    },
    /// Name the first cause for which a stage would run again (or ran last), with old and new value
    Why {
        /// A stage
        stage: String,
        /// Why it would not run: what its key is made of, what came again equal, what is not in the key
        #[arg(long, env = "ITPIPE_NOT", value_parser = clap::builder::BoolishValueParser::new())]
        not: bool,
        /// Show every line of the manifest that its key is made of
        #[arg(long, env = "ITPIPE_MANIFEST", value_parser = clap::builder::BoolishValueParser::new())]
        manifest: bool,
        /// As one JSON document
        #[arg(long, env = "ITPIPE_JSON", value_parser = clap::builder::BoolishValueParser::new())]
        json: bool,
    },
    /// Draw the stages
    Graph {
        /// Stages, with all that they need; none: all
        targets: Vec<String>,
        /// How to draw
        #[arg(long, value_name = "FORMAT", default_value = "text", env = "ITPIPE_GRAPH_FORMAT")]
        format: GraphFormat,
    },
    /// Print what a stage wrote when it last ran
    Log {
        /// A stage
        stage: String,
        /// Go on printing while it runs
        #[arg(short, long, env = "ITPIPE_FOLLOW", value_parser = clap::builder::BoolishValueParser::new())]
        follow: bool,
    },
    /// Show the result of a stage: key, inputs, files, when and where it ran
    Show {
        /// A stage
        stage: String,
        /// As one JSON document
        #[arg(long, env = "ITPIPE_JSON", value_parser = clap::builder::BoolishValueParser::new())]
        json: bool,
    },
    /// Compare the results of two stages, or of one stage in two profiles (`train@smoke`)
    Diff {
        /// A stage, with `@profile` for another profile
        left: String,
        /// Another
        right: String,
    },
    /// Check the pipeline: everything that can be wrong before a stage runs
    Validate,
    /// Look at this machine: the store, the sandbox, tools, room on the disk
    Doctor,
    /// Record that today's key of a stage gives the result that it had before
    Accept {
        /// A stage whose key changed
        stage: String,
        /// Why the bytes cannot have changed; recorded
        #[arg(long, env = "ITPIPE_REASON")]
        reason: String,
    },
    /// Run a stage again beside its result and compare
    Verify {
        /// Stages
        #[arg(required = true)]
        targets: Vec<String>,
        /// A folder with the files that sources would download
        #[arg(long, value_name = "DIR", env = "ITPIPE_MIRROR")]
        mirror: Option<PathBuf>,
    },
    /// The sources: what is promised, what is here, under which licence
    #[command(subcommand)]
    Data(DataCommand),
    /// The store
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Options and variables in force
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the JSON Schema of pipeline.yaml, for an editor
    Schema,
    /// Write a small pipeline to begin with
    Init {
        /// Where; made if it is not there
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Print what makes a shell complete our commands
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// What to say of the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// List every option, pool and variable with its value and where it comes from
    Show,
}

/// What to do with sources.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// List the sources of the profile: whether they are here, how much they are, their licence
    Ls,
    /// Bring sources, and nothing else
    Fetch(RunArgs),
    /// Hash what is here of the sources and compare it with what is promised or recorded
    Verify {
        /// Sources; none: all
        targets: Vec<String>,
    },
    /// Show the licences: what they say, whether they were accepted
    Licences,
}

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the recorded results
    Ls,
    /// Hash every blob again; damaged ones are set aside and their stages run again when needed
    Verify,
    /// Delete what no lock and no result of the last 90 days needs
    Gc {
        /// Only say what would go
        #[arg(long, env = "ITPIPE_DRY_RUN", value_parser = clap::builder::BoolishValueParser::new())]
        dry_run: bool,
    },
    /// Print the folder of the store, or of the output of a stage
    Path {
        /// A stage
        stage: Option<String>,
    },
}

/// How `graph` draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    Text,
    Dot,
    Mermaid,
    Svg,
    /// One document, each stage of a matrix by itself
    Json,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::Cli;

    fn each(command: &Command, check: &mut dyn FnMut(&Command)) {
        check(command);
        command.get_subcommands().for_each(|below| each(below, check));
    }

    #[test]
    fn every_option_has_its_variable() {
        let mut options = 0;
        each(&Cli::command(), &mut |command| {
            for option in command.get_arguments().filter(|option| !option.is_positional()) {
                let name = option.get_long().expect("a long name");
                let variable = option.get_env().map(|name| name.to_string_lossy().into_owned());
                let variable = variable.unwrap_or_else(|| panic!("{} --{name}", command.get_name()));
                assert!(variable.starts_with("ITPIPE_"), "{variable}");
                options += 1;
            }
        });
        assert!(options > 20, "{options}");
    }
}
