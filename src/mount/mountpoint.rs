//! The place in the file system: whether we may mount there, mounting, unmounting.
//!
//! As root (or within a user namespace) the mount is made and undone here with mount(2) and
//! umount2(2); anybody else goes through the setuid `fusermount3`. Unmounting is always lazy: the
//! name goes at once, and who has a file open can read on until the process ends. What somebody
//! else mounted is never touched: not replaced at the start, not unmounted at the end.

use crate::config::location::real_path;
use crate::error::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use nix::unistd::{getegid, geteuid};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The type of our mounts in the kernel's table, by which we know them again.
pub const FILE_SYSTEM_TYPE: &str = "fuse.sqlrepl";

/// A mount that waits to be replaced when somebody walks in, as systemd makes for
/// `x-systemd.automount`.
const AUTOMOUNT_TYPE: &str = "autofs";

const DEVICE: &str = "/dev/fuse";
const MOUNT_TABLE: &str = "/proc/self/mountinfo";
const FUSERMOUNT: &str = "fusermount3";

/// Killed daemons leave mounts, and who mounts over them again leaves several.
const STALE_MOUNTS_MAX: usize = 16;

/// A line of the kernel's mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableEntry {
    /// Major and minor number: one mount of ours has one of its own.
    device: String,
    at: PathBuf,
    kind: String,
    source: String,
}

/// A mount of ours; dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    device: String,
}

/// Whether we may mount at `path`, and its full name. A mount of ours that nobody serves any more
/// is taken away.
///
/// # Errors
/// `Invalid`: no directory, not empty, something is mounted there, or it lies in one of `keep_out`.
pub fn prepare(path: &Path, keep_out: &[PathBuf]) -> Result<PathBuf> {
    for _ in 0..STALE_MOUNTS_MAX {
        match fs::metadata(path) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
                take_away_stale(path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = path.display();
                return Err(Error::invalid(format!(
                    "there is no directory {path} to mount on; create it: mkdir -p {path}"
                )));
            }
            Err(error) => return Err(unusable(path).because(error)),
            Ok(metadata) if !metadata.is_dir() => {
                let path = path.display();
                return Err(Error::invalid(format!(
                    "cannot mount on {path}: it is not a directory"
                )));
            }
            Ok(_) => return check_directory(path, keep_out),
        }
    }
    Err(unusable(path))
}

fn check_directory(path: &Path, keep_out: &[PathBuf]) -> Result<PathBuf> {
    let at = path.canonicalize().map_err(|e| unusable(path).because(e))?;
    let there = top_mount(&at)?;
    let is_trigger = there
        .as_ref()
        .is_some_and(|there| there.kind == AUTOMOUNT_TYPE);
    if let Some(there) = there.filter(|_| !is_trigger) {
        let who = if there.kind == FILE_SYSTEM_TYPE {
            "a running sqlrepl".to_owned()
        } else {
            format!("{} ({})", there.source, there.kind)
        };
        return Err(Error::invalid(format!(
            "cannot mount on {}: {who} is mounted there; unmount it first",
            at.display()
        )));
    }
    for place in keep_out {
        // As written where its file system does not answer: it may have nothing to do with us.
        if real_path(place).is_ok_and(|place| at.starts_with(place)) {
            return Err(Error::invalid(format!(
                "cannot mount on {}: it lies in {}, which is for a replica, a spool or a cache; \
                 use a directory outside",
                at.display(),
                place.display()
            )));
        }
    }
    if is_trigger {
        // Reading it would call for the very mount that we are about to make.
        return Ok(at);
    }
    let mut entries = fs::read_dir(&at).map_err(|e| unusable(&at).because(e))?;
    if entries.next().is_some() {
        return Err(Error::invalid(format!(
            "cannot mount on {}: it is not empty, and the mount would hide what is in it; \
             use an empty directory",
            at.display()
        )));
    }
    Ok(at)
}

fn unusable(path: &Path) -> Error {
    Error::invalid(format!("cannot mount on {}", path.display()))
}

/// The full name of a path that cannot be looked at itself.
fn full_name(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Unmounts what a sqlrepl mounted on `path`, whether it still runs or was killed. The name is free
/// when this returns; who has a file open there can read on.
///
/// # Errors
/// `Invalid` if nothing of ours is mounted there, `Disk` if the system refuses.
pub fn unmount(path: &Path) -> Result<()> {
    let at = match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => full_name(path),
        known => known,
    };
    let at = at.map_err(|error| {
        Error::invalid(format!("cannot unmount {}", path.display())).because(error)
    })?;
    let name = at.display();
    match top_mount(&at)? {
        Some(there) if there.kind == FILE_SYSTEM_TYPE => detach(&at),
        Some(there) if there.kind != AUTOMOUNT_TYPE => Err(Error::invalid(format!(
            "cannot unmount {name}: {} ({}) is mounted there, not sqlrepl; use umount",
            there.source, there.kind
        ))),
        _ => Err(Error::invalid(format!(
            "cannot unmount {name}: no sqlrepl is mounted there"
        ))),
    }
}

/// Detaches what is left of a sqlrepl that was killed. The path itself cannot be looked at.
fn take_away_stale(path: &Path) -> Result<()> {
    let at = full_name(path).map_err(|e| unusable(path).because(e))?;
    match top_mount(&at)? {
        Some(there) if there.kind == FILE_SYSTEM_TYPE => {
            tracing::info!(
                "{} was left by a sqlrepl that was killed; replacing it",
                at.display()
            );
            detach(&at)
        }
        there => {
            let kind = there.map_or_else(|| "nobody".to_owned(), |there| there.kind);
            Err(Error::invalid(format!(
                "cannot mount on {}: what is mounted there ({kind}) does not answer and is not \
                 ours to unmount",
                at.display()
            )))
        }
    }
}

impl Mount {
    /// Mounts on a path that [`prepare`] gave and opens the device that serves it. `source` is how
    /// the mount table names what is mounted.
    ///
    /// # Errors
    /// `Invalid` if the system does not let us, with the remedy.
    pub fn new(at: &Path, source: &str, allow_other: bool) -> Result<(OwnedFd, Self)> {
        let device = match mount_directly(at, source, allow_other)? {
            Some(device) => device,
            None => mount_by_fusermount(at, source, allow_other)?,
        };
        let table = top_mount(at)?.filter(|there| there.kind == FILE_SYSTEM_TYPE);
        let there = table.ok_or_else(|| {
            Error::invalid(format!(
                "mounted on {}, but the mount table does not show it",
                at.display()
            ))
        })?;
        let mount = Self {
            at: at.to_owned(),
            device: there.device,
        };
        Ok((device, mount))
    }

    /// Unmounts, unless somebody did already. Whoever has a file open can read on.
    ///
    /// # Errors
    /// `Disk` if the system refuses.
    pub fn detach(&self) -> Result<()> {
        match top_mount(&self.at)? {
            Some(there) if there.device == self.device => detach(&self.at),
            // Gone, or somebody has mounted something else there.
            _ => Ok(()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::error!("{error}");
        }
    }
}

/// `None` if only root may.
fn mount_directly(at: &Path, source: &str, allow_other: bool) -> Result<Option<OwnedFd>> {
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => OwnedFd::from(device),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => {
            return Err(Error::invalid(format!(
                "cannot open {DEVICE}: this system has no FUSE, or the container was started \
                 without --device {DEVICE}"
            ))
            .because(error));
        }
    };
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        geteuid(),
        getegid()
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let kind = Some(FILE_SYSTEM_TYPE);
    match nix::mount::mount(Some(source), at, kind, flags, Some(data.as_str())) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(unusable(at).because(error)),
    }
}

/// Lets the setuid program mount; it sends the device over a socket.
fn mount_by_fusermount(at: &Path, source: &str, allow_other: bool) -> Result<OwnedFd> {
    let failed = |doing: &str| unusable(at).context(doing);
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|e| failed("make a socket").because(e))?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(|e| failed("pass a socket on").because(e))?;
    let mut options = "ro,nosuid,nodev,noatime,default_permissions".to_owned();
    options.push_str(&format!(",subtype=sqlrepl,fsname={}", escaped(source)));
    if allow_other {
        options.push_str(",allow_other");
    }
    let ran = Command::new(FUSERMOUNT)
        .args(["-o", &options, "--"])
        .arg(at)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output();
    drop(theirs);
    let ran = ran.map_err(|error| {
        Error::invalid(format!(
            "cannot mount on {}: only root may, and {FUSERMOUNT}, which helps others, cannot be \
             run; install fuse3",
            at.display()
        ))
        .because(error)
    })?;
    if !ran.status.success() {
        let mut why = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        if why.contains(DEVICE) {
            why.push_str("; let everybody open it, as udev does: chmod 666 /dev/fuse");
        }
        return Err(unusable(at).because(why));
    }
    receive_device(&ours).map_err(|e| failed("take the device from fusermount3").because(e))
}

/// The one file descriptor that a message on the socket carries.
fn receive_device(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel installed this descriptor for this message, which nobody else
            // reads; the buffer has room for one, so no other is lost.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::other("the message carries no descriptor"))
}

/// As fusermount3's option lists want it.
fn escaped(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

fn detach(at: &Path) -> Result<()> {
    let failed = || Error::new(ErrorKind::Disk, format!("unmount {}", at.display()));
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => {
            let ran = Command::new(FUSERMOUNT)
                .args(["-u", "-z", "--"])
                .arg(at)
                .stdin(Stdio::null())
                .output()
                .map_err(|e| failed().because(e))?;
            if ran.status.success() {
                return Ok(());
            }
            let why = String::from_utf8_lossy(&ran.stderr);
            Err(failed().because(format!(
                "{}; it takes root, or the user who mounted it",
                why.trim()
            )))
        }
        Err(error) => Err(failed().because(error)),
    }
}

/// What is mounted at a path, if anything; of several mounts the one that is seen.
fn top_mount(at: &Path) -> Result<Option<TableEntry>> {
    let table = fs::read(MOUNT_TABLE).map_err(|e| Error::disk(format!("read {MOUNT_TABLE}"), e))?;
    Ok(entries(&table).filter(|entry| entry.at == at).last())
}

/// The lines of a mount table (proc(5), "/proc/pid/mountinfo").
fn entries(table: &[u8]) -> impl Iterator<Item = TableEntry> + '_ {
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = fields.nth(2)?;
        let at = fields.nth(1)?;
        // Any number of optional fields, then a dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = rest.next()?;
        let source = rest.next()?;
        Some(TableEntry {
            device: String::from_utf8_lossy(device).into_owned(),
            at: PathBuf::from(OsString::from_vec(unescaped(at))),
            kind: String::from_utf8_lossy(kind).into_owned(),
            source: String::from_utf8_lossy(&unescaped(source)).into_owned(),
        })
    })
}

/// Blanks, tabs, newlines and backslashes stand there as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        };
        match behind.get(..3).filter(|_| first == b'\\').and_then(octal) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
30 21 0:26 / /mnt/a\\040b rw,nosuid - fuse.sqlrepl s3://bucket/a\\134b ro\n\
31 21 0:27 / /mnt/c rw shared:5 master:2 - tmpfs none rw\n\
32 21 0:28 / /mnt/c ro - fuse.sqlrepl /replicas ro\n";

    #[test]
    fn the_mount_table_is_read_with_its_escapes_and_optional_fields() {
        let read: Vec<_> = entries(TABLE)
            .map(|e| format!("{} {} {} {}", e.device, e.at.display(), e.kind, e.source))
            .collect();
        let expect = [
            "254:0 / ext4 /dev/vda",
            "0:26 /mnt/a b fuse.sqlrepl s3://bucket/a\\b",
            "0:27 /mnt/c tmpfs none",
            "0:28 /mnt/c fuse.sqlrepl /replicas",
        ];
        assert_eq!(read, expect);
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        assert_eq!(unescaped(b"a\\"), b"a\\");
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
        assert_eq!(unescaped(b"\\999\\011"), b"\\999\t");
    }

    #[test]
    fn an_empty_directory_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = prepare(dir.path(), &[PathBuf::from("s3://bucket/replica")]).unwrap();
        assert_eq!(at, dir.path().canonicalize().unwrap());
    }

    #[track_caller]
    fn refused(path: &Path, keep_out: &[PathBuf], why: &str) {
        let error = prepare(path, keep_out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn what_is_no_empty_directory_of_its_own_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        refused(&file, &[], "it is not a directory");
        refused(&dir.path().join("none"), &[], "create it: mkdir -p ");
        refused(dir.path(), &[], "it is not empty");
        refused(Path::new("/proc"), &[], "(proc) is mounted there");
    }

    #[test]
    fn a_place_inside_the_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let keep_out = [dir.path().to_owned()];
        refused(&inside, &keep_out, "use a directory outside");
        std::os::unix::fs::symlink(&inside, dir.path().join("link")).unwrap();
        refused(
            &dir.path().join("link"),
            &keep_out,
            "use a directory outside",
        );
    }
}
