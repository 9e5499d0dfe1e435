//! GPUs: which there are, and shares of them held for as long as any process of a stage lives. Knows no stage.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The variable that CUDA reads and that a stage with a GPU gets.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// The folder of the locks, for tests that must not meet the runs of whoever starts them.
const LOCKS: &str = "ITPIPE_GPU_LOCKS";
/// Shares of a device that can be held apart.
const SHARES: u32 = 8;

/// The names of the GPUs that stages may use: those of our own `CUDA_VISIBLE_DEVICES`, else those of the driver, else
/// one called 0, whether or not it is there: a stage that needs it says so better than we can.
pub fn names() -> Vec<String> {
    if let Ok(list) = std::env::var(VISIBLE) {
        // As CUDA reads it: up to the first that is no name, so that an empty list hides all.
        return list.split(',').map(|name| name.trim().to_string()).take_while(|n| !n.is_empty()).collect();
    }
    let count = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count());
    (0..count.max(1)).map(|i| i.to_string()).collect()
}

/// What a stage holds of the GPUs. The locks are inherited by its processes, so that an orphan keeps its share, and are
/// gone with the last of them.
#[derive(Debug, Default)]
pub struct Devices {
    held: Vec<(String, File)>,
}

impl Devices {
    /// Takes a share of each of these devices, in thousandths. None: another run of itpipe holds too much of one.
    ///
    /// # Errors
    /// A lock file that cannot be opened.
    pub fn take(names: &[&str], amount: u32) -> io::Result<Option<Devices>> {
        Devices::take_in(&folder()?, names, amount)
    }

    fn take_in(folder: &Path, names: &[&str], amount: u32) -> io::Result<Option<Devices>> {
        let shares = (amount.min(1000) * SHARES).div_ceil(1000);
        let mut held = Vec::new();
        for name in names {
            let file: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
            let path = folder.join(format!("gpu-{file}"));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let mut taken = 0;
            for share in 0..SHARES {
                if taken < shares && lock(&file, share)? {
                    taken += 1;
                }
            }
            if taken < shares {
                return Ok(None);
            }
            held.push((name.to_string(), file));
        }
        Ok(Some(Devices { held }))
    }

    /// What a job with these devices finds in its environment.
    pub fn env(&self) -> Option<(String, String)> {
        let names: Vec<&str> = self.held.iter().map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| (VISIBLE.to_string(), names.join(",")))
    }

    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.held.iter().map(|(_, file)| file.as_raw_fd())
    }
}

/// One folder for all runs of a user on this machine, whatever their stores and their `TMPDIR`: the devices are the
/// machine's.
fn folder() -> io::Result<PathBuf> {
    // SAFETY: a plain system call.
    let me = unsafe { libc::geteuid() };
    let folder = std::env::var_os(LOCKS).map_or_else(|| format!("/tmp/itpipe-{me}").into(), PathBuf::from);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In /tmp anyone can make what has this name.
    let meta = fs::symlink_metadata(&folder)?;
    if !meta.is_dir() || meta.uid() != me || meta.mode() & 0o022 != 0 {
        let what = "is no folder that belongs to you and that you alone write to\n  hint: remove it";
        return Err(io::Error::other(format!("{}: {what}", folder.display())));
    }
    Ok(folder)
}

/// Locks one byte of the file for whoever has this very opening of it, children included. False: another has it.
fn lock(file: &File, byte: u32) -> io::Result<bool> {
    // SAFETY: a zeroed `flock` is a valid one, and it outlives the call.
    let done = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = byte.into();
        lock.l_len = 1;
        libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock)
    };
    match (done, io::Error::last_os_error()) {
        (0, _) => Ok(true),
        (_, error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        (_, error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_never_held_beyond_its_whole_and_is_free_again_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let take = |names: &[&str], amount| Devices::take_in(folder.path(), names, amount).unwrap();
        let half = take(&["0"], 500).unwrap();
        assert_eq!(half.env(), Some((VISIBLE.into(), "0".into())));
        assert!(take(&["0"], 600).is_none());
        let other = take(&["0"], 500).unwrap();
        assert!(take(&["0"], 1).is_none());
        assert!(take(&["0", "1"], 1000).is_none());
        assert_eq!(take(&["1", "GPU-8a"], 1000).unwrap().env().unwrap().1, "1,GPU-8a");
        drop(other);
        assert!(take(&["0"], 1000).is_none());
        drop(half);
        assert!(take(&["0"], 1000).is_some());
        assert_eq!(Devices::default().env(), None);
    }
}
