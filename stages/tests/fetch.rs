//! fetch against a Hub on the loopback that fails in every way we know, against mirrors, and against bundled files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stages::fetch::{Params, fetch};
use stages::hub::{Hub, Resolve};
use stages::job::{Fixed, exit_code};
use tempfile::{TempDir, tempdir};

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const FILE: &str = "data/a b.bin";
const PATH: &str = "/datasets/o/n/resolve/0123456789abcdef0123456789abcdef01234567/data/a%20b.bin";

/// A request as a server saw it.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    /// The first byte that it asks for.
    fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|r| r.strip_prefix("bytes="));
        range.and_then(|r| r.strip_suffix('-')).map_or(0, |from| from.parse().unwrap())
    }
}

/// What a server does with the n-th request.
type Answer = dyn Fn(usize, &Request, &mut TcpStream) + Send + Sync;

/// A server of one answer a connection; it lives as long as the test program.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Arc<Answer>) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*answer));
            }
        });
        Server { url, seen }
    }

    fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    fn hub(&self) -> Resolve {
        self.hub_with(None)
    }

    fn hub_with(&self, token: Option<&str>) -> Resolve {
        Resolve::new(&self.url, token.map(String::from), Duration::from_millis(400), Duration::from_millis(1))
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let mut words = first.split(' ').map(String::from);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers = lines.map(Result::unwrap).take_while(|line| !line.is_empty());
    let headers = headers.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_lowercase(), value.trim().to_string())
    });
    let request = Request { method, path, headers: headers.collect() };
    let n = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    answer(n, &request, &mut stream);
}

/// Writes an answer that may be torn: the client may have gone.
fn say(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.write_all(b"\r\n");
    let _ = stream.write_all(body);
    let _ = stream.flush();
}

/// The file as a Hub serves it, at most `most` bytes of it.
fn file(stream: &mut TcpStream, request: &Request, content: &[u8], most: usize) {
    let (from, total) = (request.from(), content.len());
    let rest = &content[from..];
    let length = rest.len().to_string();
    let range = format!("bytes {from}-{}/{total}", total - 1);
    let sent = &rest[..rest.len().min(most)];
    match from {
        0 => say(stream, "200 OK", &[("Content-Length", &length)], sent),
        _ => say(stream, "206 Partial", &[("Content-Length", &length), ("Content-Range", &range)], sent),
    }
}

fn content() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(i) / 7) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn params(variant: &str) -> Params {
    let value = json!({"repo": "o/n", "repo_type": "dataset", "revision": REVISION, "variant": variant,
                       "licence": "MIT", "note": "", "path": "bundle"});
    serde_json::from_value(value).unwrap()
}

/// The clients of the Hub that this program has, with this token.
fn clients(url: &str, token: Option<&str>) -> Vec<(&'static str, Box<dyn Hub>)> {
    let timeout = Duration::from_millis(400);
    let thin = || Resolve::new(url, token.map(String::from), timeout, Duration::from_millis(1));
    vec![
        ("thin", Box::new(thin())),
        #[cfg(feature = "hf-hub")]
        ("hf-hub", Box::new(stages::hub::official::Official::new(thin(), timeout).unwrap())),
    ]
}

/// One promised file: its content's size and digest.
fn fixed(content: &[u8]) -> Fixed {
    let file = json!({"sha256": sha256(content), "size": content.len()});
    serde_json::from_value(json!({"files": {FILE: file}, "root": "/", "mirror": null, "offline": false}))
        .unwrap()
}

fn unpinned() -> Fixed {
    serde_json::from_value(json!({"files": {FILE: {}}, "root": "/", "mirror": null, "offline": false}))
        .unwrap()
}

/// A stage's two folders.
struct Folders(TempDir);

impl Folders {
    fn new() -> Folders {
        Folders(tempdir().unwrap())
    }
    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }
    fn part(&self) -> PathBuf {
        self.0.path().join("scratch/parts").join(FILE)
    }
    fn fetch(&self, variant: &str, fixed: &Fixed, hub: &dyn Hub) -> anyhow::Result<()> {
        fetch(&params(variant), fixed, false, hub, &self.0.path().join("scratch"), &self.out())
    }
    fn fails(&self, variant: &str, fixed: &Fixed, hub: &dyn Hub, code: u8) -> String {
        let error = self.fetch(variant, fixed, hub).expect_err("an error");
        assert!(!self.out().join(FILE).exists(), "something was kept");
        assert_eq!(exit_code(&error), code, "{error:#}");
        format!("{error:#}").replace(&format!("{}/", self.0.path().display()), "")
    }
    fn holds(&self, content: &[u8]) {
        assert!(fs::read(self.out().join(FILE)).unwrap() == content);
        assert!(!self.part().exists());
    }
}

#[test]
fn a_file_comes() {
    let server = Server::start(|_, request, stream| file(stream, request, &content(), usize::MAX));
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path, PATH);
    assert!(!requests[0].headers.contains_key("authorization"));
    // Compressed, a file would come without its length.
    assert_eq!(requests[0].headers["accept-encoding"], "identity");
}

#[test]
fn a_cut_at_every_tenth_is_resumed() {
    let server = Server::start(|_, request, stream| file(stream, request, &content(), 10_000));
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
    let starts: Vec<usize> = server.requests().iter().map(Request::from).collect();
    assert_eq!(starts, (0..10).map(|i| i * 10_000).collect::<Vec<_>>());
}

#[test]
fn a_part_of_an_earlier_run_is_resumed() {
    let server = Server::start(|_, request, stream| file(stream, request, &content(), usize::MAX));
    let folders = Folders::new();
    fs::create_dir_all(folders.part().parent().unwrap()).unwrap();
    fs::write(folders.part(), &content()[..60_000]).unwrap();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
    assert_eq!(server.requests().iter().map(Request::from).collect::<Vec<_>>(), [60_000]);
}

#[test]
fn a_wrong_part_is_fetched_anew() {
    for length in [60_000, 100_000, 120_000] {
        let server = Server::start(|_, request, stream| file(stream, request, &content(), usize::MAX));
        let folders = Folders::new();
        fs::create_dir_all(folders.part().parent().unwrap()).unwrap();
        fs::write(folders.part(), vec![1; length]).unwrap();
        folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
        folders.holds(&content());
    }
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let server = Server::start(|n, _, stream| {
        let whole = content();
        let most = if n == 0 { 30_000 } else { whole.len() };
        say(stream, "200 OK", &[("Content-Length", "100000")], &whole[..most]);
    });
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
}

#[test]
fn the_token_stays_at_home() {
    let other = Server::start(|_, request, stream| file(stream, request, &content(), 40_000));
    let target = format!("{}/blob", other.url);
    let home = Server::start(move |n, _, stream| match n {
        0 => say(stream, "307 Temporary", &[("Location", "/moved/x")], b""),
        _ => say(stream, "302 Found", &[("Location", &target), ("X-Linked-Size", "100000")], b""),
    });
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &home.hub_with(Some("secret"))).unwrap();
    folders.holds(&content());
    assert_eq!(home.requests()[1].path, "/moved/x");
    for request in home.requests() {
        assert_eq!(request.headers["authorization"], "Bearer secret");
    }
    assert_eq!(other.requests().len(), 3);
    for request in other.requests() {
        assert!(!request.headers.contains_key("authorization"));
    }
}

#[test]
fn redirects_that_never_end() {
    let server = Server::start(|_, _, stream| say(stream, "302 Found", &[("Location", "/again")], b""));
    let message = Folders::new().fails("hub", &fixed(&content()), &server.hub(), 1);
    assert!(message.ends_with("/again: more than 10 redirects"), "{message}");
}

#[test]
fn a_wrong_size_is_told_before_the_body() {
    let server = Server::start(|_, request, stream| file(stream, request, &content()[..99_999], usize::MAX));
    let message = Folders::new().fails("hub", &fixed(&content()), &server.hub(), 2);
    assert!(message.starts_with("o/n: data/a b.bin: http://127.0.0.1:"), "{message}");
    assert!(message.ends_with(": wrong size: 99999 bytes are offered, 100000 are promised"), "{message}");
}

#[test]
fn a_body_without_a_length_is_measured() {
    for (sent, words) in
        [(90_000, "broken off after 90000 of 100000 bytes"), (110_000, "more than the 100000 bytes")]
    {
        let server = Server::start(move |_, request, stream| {
            let content: Vec<u8> = content().into_iter().cycle().take(sent).collect();
            match request.from() {
                0 => say(stream, "200 OK", &[], &content),
                _ => say(stream, "500 Broken", &[], b""),
            }
        });
        let folders = Folders::new();
        let error = folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(words) || text.contains("500: the server failed (tried"), "{text}");
        assert!(!folders.out().exists());
    }
}

#[test]
fn a_wrong_digest_shows_both() {
    let mut wrong = content();
    wrong[5] ^= 1;
    let digest = sha256(&wrong);
    let server = Server::start(move |_, request, stream| file(stream, request, &wrong, usize::MAX));
    let folders = Folders::new();
    let message = folders.fails("hub", &fixed(&content()), &server.hub(), 2);
    let expected = format!(
        "o/n: data/a b.bin: what came from the Hub: wrong digest\n  promised sha256 {}\n  found    sha256 {digest}\n\
         hint: these are other bytes than the pipeline pins for this variant; is it the right variant?",
        sha256(&content())
    );
    assert_eq!(message, expected);
    assert!(!folders.part().exists());
}

#[test]
fn pages_and_pointers_are_recognised() {
    let page = b"<!DOCTYPE html><html>Sign in</html>";
    let server = Server::start(|_, _, stream| {
        say(stream, "200 OK", &[("Content-Type", "text/html; charset=utf-8")], page)
    });
    let message = Folders::new().fails("hub", &fixed(&content()), &server.hub(), 2);
    assert!(message.contains(": an HTML page came instead of the file\nhint: "), "{message}");

    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    for (body, words) in [
        (&page[..], "what came from the Hub: an HTML page, not the file\nhint: "),
        (&pointer[..], "what came from the Hub: a Git LFS pointer, not the file\nhint: "),
        (&b""[..], "what came from the Hub: an empty file"),
    ] {
        let server = Server::start(move |_, _, stream| {
            say(stream, "200 OK", &[("Content-Length", &body.len().to_string())], body);
        });
        let folders = Folders::new();
        let message = folders.fails("hub", &unpinned(), &server.hub(), 2);
        assert!(message.contains(words), "{message}");
        assert!(!folders.part().exists());
        // The right size does not help it.
        let promise = json!({"files": {FILE: {"size": body.len(), "sha256": sha256(b"else")}}, "root": "/",
                             "mirror": null, "offline": false});
        let message = folders.fails("hub", &serde_json::from_value(promise).unwrap(), &server.hub(), 2);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn an_unpinned_file_comes() {
    let server = Server::start(|_, request, stream| file(stream, request, &content(), 70_000));
    let folders = Folders::new();
    folders.fetch("hub", &unpinned(), &server.hub()).unwrap();
    folders.holds(&content());
}

#[test]
fn statuses_that_end_it() {
    for (status, code, token, words) in [
        ("401 No", "", None, "401: o/n is private, gated or does not exist\nhint: set HF_TOKEN"),
        ("401 No", "", Some("t"), "401: the token in HF_TOKEN is not accepted\nhint: make a new token"),
        (
            "403 No",
            "GatedRepo",
            Some("t"),
            "403: access to o/n is not granted (a gated repository?)\nhint: accept",
        ),
        ("404 No", "RepoNotFound", None, "404: no repository o/n, or no file data/a b.bin in it\nhint: "),
        ("404 No", "RevisionNotFound", None, "404: o/n has no revision 0123456789abcdef"),
        ("404 No", "EntryNotFound", None, "404: no file data/a b.bin at revision 0123456789abcdef"),
    ] {
        let server = Server::start(move |_, _, stream| say(stream, status, &[("X-Error-Code", code)], b"{}"));
        let message = Folders::new().fails("hub", &fixed(&content()), &server.hub_with(token), 2);
        assert!(message.contains(words), "{message}");
        assert_eq!(server.requests().len(), 1, "{status} is final");
    }
}

#[test]
fn statuses_that_pass() {
    let server = Server::start(|n, request, stream| match n {
        0 => say(stream, "429 Slow", &[("Retry-After", "0")], b""),
        1 => say(stream, "503 Later", &[], b""),
        2 => say(stream, "408 Late", &[], b""),
        _ => file(stream, request, &content(), usize::MAX),
    });
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_server_that_fails_always() {
    let server = Server::start(|_, _, stream| say(stream, "500 Broken", &[], b""));
    let message = Folders::new().fails("hub", &fixed(&content()), &server.hub(), 1);
    assert!(message.contains(": 500: the server failed (tried 5 times)\nhint: try again later"), "{message}");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn a_stalled_server_is_left_and_resumed() {
    let server = Server::start(|n, request, stream| {
        if n == 0 {
            file(stream, request, &content(), 20_000);
            std::thread::sleep(Duration::from_secs(5));
        } else {
            file(stream, request, &content(), usize::MAX);
        }
    });
    let folders = Folders::new();
    folders.fetch("hub", &fixed(&content()), &server.hub()).unwrap();
    folders.holds(&content());
    assert_eq!(server.requests().iter().map(Request::from).collect::<Vec<_>>(), [0, 20_000]);

    let server = Server::start(|_, _, _| std::thread::sleep(Duration::from_secs(30)));
    let message = Folders::new().fails("hub", &fixed(&content()), &server.hub(), 1);
    assert!(message.contains("timeout") && message.contains("(tried 5 times)"), "{message}");
}

#[test]
fn no_server() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let hub = Resolve::new(&url, None, Duration::from_millis(400), Duration::from_millis(1));
    let message = Folders::new().fails("hub", &fixed(&content()), &hub, 1);
    assert!(message.starts_with(&format!("o/n: data/a b.bin: {url}/datasets/o/n/resolve/")), "{message}");
    assert!(message.contains("(tried 5 times)\nhint: try again later"), "{message}");
}

#[test]
fn a_mirror() {
    let folders = Folders::new();
    let server = Server::start(|_, request, stream| file(stream, request, &content(), usize::MAX));
    let root = folders.0.path().join("mirror");
    let mut fixed = fixed(&content());

    let message = folders.fails("mirror", &fixed, &server.hub(), 2);
    let none = "o/n: data/a b.bin: this variant lies only in a mirror, and none was named\nhint: name its folder with --mirror DIR";
    assert_eq!(message, none);

    fixed.mirror = Some(root.clone());
    let message = folders.fails("mirror", &fixed, &server.hub(), 2);
    let missing = "o/n: data/a b.bin: not in the mirror: looked for mirror/datasets/o/n/data/a b.bin\n\
                   hint: --mirror DIR names a folder laid out as DIR/datasets/o/n/data/a b.bin";
    assert_eq!(message, missing);

    let path = root.join("datasets/o/n").join(FILE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &content()[1..]).unwrap();
    let message = folders.fails("mirror", &fixed, &server.hub(), 2);
    let short = "o/n: data/a b.bin: mirror/datasets/o/n/data/a b.bin: wrong size: 99999 bytes, 100000 are promised (truncated?)";
    assert_eq!(message, short);

    fs::write(&path, vec![0; 100_000]).unwrap();
    for variant in ["mirror", "hub"] {
        let message = folders.fails(variant, &fixed, &server.hub(), 2);
        assert!(message.contains(": wrong digest\n  promised sha256 "), "{message}");
    }

    fs::write(&path, content()).unwrap();
    // A mirror is somebody's archive: read-only, and not ours to move.
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    for variant in ["mirror", "hub"] {
        folders.fetch(variant, &fixed, &server.hub()).unwrap();
        folders.holds(&content());
    }
    assert!(path.exists());
    assert_eq!(server.requests().len(), 0);

    // The Hub's variant asks the Hub for what the mirror lacks.
    fs::remove_file(&path).unwrap();
    folders.fetch("hub", &fixed, &server.hub()).unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn files_at_plain_urls() {
    let server = Server::start(|_, request, stream| match request.path.as_str() {
        "/b/x.csv" => file(stream, request, &content(), 60_000),
        _ => say(stream, "404 No", &[], b""),
    });
    // What `git hash-object` does.
    let git: String = {
        use sha1::Digest as _;
        let mut hasher = sha1::Sha1::new();
        hasher.update(b"blob 100000\0");
        hasher.update(content());
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let folders = Folders::new();
    let run = |urls: Value, git: &str| {
        let params = json!({"repo": "o/n", "repo_type": "dataset", "revision": REVISION, "variant": "hub",
                            "urls": {FILE: urls}, "git": {FILE: git}});
        let params: Params = serde_json::from_value(params).unwrap();
        let scratch = folders.0.path().join("scratch");
        fetch(&params, &unpinned(), false, &server.hub_with(Some("secret")), &scratch, &folders.out())
    };
    let good = format!("{}/b/x.csv", server.url);
    // A token is for the Hub's own files; the test's plain server stands elsewhere in real life.
    run(json!([format!("{}/a/x.csv", server.url), good]), &git).unwrap();
    folders.holds(&content());
    let paths: Vec<String> = server.requests().iter().map(|r| r.path.clone()).collect();
    assert_eq!(paths, ["/a/x.csv", "/b/x.csv", "/b/x.csv"]);

    fs::remove_dir_all(folders.out()).unwrap();
    let error = format!("{:#}", run(json!([good]), &"0".repeat(40)).unwrap_err());
    let expected = format!(
        "what came from its URL: wrong digest\n  promised git blob {}\n  found    git blob {git}",
        "0".repeat(40)
    );
    assert!(error.contains(&expected), "{error}");
    assert!(!folders.out().exists() && !folders.part().exists());

    let error = format!("{:#}", run(json!([format!("{}/a/x.csv", server.url)]), &git).unwrap_err());
    assert!(error.contains("/a/x.csv: 404: the server does not give this file\nhint: "), "{error}");
}

#[test]
fn files_come_side_by_side() {
    let server = Server::start(|_, request, stream| {
        std::thread::sleep(Duration::from_millis(200));
        file(stream, request, &content(), usize::MAX);
    });
    let folders = Folders::new();
    let promise = json!({"sha256": sha256(&content()), "size": 100_000});
    let files: serde_json::Map<String, Value> = (0..8).map(|i| (format!("f{i}"), promise.clone())).collect();
    let mut fixed = json!({"files": files, "root": "/", "mirror": null, "offline": false});
    let start = std::time::Instant::now();
    folders.fetch("hub", &serde_json::from_value(fixed.clone()).unwrap(), &server.hub()).unwrap();
    assert!(start.elapsed() < Duration::from_millis(1200), "{:?}", start.elapsed());
    assert!((0..8).all(|i| fs::read(folders.out().join(format!("f{i}"))).unwrap() == content()));
    // Of several errors the first file's is told; the files behind it are not asked for.
    for i in [0, 1] {
        fixed["files"][format!("f{i}")] = json!({"sha256": sha256(&content()), "size": 99});
    }
    let error = folders.fetch("hub", &serde_json::from_value(fixed).unwrap(), &server.hub()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("wrong size: 100000 bytes are offered, 99 are promised"), "{text}");
}

#[test]
fn bundled_files() {
    let folders = Folders::new();
    let server = Server::start(|_, _, _| {});
    let mut fixed = fixed(&content());
    fixed.root = folders.0.path().join("repository");
    let message = folders.fails("bundled", &fixed, &server.hub(), 2);
    assert!(
        message.starts_with(
            "o/n: data/a b.bin: not in the repository: looked for repository/bundle/datasets/o/n/"
        ),
        "{message}"
    );
    let path = fixed.root.join("bundle/datasets/o/n").join(FILE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content()).unwrap();
    folders.fetch("bundled", &fixed, &server.hub()).unwrap();
    folders.holds(&content());
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn offline_says_what_to_do() {
    let server = Server::start(|_, _, _| {});
    let folders = Folders::new();
    let mut fixed = fixed(&content());
    fixed.offline = true;
    let message = folders.fails("hub", &fixed, &server.hub(), 2);
    assert!(
        message.starts_with("o/n: data/a b.bin: offline: the network may not be used\nhint: "),
        "{message}"
    );
    fixed.mirror = Some(Path::new("mirror").to_path_buf());
    let message = folders.fails("hub", &fixed, &server.hub(), 2);
    assert!(
        message.contains("used, and mirror/datasets/o/n/data/a b.bin does not exist\nhint: "),
        "{message}"
    );
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn places_that_cannot_be() {
    let folders = Folders::new();
    let hub = Resolve::new("http://127.0.0.1:1", None, Duration::from_millis(1), Duration::from_millis(1));
    let fails = |change: &dyn Fn(&mut Value), files: Value| {
        let mut value =
            json!({"repo": "o/n", "repo_type": "dataset", "revision": REVISION, "variant": "hub"});
        change(&mut value);
        let params: Params = serde_json::from_value(value).unwrap();
        let fixed: Fixed =
            serde_json::from_value(json!({"files": files, "root": "/", "mirror": null, "offline": false}))
                .unwrap();
        let error =
            fetch(&params, &fixed, false, &hub, &folders.0.path().join("s"), &folders.out()).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        error.to_string()
    };
    let message = fails(&|p| p["revision"] = json!("main"), json!({FILE: {}}));
    let expected =
        "params.revision: `main` is no commit: 40 hexadecimal digits are expected (a branch would move)";
    assert_eq!(message, expected);
    for repo in ["o", "../o/n", "o n/x"] {
        let message = fails(&|p| p["repo"] = json!(repo), json!({FILE: {}}));
        assert_eq!(message, format!("params.repo: `{repo}`: owner/name is expected"));
    }
    for file in ["../x", "/x", "a/../../x", ""] {
        let message = fails(&|_| {}, json!({file: {}}));
        assert_eq!(message, format!("fixed.files: `{file}` is not a path inside the repository"));
    }
}

/// The program itself: the environment, the exit code, the message on stderr.
#[test]
fn the_program() {
    let server = Server::start(|_, request, stream| match request.path.ends_with("bin") {
        true => file(stream, request, &content(), usize::MAX),
        false => say(stream, "404 No", &[("X-Error-Code", "EntryNotFound")], b""),
    });
    let run = |name: &str, offline: &str, token: &str| {
        let folder = tempdir().unwrap();
        fs::create_dir(folder.path().join("hf")).unwrap();
        fs::write(folder.path().join("hf/token"), "from home\n").unwrap();
        let job = json!({
            "version": 1, "inputs": {}, "out": "out", "scratch": "scratch", "rehearse": false, "threads": 1,
            "params": {"repo": "o/n", "repo_type": "dataset", "revision": REVISION, "variant": "hub"},
            "fixed": {"files": {name: {"sha256": sha256(&content()), "size": 100_000}}, "root": "/", "mirror": null,
                      "offline": false},
        });
        fs::write(folder.path().join("job.json"), job.to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_stages"))
            .args(["fetch", "job.json"])
            .current_dir(folder.path())
            .env("HF_ENDPOINT", &server.url)
            .env("HF_TOKEN", token)
            .env("HF_HOME", folder.path().join("hf"))
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), folder)
    };
    let (code, stderr, folder) = run("x.bin", "0", "secret");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(fs::read(folder.path().join("out/x.bin")).unwrap() == content());
    // The Hub's own client asks more than once a file.
    let authorization = || server.requests().last().unwrap().headers["authorization"].clone();
    assert_eq!(authorization(), "Bearer secret");
    let (code, _, _folder) = run("x.bin", "0", "");
    assert_eq!((code, authorization().as_str()), (Some(0), "Bearer from home"));

    let (code, stderr, _folder) = run("x.txt", "0", "secret");
    assert_eq!(code, Some(2));
    let last = stderr.find("fetch: o/n: x.txt: http://127.0.0.1:");
    let before = last.map(|at| &stderr[..at]);
    assert!(
        before.is_some_and(|text| text.is_empty() || text.ends_with("; the thin client takes over\n")),
        "{stderr}"
    );
    assert!(!stderr.contains("secret") && !stderr.contains("backtrace"), "{stderr}");

    let (code, stderr, _folder) = run("x.bin", "1", "secret");
    assert_eq!(code, Some(2));
    assert!(stderr.starts_with("fetch: o/n: x.bin: offline: "), "{stderr}");
}

#[test]
fn an_unknown_word() {
    let output = Command::new(env!("CARGO_BIN_EXE_stages")).arg("prepair").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("prepair: unknown word, one of fetch, prepare, "), "{stderr}");
    assert!(stderr.ends_with("\nhint: did you mean `prepare`?\n"), "{stderr}");
}

/// What a fault must end with.
enum Ends {
    /// The file is there, whole.
    Right,
    /// Exit code and a part of the message; nothing is there.
    With(i32, &'static str),
}

/// One fault, through every client: a fresh server for each.
#[track_caller]
fn fault(
    name: &str,
    ends: Ends,
    answer: impl Fn(usize, &Request, &mut TcpStream) + Send + Sync + Clone + 'static,
) {
    for at in 0..clients("http://127.0.0.1:1", None).len() {
        let server = Server::start(answer.clone());
        let (client, hub) = clients(&server.url, Some("secret")).swap_remove(at);
        let folders = Folders::new();
        let result = folders.fetch("hub", &fixed(&content()), &*hub);
        match (&ends, result) {
            (Ends::Right, result) => {
                result.unwrap_or_else(|error| panic!("{name}, {client}: {error:#}"));
                folders.holds(&content());
            }
            (Ends::With(code, says), Err(error)) => {
                let text = format!("{error:#}");
                assert!(text.contains(says), "{name}, {client}: no `{says}` in: {text}");
                assert_eq!(i32::from(exit_code(&error)), *code, "{name}, {client}: {text}");
                assert!(!folders.out().join(FILE).exists(), "{name}, {client}: something was kept");
                assert!(!text.contains("secret"), "{name}, {client}: the token is told");
            }
            (Ends::With(..), Ok(())) => panic!("{name}, {client}: it went well"),
        }
        let staging = folders.part().with_extension("staging");
        assert!(!staging.exists(), "{name}, {client}: {} is left", staging.display());
    }
}

/// The file as the Hub serves it, for either method.
fn serve_file(stream: &mut TcpStream, request: &Request, content: &[u8], most: usize) {
    if request.method == "HEAD" {
        let length = content.len().to_string();
        return say(
            stream,
            "200 OK",
            &[("Content-Length", &length), ("ETag", "\"e\""), ("X-Repo-Commit", REVISION)],
            b"",
        );
    }
    file(stream, request, content, most);
}

/// The list of faults, each through both clients.
#[test]
fn every_client_ends_right_or_with_its_message() {
    use Ends::{Right, With};
    fault("success", Right, |_, request, stream| serve_file(stream, request, &content(), usize::MAX));
    for tenth in 1..10 {
        // The first answer to a GET is cut there; a client that asks again gets the rest.
        let cut = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        fault("cut", Right, move |n, request, stream| {
            if n == 0 {
                cut.store(false, std::sync::atomic::Ordering::SeqCst);
            }
            let first = request.method == "GET"
                && !cut.swap(request.method == "GET", std::sync::atomic::Ordering::SeqCst);
            serve_file(stream, request, &content(), if first { tenth * 10_000 } else { usize::MAX });
        });
    }
    fault(
        "wrong size",
        With(2, "wrong size: 99999 bytes are offered, 100000 are promised"),
        |_, request, stream| {
            serve_file(stream, request, &content()[..99_999], usize::MAX);
        },
    );
    fault("wrong hash", With(2, "wrong digest\n  promised sha256 "), |_, request, stream| {
        let mut wrong = content();
        wrong[5] ^= 1;
        serve_file(stream, request, &wrong, usize::MAX);
    });
    fault("a page", With(2, "an HTML page came instead of the file"), |_, _, stream| {
        let page = b"<!DOCTYPE html><html>Sign in</html>";
        say(stream, "200 OK", &[("Content-Type", "text/html"), ("Content-Length", "35")], page);
    });
    fault("a pointer", With(2, "wrong size: "), |_, request, stream| {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        serve_file(stream, request, pointer, usize::MAX);
    });
    // printf hello | gzip -n: a server that compresses whatever it is asked; what is in it counts.
    fault("gzip", With(1, "broken off after 5 of 100000 bytes"), |_, _, stream| {
        let body: &[u8] = &[
            0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 7, 0, 0x86, 0xa6, 0x10, 0x36,
            5, 0, 0, 0,
        ];
        say(stream, "200 OK", &[("Content-Encoding", "gzip"), ("Content-Length", "25")], body);
    });
    for (status, code, exit, says) in [
        ("401 No", "", 2, "401: the token in HF_TOKEN is not accepted\nhint: "),
        ("403 No", "GatedRepo", 2, "403: access to o/n is not granted (a gated repository?)\nhint: accept"),
        ("404 No", "EntryNotFound", 2, "404: no file data/a b.bin at revision 0123"),
        ("404 No", "RevisionNotFound", 2, "404: o/n has no revision 0123"),
        ("404 No", "RepoNotFound", 2, "404: no repository o/n"),
        ("500 Broken", "", 1, "500: the server failed (tried 5 times)\nhint: try again later"),
    ] {
        fault(status, With(exit, says), move |_, _, stream| {
            say(stream, status, &[("X-Error-Code", code)], b"{}")
        });
        // The first request is answered well, the ones behind it are not.
        fault("on the second request", With(exit, says), move |n, request, stream| {
            match (n, request.method.as_str()) {
                (0, "HEAD") => serve_file(stream, request, &content(), usize::MAX),
                _ => say(stream, status, &[("X-Error-Code", code)], b"{}"),
            }
        });
    }
    for passes in ["429 Slow", "500 Broken", "503 Later", "408 Late"] {
        for at in 0..2 {
            fault(passes, Right, move |n, request, stream| match n == at {
                true => say(stream, passes, &[("Retry-After", "0")], b"no"),
                false => serve_file(stream, request, &content(), usize::MAX),
            });
        }
    }
    fault("stalled", With(1, "(tried 5 times)"), |_, _, _| std::thread::sleep(Duration::from_secs(20)));
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    fault("stalls once", Right, move |n, request, stream| {
        if n == 0 {
            first.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        if request.method == "GET" && first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            serve_file(stream, request, &content(), 20_000);
            std::thread::sleep(Duration::from_secs(3));
        } else {
            serve_file(stream, request, &content(), usize::MAX);
        }
    });
}

/// A server that wants a second of rest gets it: it is asked again when that is over, and not in between.
#[test]
fn every_client_rests_as_long_as_it_is_told_to() {
    for at in 0..clients("http://127.0.0.1:1", None).len() {
        let begun: Arc<Mutex<Option<std::time::Instant>>> = Arc::default();
        let server = Server::start(move |_, request, stream| {
            let begun = *begun.lock().unwrap().get_or_insert_with(std::time::Instant::now);
            match begun.elapsed() < Duration::from_millis(900) {
                true => say(stream, "429 Slow", &[("Retry-After", "1")], b"later"),
                false => serve_file(stream, request, &content(), usize::MAX),
            }
        });
        let (client, hub) = clients(&server.url, None).swap_remove(at);
        let folders = Folders::new();
        folders.fetch("hub", &fixed(&content()), &*hub).unwrap_or_else(|error| panic!("{client}: {error:#}"));
        folders.holds(&content());
        // hf-hub asks once and does not hear the pause; the thin client behind it does.
        let most = if client == "thin" { 2 } else { 4 };
        assert!(server.requests().len() <= most, "{client}: {} requests", server.requests().len());
    }
}

/// The token goes to the endpoint and to no other host, whatever the client.
#[test]
fn no_client_gives_the_token_away() {
    for at in 0..clients("http://127.0.0.1:1", None).len() {
        let other = Server::start(|_, request, stream| serve_file(stream, request, &content(), 40_000));
        let target = format!("{}/blob", other.url.replace("127.0.0.1", "localhost"));
        let home = Server::start(move |_, _, stream| {
            say(stream, "302 Found", &[("Location", &target), ("X-Linked-Size", "100000")], b"");
        });
        let (client, hub) = clients(&home.url, Some("secret")).swap_remove(at);
        let folders = Folders::new();
        folders.fetch("hub", &fixed(&content()), &*hub).unwrap_or_else(|error| panic!("{client}: {error:#}"));
        folders.holds(&content());
        assert!(home.requests().iter().all(|r| r.headers["authorization"] == "Bearer secret"), "{client}");
        assert!(other.requests().iter().all(|r| !r.headers.contains_key("authorization")), "{client}");
        assert!(!other.requests().is_empty());
    }
}

#[test]
fn no_client_goes_on_without_a_server_or_offline() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (client, hub) in clients(&format!("http://127.0.0.1:{port}"), None) {
        let message = Folders::new().fails("hub", &fixed(&content()), &*hub, 1);
        assert!(message.contains("(tried 5 times)\nhint: try again later"), "{client}: {message}");
    }
    let server = Server::start(|_, _, _| {});
    for (client, hub) in clients(&server.url, None) {
        let mut fixed = fixed(&content());
        fixed.offline = true;
        let message = Folders::new().fails("hub", &fixed, &*hub, 2);
        assert!(message.contains("offline: the network may not be used"), "{client}: {message}");
    }
    assert!(server.requests().is_empty());
}
