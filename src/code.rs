//! Files, folders and globs of the repository to the files that they name, with digests. Knows no stage.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use walkdir::WalkDir;

use crate::digest::Digest;
use crate::error::Error;

/// The files that the patterns name, relative to `root`, sorted, each once. `what` names the field in an error.
///
/// # Errors
/// A pattern that names nothing or leads out of the repository, or a folder that cannot be read.
pub fn files(root: &Path, patterns: &[String], what: &str) -> Result<Vec<String>, Error> {
    let mut files = Vec::new();
    for pattern in patterns {
        let before = files.len();
        one(root, pattern, &mut files).map_err(|why| Error::input(format!("{what}: '{pattern}': {why}")))?;
        if files.len() == before {
            return Err(Error::input(format!("{what}: '{pattern}': no such file in the repository")));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn one(root: &Path, pattern: &str, files: &mut Vec<String>) -> Result<(), String> {
    let relative = Path::new(pattern.trim_start_matches("./"));
    if relative.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err("leads out of the repository".into());
    }
    let path = root.join(relative);
    if path.is_file() {
        files.push(text(relative)?);
        return Ok(());
    }
    if path.is_dir() {
        return walk(root, &path, |_| true, files);
    }
    if !pattern.contains(['*', '?', '[', '{']) {
        return Ok(());
    }
    let glob = GlobBuilder::new(&text(relative)?)
        .literal_separator(true)
        .build()
        .map_err(|e| e.kind().to_string())?;
    let glob = glob.compile_matcher();
    let fixed: PathBuf = relative
        .components()
        .take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']))
        .collect();
    let base = root.join(fixed);
    if base.is_dir() { walk(root, &base, |file| glob.is_match(file), files) } else { Ok(()) }
}

fn walk(
    root: &Path,
    folder: &Path,
    wanted: impl Fn(&Path) -> bool,
    files: &mut Vec<String>,
) -> Result<(), String> {
    let skipped = |entry: &walkdir::DirEntry| {
        entry.depth() > 0 && entry.file_type().is_dir() && is_made(root, entry.path())
    };
    for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|e| !skipped(e)) {
        let entry = entry.map_err(|error| error.to_string())?;
        let relative = entry.path().strip_prefix(root).map_err(|_| "leads out of the repository")?;
        if entry.file_type().is_file() && wanted(relative) {
            files.push(text(relative)?);
        }
    }
    Ok(())
}

/// Whether a folder below a pattern holds no source of anything. Its name alone says so only where it is nobody's word:
/// a module may be called target.
fn is_made(root: &Path, folder: &Path) -> bool {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(".git" | "__pycache__") => true,
        Some("target" | "cache") if folder.parent() == Some(root) => true,
        Some("node_modules") if folder.with_file_name("package.json").is_file() => true,
        _ => folder.join("CACHEDIR.TAG").is_file(),
    }
}

fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_string).ok_or_else(|| format!("{}: the name is not UTF-8", path.display()))
}

/// One digest of many files, by path and content.
pub fn digest(files: &[(String, Digest)]) -> Digest {
    let mut encoder = crate::digest::Encoder::new("itpipe files 1");
    for (path, digest) in files {
        encoder.text(path);
        encoder.digest(digest);
    }
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_globs_and_files_are_sorted_and_named_once() {
        let root = tempfile::tempdir().unwrap();
        let made = ["target/no.rs", "a/built/CACHEDIR.TAG", "a/built/no.rs", "a/b/__pycache__/no.rs"];
        for file in ["a/x.rs", "a/b/y.rs", "a/b/z.txt", "a/target/t.rs", "c.rs"].iter().chain(&made) {
            std::fs::create_dir_all(root.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(root.path().join(file), "").unwrap();
        }
        let list = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            files(root.path(), &patterns, "code").map_err(|e| e.text)
        };
        assert_eq!(
            list(&["a", "c.rs", "./c.rs"]).unwrap(),
            ["a/b/y.rs", "a/b/z.txt", "a/target/t.rs", "a/x.rs", "c.rs"]
        );
        assert_eq!(list(&["**/*.rs"]).unwrap(), ["a/b/y.rs", "a/target/t.rs", "a/x.rs", "c.rs"]);
        assert_eq!(list(&["a/*.rs"]).unwrap(), ["a/x.rs"]);
        assert_eq!(list(&["a/*.py"]).unwrap_err(), "code: 'a/*.py': no such file in the repository");
        assert_eq!(list(&["../x"]).unwrap_err(), "code: '../x': leads out of the repository");
    }
}
