//! How the key of a stage comes about: code, identity, environment and inputs to an `Action`, and the places of its
//! bytes. Knows no schedule and starts no stage.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Serialize, Serializer};

use crate::action::{self, Action, InputDigest, Manifest};
use crate::digest::Digest;
use crate::error::Error;
use crate::event::Event;
use crate::job::{Material, Placed};
use crate::pipeline::{Command, Input, Kind, Repeatable, Source, Stage, StageId, Value};
use crate::program::{self, Ready};
use crate::session::Session;
use crate::tree::Tree;

pub(crate) fn argv(kind: &Kind) -> Option<&[String]> {
    match &kind.command {
        Command::Argv(words) => Some(words),
        Command::Shell(_) => None,
    }
}

/// A stage's result, as its dependents need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub key: Digest,
    pub tree: Digest,
}

/// A stage with its key and what a job needs.
#[derive(Clone, Debug)]
pub struct Keyed {
    pub key: Digest,
    pub manifest: Manifest,
    /// The inputs with the places of their bytes.
    pub inputs: Vec<(String, Placed)>,
    /// Files and folders of the repository that the stage reads while it runs, with the digests that entered the key.
    pub watched: Vec<(PathBuf, Digest)>,
    /// Declared variables.
    pub env: Vec<(String, Option<String>)>,
}

impl Keyed {
    /// The files of its code, relative to the repository.
    pub fn code(&self) -> impl Iterator<Item = &str> {
        self.manifest.lines.iter().filter_map(|(field, _)| field.strip_prefix("code."))
    }
}

/// The provenance document: what led to the inputs of a stage.
#[derive(Serialize)]
struct Document<'k> {
    version: u32,
    profile: &'k str,
    vars: &'k BTreeMap<String, Value>,
    stages: Vec<Origin<'k>>,
}

#[derive(Serialize)]
struct Origin<'k> {
    name: &'k str,
    kind: Option<&'k str>,
    key: Digest,
    command: Words<'k>,
    params: &'k BTreeMap<String, Value>,
    #[serde(serialize_with = "as_map")]
    inputs: Vec<(&'k str, From)>,
    tree: Digest,
    code: Vec<CodeFile<'k>>,
    identity: Option<&'k str>,
    repeatable: Repeatable,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Words<'k> {
    Line(&'k str),
    Argv(&'k [String]),
}

#[derive(Serialize)]
#[serde(untagged)]
enum From {
    One(Option<String>),
    Many(Vec<String>),
}

#[derive(Serialize)]
struct CodeFile<'k> {
    path: &'k str,
    digest: &'k str,
}

fn as_map<S: Serializer>(pairs: &[(&str, From)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(pairs.iter().map(|(name, from)| (name, from)))
}

/// The words and the environment of an identity command.
type Asked = (Vec<String>, Vec<(String, String)>);

/// Computes keys. Code is read once per run: what a built program was made from does not change when the file does.
pub struct Keys<'a> {
    session: &'a Session,
    programs: BTreeMap<String, Ready>,
    /// Files that are compiled into the programs.
    compiled: Vec<String>,
    code: RefCell<HashMap<Vec<String>, Rc<Code>>>,
    identities: RefCell<HashMap<Asked, Rc<str>>>,
    trees: RefCell<HashMap<Digest, Rc<Tree>>>,
    /// The last provenance document of a stage, and the outputs of its upstream that it was made of.
    documents: RefCell<HashMap<StageId, (Vec<Option<Output>>, Digest)>>,
    secrets: Vec<String>,
}

#[derive(Debug)]
struct Code {
    files: Vec<(String, Digest)>,
    /// Those that are not compiled in, and so are read while the stage runs.
    read: Vec<(PathBuf, Digest)>,
}

impl<'a> Keys<'a> {
    /// Builds the programs that the stages need, looks at their code before and after, and takes copies.
    pub fn build(
        session: &'a Session,
        stages: &[StageId],
        event: &mut dyn FnMut(Event),
    ) -> Result<Keys<'a>, Error> {
        let programs = session.programs();
        let mut ready = BTreeMap::new();
        let needed = session.programs_of(stages);
        let keys = Keys::current(session, stages)?;
        if keys.programs.len() == needed.len() {
            // Read between two looks at the programs: a file saved in between is not keyed with an old program.
            keys.check(stages)?;
            if Keys::current(session, stages)?.programs == keys.programs {
                return Ok(keys);
            }
        }
        let before = Keys::new(session, BTreeMap::new())?.all_code(stages)?;
        for (name, program) in &needed {
            ready.insert(name.to_string(), programs.ensure(program, event)?);
        }
        let keys = Keys::new(session, ready)?;
        let after = keys.all_code(stages)?;
        if let Some(path) =
            after.iter().find(|(path, digest)| before.get(*path) != Some(digest)).map(|(p, _)| p)
        {
            return Err(Error::input(format!(
                "{path}: changed while the programs were built: nobody can say which version they hold\n  hint: run again"
            )));
        }
        Ok(keys)
    }

    /// With the programs as they were last built; those that would be built now are left out.
    pub fn current(session: &'a Session, stages: &[StageId]) -> Result<Keys<'a>, Error> {
        let programs = session.programs();
        let mut ready = BTreeMap::new();
        for (name, program) in session.programs_of(stages) {
            if let Some(current) = programs.current(program)? {
                ready.insert(name.to_string(), current);
            }
        }
        Keys::new(session, ready)
    }

    fn new(session: &'a Session, programs: BTreeMap<String, Ready>) -> Result<Keys<'a>, Error> {
        let mut compiled = Vec::new();
        for name in programs.keys() {
            let program = &session.pipeline.programs[name];
            let what = format!("{}: programs.{name}.sources", program.location);
            if program.build.is_some() {
                compiled.extend(crate::code::files(&session.root, &program.sources, &what)?);
            }
        }
        compiled.sort();
        Ok(Keys {
            session,
            programs,
            compiled,
            code: RefCell::default(),
            identities: RefCell::default(),
            trees: RefCell::default(),
            documents: RefCell::default(),
            secrets: action::secrets(),
        })
    }

    /// Finds what is wrong with the code of these stages before any of them runs.
    pub fn check(&self, stages: &[StageId]) -> Result<(), Error> {
        stages.iter().try_for_each(|id| self.code(self.session.stage(*id)).map(|_| ()))
    }

    fn all_code(&self, stages: &[StageId]) -> Result<BTreeMap<String, Digest>, Error> {
        let mut all = BTreeMap::new();
        for id in stages {
            let stage = self.session.stage(*id);
            all.extend(self.code(stage)?.files.iter().cloned());
        }
        Ok(all)
    }

    fn code(&self, stage: &Stage) -> Result<Rc<Code>, Error> {
        let patterns = &stage.kind.code;
        if let Some(code) = self.code.borrow().get(patterns) {
            return Ok(code.clone());
        }
        let what = match &stage.kind.name {
            Some(name) => format!("{}: kinds.{name}.code", stage.kind.location),
            None => format!("{}: stages.{}.code", stage.location, stage.base),
        };
        let files = program::digests(&self.session.root, &self.session.stat, patterns, &what)?;
        let mut read = Vec::new();
        for (path, _) in files.iter().filter(|(path, _)| self.compiled.binary_search(path).is_err()) {
            let path = self.session.root.join(path);
            let seen = self.session.stat.look(&path).map_err(|e| Error::input(format!("{what}: {e}")))?;
            read.push((path, seen.digest()));
        }
        let code = Rc::new(Code { files, read });
        self.code.borrow_mut().insert(patterns.clone(), code.clone());
        Ok(code)
    }

    /// The words that run a stage: word 0 as a path where it is a program, each word as one where it is a file of the
    /// repository.
    pub fn command(&self, kind: &Kind) -> Vec<String> {
        match &kind.command {
            Command::Shell(text) => {
                // -e: a line that fails is a stage that fails; -u: a misspelt input is an error, not an empty word.
                ["/bin/sh", "-eu", "-c", text, "sh"].map(String::from).to_vec()
            }
            Command::Argv(words) => {
                let mut words = self.resolve(words);
                words.push("job.json".into());
                words
            }
        }
    }

    fn resolve(&self, words: &[String]) -> Vec<String> {
        let mut words = words.to_vec();
        if let Some(ready) = words.first().and_then(|first| self.programs.get(first)) {
            words[0] = ready.path.to_string_lossy().into_owned();
        }
        for word in &mut words {
            if let Some(relative) = word.strip_prefix("./") {
                *word = self.session.root.join(relative).to_string_lossy().into_owned();
            }
        }
        words
    }

    fn identity(&self, stage: &Stage, env: &[(String, Option<String>)]) -> Result<Option<Rc<str>>, Error> {
        let Some(words) = &stage.kind.identity else { return Ok(None) };
        let mut vars: BTreeMap<String, String> =
            action::inherited_env(&["PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HOME"])
                .into_iter()
                .collect();
        vars.extend(env.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))));
        let vars: Vec<_> = vars.into_iter().collect();
        let key = (words.clone(), vars);
        if let Some(text) = self.identities.borrow().get(&key) {
            return Ok(Some(text.clone()));
        }
        let ready = words.first().and_then(|word| self.programs.get(word));
        if ready.is_none()
            && words.first().is_some_and(|word| self.session.pipeline.programs.contains_key(word))
        {
            return Ok(Some(self.earlier_identity(stage)));
        }
        let mut text = self
            .session
            .programs()
            .identity(ready, &self.resolve(words), &key.1)
            .map_err(|e| Error { text: format!("{}: {}: {}", stage.location, stage.name, e.text), ..e })?;
        for secret in &self.secrets {
            text = text.replace(secret, "***");
        }
        let text: Rc<str> = text.into();
        self.identities.borrow_mut().insert(key, text.clone());
        Ok(Some(text))
    }

    /// For a plan: the identity that the stage had, where the program that would tell today's is not built.
    fn earlier_identity(&self, stage: &Stage) -> Rc<str> {
        let session = self.session;
        let earlier = session
            .lock
            .get(&session.pipeline.profile, &stage.name)
            .and_then(|locked| session.results.get(&locked.key))
            .and_then(|result| session.store.manifest(&result.manifest).ok())
            .and_then(|lines| lines.into_iter().find(|(field, _)| field == "identity"));
        earlier.map_or_else(|| Rc::from("its program is not built yet"), |(_, text)| text.into())
    }

    fn tree(&self, digest: &Digest) -> Result<Rc<Tree>, Error> {
        if let Some(tree) = self.trees.borrow().get(digest) {
            return Ok(tree.clone());
        }
        let tree = self.session.store.tree(digest)?.ok_or_else(|| {
            Error::environment(format!("tree {digest}: not in the store any more\n  hint: run again"))
        })?;
        let tree = Rc::new(tree);
        self.trees.borrow_mut().insert(*digest, tree.clone());
        Ok(tree)
    }

    /// The key of a stage whose upstream stages all have an output.
    ///
    /// # Errors
    /// An input or a piece of code that is not there, a path that an upstream output lacks, an identity that fails.
    pub fn key(
        &self,
        id: StageId,
        outputs: &[Option<Output>],
        past: &[Option<Rc<Keyed>>],
    ) -> Result<Keyed, Error> {
        self.key_of(id, self.session.stage(id), outputs, past)
    }

    /// The key of a rehearsal of a stage, whose lists of inputs may be shorter than the pipeline's: never that of a
    /// result.
    ///
    /// # Errors
    /// As [`Keys::key`].
    pub fn rehearsal(
        &self,
        id: StageId,
        stage: &Stage,
        outputs: &[Option<Output>],
        past: &[Option<Rc<Keyed>>],
    ) -> Result<Keyed, Error> {
        let mut keyed = self.key_of(id, stage, outputs, past)?;
        keyed.manifest.lines.push(("rehearse".into(), "true".into()));
        keyed.key = keyed.manifest.key();
        Ok(keyed)
    }

    fn key_of(
        &self,
        id: StageId,
        stage: &Stage,
        outputs: &[Option<Output>],
        past: &[Option<Rc<Keyed>>],
    ) -> Result<Keyed, Error> {
        let code = self.code(stage)?;
        let mut watched = code.read.clone();
        let mut digests = Vec::with_capacity(stage.inputs.len());
        let mut placed = Vec::with_capacity(stage.inputs.len());
        for (name, input) in &stage.inputs {
            let what = || format!("{}: {}: in.{name}", stage.location, stage.name);
            match input {
                Input::One(source) => {
                    let (digest, material) = self.source(id, source, outputs, past, &mut watched, what)?;
                    digests.push((name.clone(), InputDigest::One(digest)));
                    placed.push((name.clone(), Placed::One(material)));
                }
                Input::Many(sources) => {
                    let (mut keyed, mut materials) = (Vec::new(), Vec::new());
                    for source in sources {
                        let (digest, material) =
                            self.source(id, source, outputs, past, &mut watched, what)?;
                        let visible = self.visible(source);
                        keyed.push((visible.clone(), digest));
                        materials.push((visible, material));
                    }
                    digests.push((name.clone(), InputDigest::Many(keyed)));
                    placed.push((name.clone(), Placed::Many(materials)));
                }
            }
        }
        let env = action::declared_env(&stage.kind);
        let pinned = action::is_pinned(stage);
        // A pinned source is its promises: neither its code nor its identity matters, so neither is asked for.
        let identity = if pinned { None } else { self.identity(stage, &env)? };
        let program =
            match argv(&stage.kind).and_then(|words| words.first()).and_then(|w| w.strip_prefix("./")) {
                Some(relative) if !pinned => {
                    let path = self.session.root.join(relative);
                    let seen = self.session.stat.look(&path).map_err(|e| {
                        let cause = e.to_string().replace(&format!("{}: ", path.display()), "");
                        let at = &stage.kind.location;
                        Error::input(format!("{at}: {}: run: {relative}: {cause}", stage.name))
                    })?;
                    let digest = seen.digest();
                    watched.push((path, digest));
                    Some(digest)
                }
                // A built program of which nothing else tells one version from the next.
                None if !pinned && identity.is_none() && code.files.is_empty() => {
                    let word = argv(&stage.kind).and_then(|words| words.first());
                    word.and_then(|word| self.programs.get(word)).map(|ready| ready.digest)
                }
                _ => None,
            };
        let action = Action {
            stage,
            salt: &self.session.pipeline.salt,
            program,
            code: &code.files,
            identity: identity.as_deref(),
            env: &env,
            inputs: &digests,
        };
        let manifest = action.manifest();
        Ok(Keyed { key: manifest.key(), manifest, inputs: placed, watched, env })
    }

    /// How a source of a list is called in job.json.
    fn visible(&self, source: &Source) -> String {
        match source {
            Source::Stage { id, path: None } => self.session.stage(*id).name.clone(),
            Source::Stage { id, path: Some(path) } => format!("{}/{path}", self.session.stage(*id).name),
            Source::Repo(path) => format!("./{path}"),
            Source::Provenance => "@provenance".into(),
        }
    }

    fn source(
        &self,
        consumer: StageId,
        source: &Source,
        outputs: &[Option<Output>],
        past: &[Option<Rc<Keyed>>],
        watched: &mut Vec<(PathBuf, Digest)>,
        what: impl Fn() -> String,
    ) -> Result<(Digest, Material), Error> {
        match source {
            Source::Stage { id, path } => {
                let tree = outputs[id.index()].map(|output| output.tree).ok_or_else(|| {
                    Error::environment(format!("{}: {}: has no result", what(), self.session.stage(*id).name))
                })?;
                let digest = match path {
                    None => tree,
                    Some(path) => {
                        let sub = self.tree(&tree)?.sub(path).map_err(|e| {
                            Error::input(format!("{}: {}: {e}", what(), self.session.stage(*id).name))
                        })?;
                        sub.digest()
                    }
                };
                Ok((digest, Material::Tree { tree, path: path.clone() }))
            }
            Source::Repo(relative) => {
                let path = self.session.root.join(relative);
                let seen =
                    self.session.stat.look(&path).map_err(|e| Error::input(format!("{}: {e}", what())))?;
                let digest = seen.digest();
                watched.push((path.clone(), digest));
                Ok((digest, Material::Repo { path, seen }))
            }
            Source::Provenance => {
                let blob = self.document(consumer, outputs, past)?;
                Ok((blob, Material::Document { blob }))
            }
        }
    }

    /// What led to the inputs of a stage, in the store. A plan and the run after it want the same one.
    fn document(
        &self,
        consumer: StageId,
        outputs: &[Option<Output>],
        past: &[Option<Rc<Keyed>>],
    ) -> Result<Digest, Error> {
        let upstream = self.session.graph.upstream(&[consumer]);
        let of: Vec<Option<Output>> = upstream.iter().map(|id| outputs[id.index()]).collect();
        if let Some((made_of, blob)) = self.documents.borrow().get(&consumer)
            && *made_of == of
        {
            return Ok(*blob);
        }
        let document = self.provenance(consumer, outputs, past)?;
        let blob = Digest::of(&document);
        if !self.session.store.contains(&blob) {
            self.session.store.put_bytes(&document)?;
        }
        self.documents.borrow_mut().insert(consumer, (of, blob));
        Ok(blob)
    }

    /// The text of that document: a function of the inputs alone, so that the page made from it is one too.
    fn provenance<'k>(
        &'k self,
        consumer: StageId,
        outputs: &[Option<Output>],
        past: &'k [Option<Rc<Keyed>>],
    ) -> Result<Vec<u8>, Error> {
        let pipeline = &self.session.pipeline;
        let mut stages = Vec::new();
        for id in self.session.graph.upstream(&[consumer]).into_iter().filter(|id| *id != consumer) {
            let stage = self.session.stage(id);
            let (Some(output), Some(keyed)) = (outputs[id.index()], &past[id.index()]) else { continue };
            let inputs = stage.inputs.iter().map(|(name, input)| {
                let mut names = input.sources().iter().map(|s| self.visible(s));
                let from = match input {
                    Input::One(_) => From::One(names.next()),
                    Input::Many(_) => From::Many(names.collect()),
                };
                (name.as_str(), from)
            });
            let code = |(field, digest): &'k (String, String)| {
                Some(CodeFile { path: field.strip_prefix("code.")?, digest })
            };
            let lines = &keyed.manifest.lines;
            stages.push(Origin {
                name: &stage.name,
                kind: stage.kind.name.as_deref(),
                key: output.key,
                command: match &stage.kind.command {
                    Command::Shell(text) => Words::Line(text),
                    Command::Argv(words) => Words::Argv(words),
                },
                params: &stage.params,
                inputs: inputs.collect(),
                tree: output.tree,
                code: lines.iter().filter_map(code).collect(),
                identity: lines.iter().find(|(field, _)| field == "identity").map(|(_, text)| text.as_str()),
                repeatable: stage.kind.repeatable,
            });
        }
        let document = Document { version: 1, profile: &pipeline.profile, vars: &pipeline.vars, stages };
        serde_json::to_vec_pretty(&document).map_err(|e| Error::environment(format!("provenance: {e}")))
    }
}
