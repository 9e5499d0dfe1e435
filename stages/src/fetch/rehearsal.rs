//! A source that is only rehearsed: whether each file can be had, and how much it is. What is small or near is brought as
//! ever, so that later rehearsals read the real thing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Params, Variant, check_params, fetch};
use crate::hub::{Hub, Place};
use crate::job::{Fixed, Promise};
use crate::rehearsal::{mark, tell};

/// Up to so many bytes are brought from the network,
const SMALL: u64 = 1 << 20;
/// and so many are copied from a folder.
const NEAR: u64 = 64 << 20;

/// Where a file would come from.
enum From {
    Folder(PathBuf),
    Network,
}

/// Brings the files, or marks `out` as a placeholder after each was found to be there.
///
/// Errors: as [`fetch`].
pub fn rehearse(
    params: &Params,
    fixed: &Fixed,
    offline: bool,
    hub: &dyn Hub,
    scratch: &Path,
    out: &Path,
) -> Result<()> {
    check_params(params, fixed)?;
    let (mut near, mut far, mut unknown) = (0, 0, false);
    let mut network = Vec::new();
    for (file, promise) in &fixed.files {
        match from(params, fixed, file) {
            // One that is not there is for `fetch` to say.
            From::Folder(path) => near += path.metadata().map_or(0, |meta| meta.len()),
            From::Network => {
                far += promise.size.unwrap_or(0);
                unknown |= promise.size.is_none();
                network.push((file, promise));
            }
        }
    }
    let may = !fixed.offline && !offline;
    if near <= NEAR && far <= SMALL && !unknown || !may && !network.is_empty() {
        fetch(params, fixed, offline, hub, scratch, out)?;
        tell(0.0, Some(near + far), Some(far));
        return Ok(());
    }
    for (file, _) in &network {
        reach(params, hub, file).with_context(|| format!("{}: {file}", params.repo))?;
    }
    for (file, promise) in &fixed.files {
        if let From::Folder(path) = from(params, fixed, file) {
            found(&path, promise).with_context(|| format!("{}: {file}", params.repo))?;
        }
    }
    mark(out, &serde_json::json!({ "files": fixed.files.keys().collect::<Vec<_>>() }))?;
    // At ten megabytes a second from the network, a hundred from a folder.
    tell((far / 10_000_000 + near / 100_000_000) as f64, Some(near + far), Some(far));
    Ok(())
}

fn from(params: &Params, fixed: &Fixed, file: &str) -> From {
    let folder = match params.variant {
        Variant::Bundled => params.path.as_ref().map(|path| fixed.root.join(path)),
        Variant::Mirror | Variant::Hub => fixed.mirror.clone(),
    };
    match folder.map(|folder| params.below(&folder, file)) {
        Some(path) if params.variant != Variant::Hub || path.is_file() => From::Folder(path),
        // `fetch` says what a variant lacks that has no folder.
        None if params.variant != Variant::Hub => From::Folder(PathBuf::new()),
        _ => From::Network,
    }
}

/// Whether a large file of a folder is there, as long as promised; its digest is looked at when it is brought.
fn found(path: &Path, promise: &Promise) -> Result<()> {
    let meta = path.metadata().with_context(|| format!("looked for {}", path.display()))?;
    match promise.size {
        Some(size) if size != meta.len() => {
            anyhow::bail!("{}: wrong size: {} bytes, {size} are promised", path.display(), meta.len())
        }
        _ => Ok(()),
    }
}

fn reach(params: &Params, hub: &dyn Hub, file: &str) -> Result<()> {
    let Some(urls) = params.urls.get(file) else {
        let revision = params.revision.as_deref().unwrap_or_default().to_lowercase();
        let place = Place { repo: params.repo.clone(), repo_type: params.repo_type, revision };
        return hub.reach(Some(&place), file);
    };
    let mut last = Err(anyhow::anyhow!("params.urls: no URL"));
    for url in urls {
        last = hub.reach(None, url);
        if last.is_ok() {
            break;
        }
    }
    last
}
