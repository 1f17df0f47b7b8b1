//! An ext4 file system of its own whose power can be cut: a loop-mounted image that is shut down with an ioctl, so that
//! everything which was not synced is lost, as on a machine that goes dark. Needs root and loop devices.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::ioctl::{Setter, ioctl, opcode};
use tempfile::TempDir;

use crate::skip;

/// `EXT4_IOC_SHUTDOWN`, that is `_IOR('X', 125, __u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: not even the journal is flushed.
const NO_LOG_FLUSH: u32 = 2;

/// A mounted image; unmounted and removed when dropped.
pub struct LoopDisk {
    home: TempDir,
    mounted: bool,
}

impl LoopDisk {
    /// Makes and mounts one, or says why `test` is skipped.
    pub fn mount_or_skip(test: &str, bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::unable(test, "mounting needs root");
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            skip::unable(test, "there are no loop devices (/dev/loop-control)");
            return None;
        }
        if !["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"].iter().any(|path| Path::new(path).exists()) {
            skip::missing_tool(test, "mkfs.ext4", "apt-get install e2fsprogs");
            return None;
        }
        let home = tempfile::Builder::new().prefix("daymark-disk-").tempdir().expect("a temporary directory");
        let mut disk = Self { home, mounted: false };
        File::create(disk.image()).and_then(|file| file.set_len(bytes)).expect("make the image");
        fs::create_dir(disk.root()).expect("make the mount point");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image())).expect("mkfs.ext4 works on a file");
        match disk.mount(&[]) {
            Ok(()) => Some(disk),
            Err(why) => {
                skip::unable(test, &format!("a loop device cannot be mounted here: {why}"));
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    fn mount(&mut self, options: &[&str]) -> Result<(), String> {
        let options = [&["loop"], options].concat().join(",");
        run(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(self.image()).arg(self.root()))?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts the power: nothing is written from here on, what was not synced is lost.
    pub fn cut(&self) {
        let root = File::open(self.root()).expect("open the mount point");
        // SAFETY: the opcode takes a pointer to one 32-bit number that the kernel only reads; ext4 is mounted there.
        let outcome = unsafe { ioctl(root.as_fd(), Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) };
        outcome.expect("ext4 can be shut down");
    }

    /// Power is back: mounts again. Nobody may have files open on it.
    pub fn restore(&mut self) {
        self.unmount();
        self.mount(&[]).expect("mount again after the cut");
    }

    /// Mounts again so that nothing can be written, not even by root.
    pub fn make_read_only(&mut self) {
        self.unmount();
        self.mount(&["ro"]).expect("mount again, read-only");
    }

    fn unmount(&mut self) {
        run(Command::new("umount").arg(self.root())).expect("unmount");
        self.mounted = false;
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a process on it.
        if self.mounted
            && let Err(why) = run(Command::new("umount").arg("-l").arg(self.root()))
        {
            eprintln!("{} stays mounted: {why}", self.root().display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
