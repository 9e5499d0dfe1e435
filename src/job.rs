//! The folder of one job, after the contract of a stage: job.json, inputs, out, scratch, and the environment.
//! Knows the store and the contract; knows no schedule and starts nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::action;
use crate::cas::{Link, Store, StoreError};
use crate::digest::Digest;
use crate::pipeline::{Command, Kind, Promise, Stage, Value};
use crate::tree::{Sub, is_normal};

/// The version of job.json.
const VERSION: u32 = 1;

/// Variables of ours that every stage sees. They can change where a tool is found and which device it uses, and are
/// not part of a key.
const INHERITED: [&str; 5] =
    ["PATH", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// What sources see besides: the way to the network and to the Hub. A source is checked against its promises.
const NETWORK: [&str; 13] = [
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_ENDPOINT",
    "HF_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// Where the bytes of an input come from.
#[derive(Clone, Debug)]
pub enum Material {
    /// The output of a stage, or one path of it.
    Tree { tree: Digest, path: Option<String> },
    /// A file or folder of the repository, as it was when the key was computed.
    Repo { path: PathBuf, seen: Sub },
    /// A document that the engine wrote, a blob of the store.
    Document { blob: Digest },
}

/// One input as it is placed in the folder.
#[derive(Clone, Debug)]
pub enum Placed {
    One(Material),
    /// With the names that the stage sees.
    Many(Vec<(String, Material)>),
}

/// How this run reaches what sources fetch.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    pub root: PathBuf,
    pub mirror: Option<PathBuf>,
    pub offline: bool,
}

/// How a folder is made ready.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    pub reach: &'a Reach,
    pub link: Link,
    /// Whether the stage is only rehearsed.
    pub rehearse: bool,
}

/// Why a folder could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error("{0}: changed before the stage could start")]
    Changed(PathBuf),
    #[error("{0}")]
    Input(String),
}

/// The folder of a job, `work/<key>/` in the store.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn out(&self) -> PathBuf {
        self.0.join("out")
    }

    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    pub fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }

    /// Whether an earlier attempt at the same action left something to resume from.
    pub fn resumes(&self) -> bool {
        fs::read_dir(self.scratch()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// An empty `out` and `tmp`, all inputs in `in`, job.json; `scratch` as it was.
    pub fn prepare(
        &self,
        store: &Store,
        stage: &Stage,
        inputs: &[(String, Placed)],
        how: How,
    ) -> Result<(), JobError> {
        let How { reach, link, rehearse } = how;
        self.clear(store)?;
        for folder in [self.out(), self.scratch(), self.tmp().join("home"), self.0.join("in")] {
            fs::create_dir_all(&folder).map_err(|e| JobError::Io(folder, e))?;
        }
        let mut described = serde_json::Map::new();
        for (name, placed) in inputs {
            if !is_normal(name) || name.contains('/') {
                return Err(JobError::Input(format!("input '{name}': cannot be the name of a file")));
            }
            let relative = format!("in/{name}");
            let described_input = match placed {
                Placed::One(material) => {
                    self.place(store, material, &relative, link)?;
                    Json::from(relative)
                }
                Placed::Many(list) => {
                    let folder = self.0.join(&relative);
                    fs::create_dir(&folder).map_err(|e| JobError::Io(folder, e))?;
                    let mut paths = Vec::with_capacity(list.len());
                    for (i, (source, material)) in list.iter().enumerate() {
                        let path = format!("{relative}/{i}");
                        self.place(store, material, &path, link)?;
                        paths.push(json!({ "name": source, "path": path }));
                    }
                    Json::from(paths)
                }
            };
            described.insert(name.clone(), described_input);
        }
        let document = json!({
            "version": VERSION,
            "params": stage.params.iter().map(|(k, v)| (k.clone(), v.to_json())).collect::<serde_json::Map<_, _>>(),
            "inputs": described,
            "out": "out",
            "scratch": "scratch",
            "rehearse": rehearse,
            "threads": stage.kind.threads,
            "fixed": if stage.kind.fixed { fixed(stage, reach) } else { Json::Null },
        });
        let path = self.0.join("job.json");
        let text = serde_json::to_vec_pretty(&document).map_err(|e| JobError::Io(path.clone(), e.into()))?;
        fs::write(&path, text).map_err(|e| JobError::Io(path, e))
    }

    fn place(&self, store: &Store, material: &Material, relative: &str, link: Link) -> Result<(), JobError> {
        let dest = self.0.join(relative);
        match material {
            Material::Tree { tree, path } => store.materialize(tree, path.as_deref(), &dest, link)?,
            Material::Document { blob } => {
                let bytes = store.bytes(blob)?;
                fs::write(&dest, bytes).map_err(|e| JobError::Io(dest, e))?;
            }
            Material::Repo { path, seen } => {
                crate::cas::copy(path, &dest)?;
                // The copy is what the stage reads: it must be what the key says, whatever happened meanwhile.
                if !same(&dest, seen).map_err(|e| JobError::Io(path.clone(), e))? {
                    return Err(JobError::Changed(path.clone()));
                }
            }
        }
        Ok(())
    }

    /// Removes everything but `scratch` and the lock.
    pub fn clear(&self, store: &Store) -> Result<(), JobError> {
        let inputs = self.0.join("in");
        if inputs.exists() {
            store.release(&inputs)?;
        }
        for folder in [self.out(), self.tmp()] {
            remove(&folder).map_err(|e| JobError::Io(folder, e))?;
        }
        Ok(())
    }

    /// Removes all that a finished action leaves but its lock.
    pub fn finish(&self, store: &Store) -> Result<(), JobError> {
        self.clear(store)?;
        remove(&self.scratch()).map_err(|e| JobError::Io(self.scratch(), e))?;
        let document = self.0.join("job.json");
        fs::remove_file(&document).map_err(|e| JobError::Io(document, e))
    }
}

/// Removes a folder, also one that holds folders which a stage made unwritable or unreadable.
fn remove(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let mut folders = vec![folder.to_path_buf()];
            while let Some(next) = folders.pop() {
                fs::set_permissions(&next, fs::Permissions::from_mode(0o700))?;
                for entry in fs::read_dir(&next)?.flatten() {
                    if entry.file_type()?.is_dir() {
                        folders.push(entry.path());
                    }
                }
            }
            fs::remove_dir_all(folder)
        }
        other => other,
    }
}

/// Whether a copy has the content that was seen.
fn same(copy: &Path, seen: &Sub) -> std::io::Result<bool> {
    match seen {
        Sub::File { digest, .. } => Ok(crate::digest::file(copy)? == *digest),
        Sub::Folder(tree) => {
            for (path, digest, _, _) in tree.files() {
                if crate::digest::file(&copy.join(path))? != digest {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

fn fixed(stage: &Stage, reach: &Reach) -> Json {
    let none = BTreeMap::new();
    let files = stage.files.as_ref().unwrap_or(&none);
    let promise = |p: &Promise| json!({ "sha256": p.sha256, "size": p.size });
    json!({
        "files": files.iter().map(|(path, p)| (path.clone(), promise(p))).collect::<serde_json::Map<_, _>>(),
        "root": reach.root,
        "mirror": reach.mirror,
        "offline": reach.offline,
    })
}

/// All of a job's environment: a short fixed list, the declared variables, and for a shell stage what the contract
/// puts into job.json. Values reach a shell only so, never as part of its script.
pub fn environment(
    folder: &Folder,
    stage: &Stage,
    declared: &[(String, Option<String>)],
    inputs: &[(String, Placed)],
    rehearse: bool,
) -> Result<Vec<(String, String)>, String> {
    let kind: &Kind = &stage.kind;
    let mut env: BTreeMap<String, String> = action::inherited_env(&INHERITED).into_iter().collect();
    env.entry("PATH".into()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".into());
    let tmp = folder.tmp();
    let threads = kind.threads.to_string();
    let fixed = [
        ("HOME", tmp.join("home").to_string_lossy().into_owned()),
        ("TMPDIR", tmp.to_string_lossy().into_owned()),
        // A stage that asks for no GPU sees none; one that does is told which.
        (crate::device::VISIBLE, String::new()),
        ("LANG", "C.UTF-8".into()),
        ("TZ", "UTC".into()),
        ("RAYON_NUM_THREADS", threads.clone()),
        ("OMP_NUM_THREADS", threads.clone()),
        ("PYTHONHASHSEED", "0".into()),
        ("PYTHONDONTWRITEBYTECODE", "1".into()),
    ];
    env.extend(fixed.into_iter().map(|(name, value)| (name.to_string(), value)));
    if kind.fixed {
        env.extend(action::inherited_env(&NETWORK));
    }
    if matches!(kind.command, Command::Shell(_)) {
        env.insert("out".into(), "out".into());
        env.insert("scratch".into(), "scratch".into());
        env.insert("threads".into(), threads);
        if kind.rehearse {
            env.insert("rehearse".into(), rehearse.to_string());
        }
        for (name, placed) in inputs {
            let value = match placed {
                Placed::One(_) => format!("in/{name}"),
                Placed::Many(list) => {
                    (0..list.len()).map(|i| format!("in/{name}/{i}")).collect::<Vec<_>>().join("\n")
                }
            };
            env.insert(format!("in_{}", variable(name)), value);
        }
        for (name, value) in &stage.params {
            let text = match value {
                Value::Null => String::new(),
                value => value.to_string(),
            };
            env.insert(format!("param_{}", variable(name)), text);
        }
    }
    for (name, value) in declared {
        match value {
            Some(value) => _ = env.insert(name.clone(), value.clone()),
            None => _ = env.remove(name),
        }
    }
    if let Some((name, _)) =
        env.iter().find(|(name, value)| name.contains(['=', '\0']) || value.contains('\0'))
    {
        return Err(format!("variable '{name}': a NUL or '=' cannot be part of an environment"));
    }
    Ok(env.into_iter().collect())
}

/// A name as a shell can write it.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
