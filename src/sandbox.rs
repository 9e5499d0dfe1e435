//! Landlock: a stage writes nowhere but where it is told. Knows folders only, no stage.
//!
//! Reading is left open (a command needs its libraries and tools); writing, creating, removing, renaming and truncating
//! are refused outside the given folders and a few devices. The rules hold for every descendant and cannot be undone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
};

/// Devices that programs write to without changing anything that lasts: the null devices, terminals, shared memory
/// (worker processes of data loaders), GPUs.
const DEVICES: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/shm",
    "/dev/dri",
    "/dev/kfd",
];

/// The Landlock version of this kernel; 0 where it is missing or switched off.
pub fn version() -> u32 {
    // SAFETY: the call with a null pointer and size 0 only asks for the version (flag 1).
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, 1u32)
    };
    u32::try_from(version).unwrap_or(0)
}

/// Whether writing can be confined here: truncation is covered from version 3 on, and a sandbox through which an input
/// can be truncated is none.
pub fn available() -> bool {
    version() >= 3
}

/// Rules that a child process puts on itself.
#[derive(Debug)]
pub struct Sandbox {
    ruleset: OwnedFd,
}

impl Sandbox {
    /// Writing is allowed below `writable` (which must exist) and to harmless devices. `None` without Landlock.
    ///
    /// # Errors
    /// A folder that cannot be opened, or a kernel that refuses its own rules.
    pub fn new(writable: &[&Path]) -> io::Result<Option<Sandbox>> {
        if !available() {
            return Ok(None);
        }
        let abi = ABI::V3;
        let write = AccessFs::from_write(abi);
        let build = || -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
            let mut rules = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(write)?
                .create()?;
            for path in writable {
                rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, write))?;
            }
            let nvidia = std::fs::read_dir("/dev").into_iter().flatten().flatten();
            let nvidia = nvidia.map(|e| e.path()).filter(|p| p.to_string_lossy().starts_with("/dev/nvidia"));
            for device in DEVICES.iter().map(std::path::PathBuf::from).chain(nvidia) {
                let Ok(meta) = std::fs::metadata(&device) else { continue };
                let access = if meta.is_dir() { write } else { write & AccessFs::from_file(abi) };
                rules = rules.add_rule(PathBeneath::new(PathFd::new(&device)?, access))?;
            }
            Ok(rules.into())
        };
        let ruleset = build().map_err(|error| io::Error::other(format!("landlock: {error}")))?;
        Ok(ruleset.map(|ruleset| Sandbox { ruleset }))
    }

    /// The descriptor for [`enter`].
    pub fn descriptor(&self) -> i32 {
        self.ruleset.as_raw_fd()
    }
}

/// Puts the rules of `descriptor` on this process; made for the moment between fork and exec (only system calls).
///
/// # Errors
/// Those of the system calls.
pub fn enter(descriptor: i32) -> io::Result<()> {
    // SAFETY: both calls take plain numbers and touch no memory of ours.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_landlock_restrict_self, descriptor, 0u32) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
