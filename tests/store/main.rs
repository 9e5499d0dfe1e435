//! The store under everything that may happen to it: crashes, damage, two runs at once, a full disk.

mod blobs;
mod crash;
mod inputs;
mod leases;
mod records;
mod sweep;
mod trees;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use itpipe::cas::Store;
use itpipe::digest::Digest;
use itpipe::results::ActionResult;

/// A temporary folder with a store in it.
pub struct Place {
    folder: tempfile::TempDir,
    pub store: Store,
}

impl Default for Place {
    fn default() -> Place {
        Place::new()
    }
}

impl Place {
    pub fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        Place { folder, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// The same store as another process would open it.
    pub fn again(&self) -> Store {
        Store::open(&self.cache()).unwrap()
    }

    /// A folder with these files; a name that ends in `/` is an empty folder, one that ends in `*` an executable.
    pub fn folder(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = self.path(name);
        fs::create_dir_all(&root).unwrap();
        for (file, content) in files {
            write(&root, file, content);
        }
        root
    }
}

pub fn write(root: &Path, file: &str, content: &str) {
    let path = root.join(file.trim_end_matches(['/', '*']));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if file.ends_with('/') {
        fs::create_dir_all(&path).unwrap();
        return;
    }
    fs::write(&path, content).unwrap();
    let mode = if file.ends_with('*') { 0o755 } else { 0o644 };
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes the file system's clock move on, so that what was written before is safely older than what comes.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(30));
}

/// Writes other bytes of the same length and puts the modification time back, as a careful forger would.
pub fn forge(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, before.permissions()).unwrap();
    let file = fs::File::open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    let after = fs::metadata(path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}

pub fn result(store: &Store, key: Digest, tree: Digest) -> ActionResult {
    ActionResult {
        key,
        tree,
        stage: "train[a]".into(),
        kind: "train".into(),
        profile: "smoke".into(),
        manifest: store.put_manifest(&[("params.seed".into(), "1".into())]).unwrap(),
        log: None,
        repeatable: "bits".into(),
        seconds: 1.25,
        started: 1_790_000_000_000,
        host: "here".into(),
        itpipe: "0.1.0".into(),
        commit: None,
        accepted: None,
        remote: None,
        facts: Default::default(),
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
