//! Files of a repository at a pinned revision, over HTTP: the [`Hub`] trait and a thin client of the Hub's resolve
//! route; the Hub's own client stands in `hub/official.rs`. Knows statuses, redirects, ranges, retries and to whom the token may go; knows no digest of a file (see
//! `fetch.rs`) and no data set.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use ureq::http::{Response, header};
use ureq::{Agent, Body};

use crate::job::bad;

#[cfg(feature = "hf-hub")]
pub mod official;

/// Where a file lies on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `owner/name`.
    pub repo: String,
    /// What kind of repository it is.
    pub repo_type: RepoType,
    /// A commit, 40 hexadecimal digits: a branch would move.
    pub revision: String,
}

/// The two kinds of repositories that the pipeline uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepoType {
    /// Below `/datasets/`.
    Dataset,
    /// At the root.
    Model,
}

impl RepoType {
    /// The folder of such repositories in a mirror.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dataset => "datasets",
            Self::Model => "models",
        }
    }
}

/// Something that can bring a file of a repository. Files are brought in parallel.
pub trait Hub: Sync {
    /// Brings `file` to `part`, which may hold its beginning from an earlier try. `size` is the promised length, where
    /// one is known; `seen` is told how many bytes are there. On success `part` is as long as the server said.
    ///
    /// Errors name the file, what went wrong and the next step; `BadInput` where another try cannot help.
    fn bring(
        &self,
        place: &Place,
        file: &str,
        size: Option<u64>,
        part: &Path,
        seen: &dyn Fn(u64),
    ) -> Result<()>;

    /// Whether the file is there to be brought: asks for it and reads no byte of it. Where it lies at a plain URL, `place`
    /// is none and `file` the URL.
    ///
    /// Errors: as [`Hub::bring`].
    fn reach(&self, place: Option<&Place>, file: &str) -> Result<()>;

    /// As [`Hub::bring`], a file that lies at a plain URL.
    fn bring_url(&self, url: &str, size: Option<u64>, part: &Path, seen: &dyn Fn(u64)) -> Result<()>;
}

/// A file to ask for.
struct Target<'a> {
    url: String,
    /// Where it lies on the Hub, and its name there; `None` for a plain URL.
    on_hub: Option<(&'a Place, &'a str)>,
}

/// The client that the environment asks for: hf-hub where this program has it, unless `HF_HUB_CLIENT` is `thin`.
///
/// Errors: `BadInput` for another word in `HF_HUB_CLIENT`, or `hf-hub` in a program without it.
pub fn from_env() -> Result<Box<dyn Hub>> {
    let thin = Resolve::from_env();
    let word = std::env::var("HF_HUB_CLIENT").unwrap_or_default();
    match word.trim() {
        "thin" => Ok(Box::new(thin)),
        #[cfg(feature = "hf-hub")]
        "" | "hf-hub" => Ok(Box::new(official::Official::new(thin, Duration::from_secs(60))?)),
        #[cfg(not(feature = "hf-hub"))]
        "" => Ok(Box::new(thin)),
        #[cfg(not(feature = "hf-hub"))]
        "hf-hub" => {
            let what = "HF_HUB_CLIENT: this program was built without hf-hub";
            Err(bad(format!(
                "{what}\nhint: build it with --features stages/hf-hub, or leave the variable out"
            )))
        }
        other => Err(bad(format!("HF_HUB_CLIENT: `{other}` is unknown: hf-hub or thin is expected"))),
    }
}

/// The client of the resolve route: plain HTTP with Range, on ureq.
pub struct Resolve {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// The pause before the first repetition; it doubles.
    pause: Duration,
}

/// How often a file is asked for again when nothing came since the last time.
const TRIES: u32 = 5;
/// How often in all.
const ALL_TRIES: u32 = 30;
/// The longest pause, also where the server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;

/// Why a try failed.
enum Failure {
    /// Another try may help, after this pause where the server named one.
    Again(String, Option<Duration>),
    /// It cannot.
    Final(anyhow::Error),
}

impl Resolve {
    /// A client as the environment says: `HF_ENDPOINT`; `HF_TOKEN`, or the file `token` in `HF_HOME`.
    pub fn from_env() -> Self {
        let variable =
            |name| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let token = variable("HF_TOKEN").or_else(|| {
            let path = Path::new(&variable("HF_HOME")?).join("token");
            let text = std::fs::read_to_string(path).ok()?;
            Some(text.trim().to_string()).filter(|token| !token.is_empty())
        });
        Self::new(&endpoint, token, Duration::from_secs(60), Duration::from_secs(1))
    }

    /// A client of `endpoint`. `timeout`: to connect, until the answer begins, and between two reads of it.
    pub fn new(endpoint: &str, token: Option<String>, timeout: Duration, pause: Duration) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by hand: the token must not travel with them.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("itpipe/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout));
        if is_loopback(&endpoint) {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), endpoint, token, pause }
    }

    fn url(&self, place: &Place, file: &str) -> String {
        let folder = if place.repo_type == RepoType::Dataset { "datasets/" } else { "" };
        format!("{}/{folder}{}/resolve/{}/{}", self.endpoint, place.repo, place.revision, escape(file))
    }

    /// One GET with its redirects. The token goes only to the endpoint's own origin. Returns the answer and the length
    /// that the Hub itself named on the way.
    fn get(&self, url: &str, from: u64) -> Result<(Response<Body>, Option<u64>), Failure> {
        let mut url = url.to_string();
        let mut linked = None;
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&url);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| transport(&e, &url))?;
            linked = linked.or_else(|| number(&response, "x-linked-size"));
            if !response.status().is_redirection() {
                return Ok((response, linked));
            }
            let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
            let Some(location) = location else {
                return Err(Failure::Again(format!("{url}: a redirect without a target"), None));
            };
            let next = join(&url, location);
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(Failure::Final(anyhow!("{url}: a redirect from https to {next}")));
            }
            url = next;
        }
        Err(Failure::Final(anyhow!("{url}: more than {REDIRECTS} redirects")))
    }

    /// One try to bring the rest of a file.
    fn once(
        &self,
        target: &Target<'_>,
        size: Option<u64>,
        part: &Path,
        seen: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        let have = std::fs::metadata(part).map_or(0, |m| m.len());
        // A part that is as long as promised is done; a longer one is no part of the file.
        if size == Some(have) && have > 0 {
            return Ok(());
        }
        let have = if size.is_some_and(|size| have > size) { 0 } else { have };
        let url = &target.url;
        let (response, linked) = self.get(url, have)?;
        let status = response.status().as_u16();
        let start = match status {
            200 => 0,
            206 => match content_range(&response) {
                Some((Some(start), _)) if start <= have => start,
                _ => {
                    return Err(
                        self.restart(part, format!("{url}: an answer to another range than was asked for"))
                    );
                }
            },
            416 if content_range(&response).is_some_and(|(_, total)| total == Some(have)) => return Ok(()),
            416 => {
                return Err(
                    self.restart(part, format!("{url}: the part that is here is longer than the file"))
                );
            }
            _ => return Err(self.refused(target, response)),
        };
        let is_html = |r: &Response<Body>| {
            let kind = r.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            kind.is_some_and(|kind| kind.starts_with("text/html"))
        };
        if is_html(&response) && !url.ends_with(".html") {
            let what = format!(
                "{url}: an HTML page came instead of the file\nhint: a proxy, a login page or a wrong HF_ENDPOINT answers in the Hub's place"
            );
            return Err(Failure::Final(bad(what)));
        }
        let total = match content_range(&response) {
            Some((_, total)) if status == 206 => total,
            _ => number(&response, "content-length"),
        };
        if let (Some(promised), Some(total)) = (size, total.or(linked))
            && promised != total
        {
            let what = format!("{url}: wrong size: {total} bytes are offered, {promised} are promised");
            return Err(Failure::Final(bad(what)));
        }
        self.receive(response, part, start, size.or(total).or(linked), seen, url)
    }

    /// Writes the body from `start` on. The file must become `total` bytes long, where that is known.
    fn receive(
        &self,
        response: Response<Body>,
        part: &Path,
        start: u64,
        total: Option<u64>,
        seen: &dyn Fn(u64),
        url: &str,
    ) -> Result<(), Failure> {
        let disk = |e: io::Error| Failure::Final(anyhow!("{}: {}", part.display(), disk_error(&e, total)));
        let mut file = open_at(part, start).map_err(disk)?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut at = start;
        loop {
            if crate::job::stop_requested() {
                return Err(Failure::Final(crate::job::Checkpointed.into()));
            }
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    return Err(Failure::Again(format!("{url}: broken off after {at} bytes: {e}"), None));
                }
            };
            at += n as u64;
            if let Some(total) = total.filter(|&total| at > total) {
                return Err(Failure::Final(bad(format!(
                    "{url}: wrong size: more than the {total} bytes promised"
                ))));
            }
            file.write_all(&buffer[..n]).map_err(disk)?;
            seen(at);
        }
        match total {
            Some(total) if at < total => {
                Err(Failure::Again(format!("{url}: broken off after {at} of {total} bytes"), None))
            }
            _ => Ok(()),
        }
    }

    fn restart(&self, part: &Path, what: String) -> Failure {
        match std::fs::remove_file(part) {
            Ok(()) => Failure::Again(what, None),
            Err(e) => Failure::Final(anyhow!("{}: {e}", part.display())),
        }
    }

    /// What a status that is no success means, and what can be done about it.
    fn refused(&self, target: &Target<'_>, response: Response<Body>) -> Failure {
        let url = &target.url;
        let status = response.status().as_u16();
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let code = header("x-error-code").to_string();
        let wait = header("retry-after").parse().ok().map(Duration::from_secs);
        let is_final =
            |what: String, hint: String| Failure::Final(bad(format!("{url}: {what}\nhint: {hint}")));
        match status {
            429 => return Failure::Again(format!("{url}: 429: too many requests"), wait),
            408 | 500..=599 => return Failure::Again(format!("{url}: {status}: the server failed"), wait),
            401 | 403 | 404 => {}
            _ => return Failure::Final(anyhow!("{url}: unexpected status {status}")),
        }
        let Some((place, file)) = target.on_hub else {
            let what = format!("{status}: the server does not give this file");
            return is_final(what, "it may have moved; --mirror DIR uses a copy".to_string());
        };
        let repo = &place.repo;
        match (status, code.as_str()) {
            (401, _) if self.token.is_none() => is_final(
                format!("401: {repo} is private, gated or does not exist"),
                "set HF_TOKEN to a token that may read it, or use --mirror DIR".to_string(),
            ),
            (401, _) => is_final(
                "401: the token in HF_TOKEN is not accepted".to_string(),
                "make a new token, or unset HF_TOKEN for a public repository".to_string(),
            ),
            (403, _) => is_final(
                format!("403: access to {repo} is not granted (a gated repository?)"),
                format!("accept its terms at {}/{repo} and set HF_TOKEN", self.endpoint),
            ),
            (404, "RevisionNotFound") => is_final(
                format!("404: {repo} has no revision {}", place.revision),
                "the history was rewritten; another revision must be pinned".to_string(),
            ),
            (404, "EntryNotFound") => is_final(
                format!("404: no file {file} at revision {}", place.revision),
                "compare the name with the repository's list of files".to_string(),
            ),
            _ => is_final(
                format!("404: no repository {repo}, or no file {file} in it"),
                "it may have moved; --mirror DIR uses a copy".to_string(),
            ),
        }
    }
}

impl Resolve {
    /// Tries until the file is there, nothing came for some tries, or another try cannot help.
    fn persist(&self, target: &Target<'_>, size: Option<u64>, part: &Path, seen: &dyn Fn(u64)) -> Result<()> {
        if let Some(folder) = part.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let length = || std::fs::metadata(part).map_or(0, |m| m.len());
        let (mut idle, mut best) = (0, length());
        for attempt in 1..=ALL_TRIES {
            let (what, wait) = match self.once(target, size, part, seen) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(what, wait)) => (what, wait),
            };
            idle = if length() > best { 0 } else { idle + 1 };
            best = best.max(length());
            if idle >= TRIES || attempt == ALL_TRIES {
                return Err(anyhow!(
                    "{what} (tried {attempt} times)\nhint: try again later, what came is kept; or use --mirror DIR"
                ));
            }
            let pause = wait.unwrap_or(self.pause * 2u32.pow(idle)).min(LONGEST_PAUSE);
            eprintln!("fetch: {what}; again in {} s", pause.as_secs_f32());
            sleep(pause);
        }
        Err(anyhow!("{}: not brought", target.url))
    }
}

impl Hub for Resolve {
    fn bring(
        &self,
        place: &Place,
        file: &str,
        size: Option<u64>,
        part: &Path,
        seen: &dyn Fn(u64),
    ) -> Result<()> {
        let target = Target { url: self.url(place, file), on_hub: Some((place, file)) };
        self.persist(&target, size, part, seen)
    }

    fn reach(&self, place: Option<&Place>, file: &str) -> Result<()> {
        let url = place.map_or_else(|| file.to_string(), |place| self.url(place, file));
        let target = Target { url, on_hub: place.map(|place| (place, file)) };
        let (response, _) = match self.get(&target.url, 0) {
            Ok(found) => found,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Again(what, _)) => return Err(anyhow!("{what}")),
        };
        if response.status().is_success() {
            return Ok(());
        }
        match self.refused(&target, response) {
            Failure::Final(error) => Err(error),
            Failure::Again(what, _) => Err(anyhow!("{what}")),
        }
    }

    fn bring_url(&self, url: &str, size: Option<u64>, part: &Path, seen: &dyn Fn(u64)) -> Result<()> {
        self.persist(&Target { url: url.to_string(), on_hub: None }, size, part, seen)
    }
}

/// What a disk says to a file of `total` bytes.
fn disk_error(error: &io::Error, total: Option<u64>) -> String {
    if error.kind() != io::ErrorKind::StorageFull {
        return error.to_string();
    }
    let size = total.map(|total| format!(" for a file of {total} bytes")).unwrap_or_default();
    format!("no space{size}\nhint: make room and run it again: what came is kept")
}

fn transport(error: &ureq::Error, url: &str) -> Failure {
    match error {
        ureq::Error::BadUri(what) => Failure::Final(bad(format!("{url}: {what}"))),
        ureq::Error::HostNotFound => {
            Failure::Again(format!("{url}: no network: the host is not found"), None)
        }
        ureq::Error::ConnectionFailed => Failure::Again(format!("{url}: no network: no connection"), None),
        other => Failure::Again(format!("{url}: {other}"), None),
    }
}

/// Opens a part to be written from `start` on, which is at most its length.
fn open_at(part: &Path, start: u64) -> io::Result<File> {
    use std::io::{Seek, SeekFrom};
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(part)?;
    file.set_len(start)?;
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

fn number(response: &Response<Body>, name: &str) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.trim().parse().ok()
}

/// `bytes 5-9/10` is (5, 10), `bytes */10` is (none, 10).
fn content_range(response: &Response<Body>) -> Option<(Option<u64>, Option<u64>)> {
    let text = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, total.trim().parse().ok()))
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let after = url.find("://").map_or(0, |i| i + 3);
    let end = url[after..].find(['/', '?', '#']).map_or(url.len(), |i| after + i);
    &url[..end]
}

/// Whether an endpoint is this machine, which no proxy can reach for us.
fn is_loopback(endpoint: &str) -> bool {
    ["127.0.0.1", "localhost", "[::1]"].contains(&host(endpoint))
}

fn host(url: &str) -> &str {
    let origin = origin(url);
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

/// The target of a redirect, absolute or relative.
fn join(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_string();
    }
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    let folder = path.rfind('/').filter(|&i| i >= origin(base).len()).map_or(path, |i| &path[..i]);
    format!("{folder}/{location}")
}

/// Percent-encodes what may not stand in a path.
fn escape(path: &str) -> String {
    path.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte as char)
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_cure() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let cure = "\nhint: make room and run it again: what came is kept";
        assert_eq!(disk_error(&full, Some(5)), format!("no space for a file of 5 bytes{cure}"));
        assert_eq!(disk_error(&full, None), format!("no space{cure}"));
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(disk_error(&other, Some(5)), "permission denied");
    }

    #[test]
    fn urls() {
        assert_eq!(origin("https://a.b:8/c?d"), "https://a.b:8");
        assert_eq!(origin("https://a.b?d"), "https://a.b");
        assert_eq!(host("http://127.0.0.1:90/x"), "127.0.0.1");
        assert_eq!(host("http://[::1]:90/x"), "[::1]");
        assert_eq!(join("https://a/b/c", "https://x/y"), "https://x/y");
        assert_eq!(join("https://a/b/c", "//x/y"), "https://x/y");
        assert_eq!(join("https://a/b/c", "/y"), "https://a/y");
        assert_eq!(join("https://a/b/c?q=/", "y"), "https://a/b/y");
        assert_eq!(escape("a b/é#1"), "a%20b/%C3%A9%231");
        // A host that begins as the endpoint's does is another one.
        assert_ne!(origin("https://huggingface.co.evil/x"), origin("https://huggingface.co"));
    }
}
