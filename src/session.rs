//! What every command stands on: the pipeline, the store, the choice of stages. Computes no key, starts no stage, prints
//! nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cas::{Store, StoreError};
use crate::cli::Global;
use crate::digest::Digest;
use crate::error::Error;
use crate::graph::Graph;
use crate::keys::argv;
use crate::lock::Lock;
use crate::parse;
use crate::pipeline::{Pipeline, Stage, StageId};
use crate::program::Programs;
use crate::results::Results;
use crate::stat_cache::StatCache;

/// The pipeline and the store, open.
pub struct Session {
    pub root: PathBuf,
    pub file: PathBuf,
    pub pipeline: Pipeline,
    pub graph: Graph,
    pub store: Store,
    pub stat: StatCache,
    pub results: Results,
    pub lock: Lock,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::environment(error)
    }
}

/// The pipeline file: the given one, or `pipeline.yaml` here or in a folder above.
pub fn find(global: &Global) -> Result<(PathBuf, PathBuf), Error> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(crate::error::at(path));
    let file = match &global.file {
        Some(file) if file.is_dir() => file.join("pipeline.yaml"),
        Some(file) => file.clone(),
        None => {
            let here =
                std::env::current_dir().map_err(|e| Error::environment(format!("this folder: {e}")))?;
            let above =
                here.ancestors().find(|folder| folder.join("pipeline.yaml").is_file()).ok_or_else(|| {
                    Error::input(
                        "pipeline.yaml: no such file here or in a folder above\n  hint: name one with --file",
                    )
                })?;
            match above == here {
                true => PathBuf::from("pipeline.yaml"),
                false => above.join("pipeline.yaml"),
            }
        }
    };
    let root = absolute(&file)?.parent().map(Path::to_path_buf).unwrap_or_default();
    if root.to_str().is_none() {
        // Every stage is told where the repository is, in JSON.
        let shown = root.display();
        return Err(Error::input(format!(
            "{shown}: the path of the repository is not UTF-8\n  hint: rename the folder"
        )));
    }
    Ok((root, file))
}

/// Reads the pipeline for the profile and overrides of the command line.
pub fn read(global: &Global, root: &Path, file: &Path) -> Result<(Pipeline, Graph), Error> {
    read_with(global, root, file, None).map(|(pipeline, graph, _)| (pipeline, graph))
}

/// The same with the folder of the store, see [`parse::load_with`].
fn read_with(
    global: &Global,
    root: &Path,
    file: &Path,
    cache: Option<&Path>,
) -> Result<(Pipeline, Graph, Option<Digest>), Error> {
    let mut overrides = Vec::new();
    for text in global.set.iter().filter(|text| !text.trim().is_empty()) {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Error::input(format!("-S {text}: expected NAME=VALUE\n  hint: for example -S epochs=2"))
        })?;
        overrides.push((name.trim().to_string(), value.to_string()));
    }
    let (pipeline, key) = parse::load_with(root, file, global.profile.as_deref(), &overrides, cache)?;
    let graph = Graph::new(&pipeline)?;
    Ok((pipeline, graph, key))
}

impl Session {
    /// # Errors
    /// A pipeline with errors, a store of another version or that cannot be opened.
    pub fn open(global: &Global) -> Result<Session, Error> {
        let (root, file) = find(global)?;
        let cache = global.cache.clone().unwrap_or_else(|| root.join("cache"));
        let cache = std::path::absolute(&cache).map_err(crate::error::at(&cache))?;
        // What is only read is read while the pipeline is: with thousands of stages both take their time.
        let known = || -> Result<(StatCache, Results, Lock), Error> {
            let stat = StatCache::open(&cache).map_err(crate::error::at(&cache))?;
            let results = Results::open(&cache).map_err(Error::environment)?;
            let lock = Lock::load(&file.with_extension("lock")).map_err(Error::environment)?;
            Ok((stat, results, lock))
        };
        let (known, pipeline) = std::thread::scope(|scope| {
            let known = scope.spawn(known);
            let pipeline = read_with(global, &root, &file, Some(&cache));
            let gone = |_| Err(Error::environment("a bug of itpipe: a reader of the store ended"));
            (known.join().unwrap_or_else(gone), pipeline)
        });
        // A wrong pipeline is said first, and before the store is made.
        let (pipeline, graph, key) = pipeline?;
        let store = Store::open(&cache)?;
        if let Some(key) = key {
            parse::compiled::save(&cache, &key, &pipeline);
        }
        let (stat, results, lock) = known?;
        Ok(Session { root, file, pipeline, graph, store, stat, results, lock })
    }

    /// The lock beside the pipeline, by its name: two pipelines in a folder have a lock each.
    pub fn lock_path(&self) -> PathBuf {
        self.file.with_extension("lock")
    }

    /// As messages call it.
    pub fn lock_name(&self) -> String {
        self.lock_path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn stage(&self, id: StageId) -> &Stage {
        self.pipeline.stage(id)
    }

    pub fn programs(&self) -> Programs<'_> {
        Programs { root: &self.root, cache: self.store.cache(), stat: &self.stat }
    }

    /// The stages that the targets name; none: all.
    pub fn select(&self, targets: &[String]) -> Result<Vec<StageId>, Error> {
        if targets.is_empty() {
            return Ok(self.graph.order().to_vec());
        }
        self.graph.select(&self.pipeline, targets).map_err(Error::input)
    }

    /// The one stage that a name means.
    pub fn select_one(&self, name: &str) -> Result<StageId, Error> {
        match self.select(&[name.to_string()])?.as_slice() {
            [one] => Ok(*one),
            many => {
                let names: Vec<&str> = many.iter().take(5).map(|id| self.stage(*id).name.as_str()).collect();
                Err(Error::input(format!(
                    "{name}: names {} stages\n  hint: one of {}{}",
                    many.len(),
                    names.join(", "),
                    if many.len() > 5 { ", …" } else { "" }
                )))
            }
        }
    }

    /// Programs that the commands and identities of these stages need, by name.
    pub fn programs_of(&self, stages: &[StageId]) -> BTreeMap<&str, &crate::pipeline::Program> {
        let mut needed = BTreeMap::new();
        for id in stages {
            let kind = &self.stage(*id).kind;
            let words =
                [argv(kind).and_then(|words| words.first()), kind.identity.as_ref().and_then(|w| w.first())];
            for word in words.into_iter().flatten() {
                if let Some((name, program)) = self.pipeline.programs.get_key_value(word) {
                    needed.insert(name.as_str(), program);
                }
            }
        }
        needed
    }
}
