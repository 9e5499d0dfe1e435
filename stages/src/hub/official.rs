//! The Hub's own client, hf-hub, behind the [`Hub`] trait: it brings a file into a folder of ours, never into its cache.
//! It neither resumes nor verifies, so what it breaks off, and every refusal, is taken over by the thin client, which
//! has the messages, the pauses and the bounds. Knows one crate's ways; knows no digest and no data set.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hf_hub::{HFClientBuilder, HFClientSync};

use super::{Hub, Place, RepoType, Resolve, is_loopback};

/// hf-hub, and the thin client for what it leaves.
pub struct Official {
    client: HFClientSync,
    thin: Resolve,
}

impl Official {
    /// A client of the same endpoint, token and timeouts as `thin`.
    ///
    /// Errors: it cannot be built (no roots of trust, no thread).
    pub fn new(thin: Resolve, timeout: Duration) -> Result<Self> {
        let mut http = reqwest::Client::builder().connect_timeout(timeout).read_timeout(timeout);
        if is_loopback(&thin.endpoint) {
            http = http.no_proxy();
        }
        let mut client = HFClientBuilder::new()
            .endpoint(&thin.endpoint)
            .user_agent(concat!("itpipe/", env!("CARGO_PKG_VERSION")))
            .client(http.build().context("hf-hub")?)
            .cache_enabled(false)
            // One try: the thin client goes on with what came.
            .retry_max_attempts(0)
            .retry_base_delay(Duration::from_millis(1));
        if let Some(token) = &thin.token {
            client = client.token(token.clone());
        }
        Ok(Self { client: client.build_sync().context("hf-hub")?, thin })
    }

    fn download(&self, place: &Place, file: &str, folder: &Path) -> hf_hub::HFResult<PathBuf> {
        let (owner, name) = place.repo.split_once('/').unwrap_or(("", &place.repo));
        let (revision, folder) = (place.revision.clone(), folder.to_path_buf());
        match place.repo_type {
            RepoType::Dataset => {
                let repo = self.client.dataset(owner, name);
                repo.download_file().filename(file).revision(revision).local_dir(folder).send()
            }
            RepoType::Model => {
                let repo = self.client.model(owner, name);
                repo.download_file().filename(file).revision(revision).local_dir(folder).send()
            }
        }
    }
}

impl Hub for Official {
    fn bring(
        &self,
        place: &Place,
        file: &str,
        size: Option<u64>,
        part: &Path,
        seen: &dyn Fn(u64),
    ) -> Result<()> {
        // A beginning of an earlier try is the thin client's.
        if !part.exists() {
            let staging = part.with_extension("staging");
            let came = staging.join(file);
            let _ = std::fs::remove_dir_all(&staging);
            std::fs::create_dir_all(&staging).with_context(|| staging.display().to_string())?;
            let done = std::thread::scope(|scope| {
                let work = scope.spawn(|| self.download(place, file, &staging));
                while !work.is_finished() {
                    seen(std::fs::metadata(&came).map_or(0, |m| m.len()));
                    std::thread::sleep(Duration::from_millis(50));
                }
                work.join()
            });
            let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if came.is_file() {
                std::fs::rename(&came, part).with_context(|| part.display().to_string())?;
            }
            std::fs::remove_dir_all(&staging).with_context(|| staging.display().to_string())?;
            let length = std::fs::metadata(part).map_or(0, |m| m.len());
            match done {
                // Without a promise it is believed; with one, what is missing is fetched.
                Ok(_) if size.is_none_or(|size| size == length) => {
                    seen(length);
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => eprintln!("fetch: hf-hub: {error}; the thin client takes over"),
            }
        }
        self.thin.bring(place, file, size, part, seen)
    }

    fn reach(&self, place: Option<&Place>, file: &str) -> Result<()> {
        self.thin.reach(place, file)
    }

    fn bring_url(&self, url: &str, size: Option<u64>, part: &Path, seen: &dyn Fn(u64)) -> Result<()> {
        self.thin.bring_url(url, size, part, seen)
    }
}
