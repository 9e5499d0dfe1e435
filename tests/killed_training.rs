//! `kill -9` in the middle of a training of this repository, then the same command: it goes on from the checkpoint, and
//! the weights are those of a training that nobody disturbed. It needs the program `stages`; where that is not built (the
//! engine's tests alone) there is nothing to kill.

mod support;

use std::fs;

use support::{Repo, wait_until};

const TRAINING: &str = "train[fashion-mnist,10,it-classifier,0.5,0]";
/// A checkpoint at every second step, so that the kill comes between two.
const SHORT: [&str; 6] = ["--profile", "smoke", "-S", "checkpoint-every=2", "-S", "epochs=4"];

/// What it trained, file by file: where each lies in the store is the digest of its bytes.
fn trained(repo: &Repo) -> Vec<String> {
    let listing = repo.itpipe(&[&["cache", "path", TRAINING], &SHORT[..]].concat()).good().stdout;
    let lines = listing.lines().map(|line| line.split_once("/blobs/").unwrap().1.to_string());
    lines.collect()
}

#[test]
fn a_killed_training_goes_on_and_ends_with_the_same_bits() {
    let (Some(repo), Some(undisturbed)) = (Repo::of_this_repository(), Repo::of_this_repository()) else {
        eprintln!("skipped: `stages` is not built");
        return;
    };
    let run = [&["run", TRAINING], &SHORT[..]].concat();
    undisturbed.itpipe(&run).good();
    // When the checkpoint was written last.
    let checkpoint = || {
        let folders = fs::read_dir(repo.path("cache/work")).ok()?.flatten();
        let written = |folder: fs::DirEntry| {
            folder.path().join("scratch/checkpoint.safetensors").metadata().ok()?.modified().ok()
        };
        folders.filter_map(written).next()
    };
    let mut last = None;
    for round in 0..2 {
        let running = repo.spawn(&run);
        wait_until("another checkpoint", || checkpoint() != last);
        running.signal(libc::SIGKILL);
        let out = running.wait();
        assert_eq!((out.code, repo.exists("pipeline.lock")), (128 + 9, false), "{}", out.stderr);
        assert_eq!(out.stderr.contains("resumes"), round > 0, "{}", out.stderr);
        last = checkpoint();
    }
    let out = repo.itpipe(&run).good();
    assert!(out.stderr.contains("resumes"), "{}", out.stderr);
    assert_eq!(trained(&repo), trained(&undisturbed));
    assert!(trained(&repo).iter().any(|line| line.ends_with("\tweights.safetensors")));
}
