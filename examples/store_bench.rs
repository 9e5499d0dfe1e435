//! The store's own work, one job a run, for `benches/hashing.sh` to time beside its limits.

use std::path::{Path, PathBuf};

use itpipe::cas::{Link, Store};
use itpipe::digest::{self, Digest};
use itpipe::stat_cache::StatCache;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const USAGE: &str = "store_bench digest FILE | cached CACHE PATH | put CACHE DIR | import CACHE PATH
            | restore CACHE TREE DEST copy|hardlink|auto | complete CACHE TREE";

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["digest", file] => println!("{}", digest::file(Path::new(file))?),
        ["cached", cache, path] => cached(Path::new(cache), Path::new(path))?,
        ["put", cache, dir] => println!("{}", Store::open(Path::new(cache))?.put_tree(Path::new(dir))?.0),
        ["import", cache, path] => {
            println!("{}", Store::open(Path::new(cache))?.import(Path::new(path))?.digest())
        }
        ["complete", cache, tree] => {
            println!("{:?}", Store::open(Path::new(cache))?.completeness(&tree.parse()?)?)
        }
        ["restore", cache, tree, dest, how] => {
            let how = match how {
                "copy" => Link::Copy,
                "hardlink" => Link::Hardlink,
                _ => Link::Auto,
            };
            restore(Path::new(cache), &tree.parse()?, &PathBuf::from(dest), how)?;
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

/// What a run does with an input: the digest of a file or folder, remembered.
fn cached(cache: &Path, path: &Path) -> Outcome {
    let stat = StatCache::open(cache)?;
    println!("{}", stat.look(path)?.digest());
    stat.save()?;
    Ok(())
}

fn restore(cache: &Path, tree: &Digest, dest: &Path, how: Link) -> Outcome {
    Ok(Store::open(cache)?.materialize(tree, None, dest, how)?)
}
