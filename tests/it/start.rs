//! How a mount starts and ends: in the background, under a service manager, by mount(8) and
//! `/etc/fstab`, as an ordinary user; and `sqlrepl umount`.
//!
//! What changes the machine (`/sbin`, `/dev/fuse`, an automount) happens in a mount and process
//! namespace of its own, which ends with its script and takes everything with it.

use crate::program::{LONG, Output, Running, bound, run, wait_until};
use crate::world::{Mount, World};
use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

const QUERY: &str = "SELECT count(*) FROM t";

/// A world with a replica of 100 rows; its daemon has ended.
fn replica() -> World {
    let world = World::new();
    world.sample();
    assert_eq!(world.daemon().term(), 0);
    world
}

/// What is mounted on a path, bottom first: types, sources and options.
fn mounted(at: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| Path::new(fields[1]) == at)
        .map(|fields| [fields[2], fields[0], fields[3]].join(" "))
        .collect()
}

/// A mount in the background. Ends with the story.
struct Background {
    at: PathBuf,
}

impl Background {
    fn new(world: &World) -> Self {
        let at = world.path("mnt");
        fs::create_dir(&at).unwrap();
        Self { at }
    }

    /// The process that serves it.
    fn process(&self) -> PathBuf {
        let at = self.at.to_str().unwrap();
        let processes = fs::read_dir("/proc").unwrap();
        let mut processes = processes.map(|entry| entry.unwrap().path());
        processes
            .find(|process| {
                let words = fs::read(process.join("cmdline")).unwrap_or_default();
                words
                    .split(|byte| *byte == 0)
                    .any(|word| word == at.as_bytes())
            })
            .expect("its process is there")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        while !mounted(&self.at).is_empty() {
            nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// True when a process has ended, whether or not somebody has asked for its exit code.
fn has_ended(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

#[test]
fn a_cache_directory_is_named_relative_to_where_the_command_ran() {
    let world = replica();
    let mount = Background::new(&world);
    let at = mount.at.to_str().unwrap();
    let words = format!("mount --daemon --log-file mount.log --cache-dir cache replicas {at}");
    world.sqlrepl(&words).ok();
    assert_eq!(world.sql("mnt/app/latest.db", QUERY), "100");
    let kept = world.path("cache/00000000.data");
    wait_until(LONG, "what was read to be kept", || kept.exists());
    let process = mount.process();
    world.sqlrepl("umount mnt").ok();
    wait_until(LONG, "the end of the process", || has_ended(&process));
    let log = fs::read_to_string(world.path("mount.log")).unwrap();
    assert!(!log.contains("the disk cache is off"), "{log}");
}

/// README: "`sqlrepl mount --daemon` returns when files can be read, or with the message and the
/// exit code of the failure."
#[test]
fn a_mount_in_the_background_returns_when_it_is_ready_and_leaves_the_shell() {
    let world = replica();
    let mount = Background::new(&world);
    let at = mount.at.to_str().unwrap();
    let words = format!("mount --daemon --log-file mount.log replicas {at}");
    let said = world.sqlrepl(&words).ok();
    assert_eq!(said, format!("mounted 1 database on {at}\n"));
    assert_eq!(world.sql("mnt/app/latest.db", QUERY), "100");

    let process = mount.process();
    let link = |name| fs::read_link(process.join(name)).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(stream), Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(process, Path::new("/proc").join(session));

    // The replica was named relative to where the command ran, and is found from elsewhere.
    world.sql("app.db", "DELETE FROM t");
    assert_eq!(world.daemon().term(), 0);
    wait_until(LONG, "the newest commit", || {
        world.sql("mnt/app/latest.db", QUERY) == "0"
    });
    world.sqlrepl("umount mnt").ok();
    assert_eq!(mounted(&mount.at), [""; 0]);
    wait_until(LONG, "the end of the process", || has_ended(&process));
    assert!(world.path("mount.log").exists());

    for (words, code, message) in [
        (
            "replicas nowhere",
            2,
            "sqlrepl: there is no directory nowhere",
        ),
        (
            "no-replicas mnt",
            3,
            "sqlrepl: no-replicas: no such directory",
        ),
        (
            "--config none.toml mnt",
            2,
            "sqlrepl: read config file none.toml",
        ),
    ] {
        let failed = world.sqlrepl(&format!("mount --daemon {words}"));
        let failed = failed.fails(code, message);
        let foreground = world.sqlrepl(&format!("mount {words}"));
        let foreground = foreground.fails(code, message);
        assert_eq!(failed.stderr, foreground.stderr);
        assert_eq!(failed.stdout, "");
    }
    fs::write(world.path("log.toml"), "[log]\ntarget = \"stdout\"\n").unwrap();
    let failed = world.sqlrepl("mount --config log.toml --daemon replicas nowhere");
    assert_eq!(failed.stderr.lines().count(), 1, "{failed}");
}

/// A service manager that listens.
pub(crate) struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    pub(crate) fn new(world: &World) -> Self {
        let name = format!("sqlrepl-it-{}", world.path("").display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, name }
    }

    /// Starts `sqlrepl` as its service.
    #[track_caller]
    pub(crate) fn start(&self, world: &World, words: &str) -> Running {
        let mut command = world.ours(words);
        command.env("NOTIFY_SOCKET", format!("@{}", self.name));
        Running::start(&mut command, &world.logs())
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn hear(&self) -> String {
        let mut bytes = [0; 1000];
        let length = self.socket.recv(&mut bytes).expect("a message in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// True if no message has come that was not heard.
    fn has_heard_all(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        self.socket.recv(&mut [0; 1000]).is_err()
    }
}

/// README: "Under systemd `mount` and `replicate` say when they are ready and when they end."
#[test]
fn the_service_manager_hears_when_we_are_ready_and_when_we_end() {
    let world = replica();
    let manager = Manager::new(&world);
    let place = world.path("mnt");
    fs::create_dir(&place).unwrap();
    let status = format!("mounted 1 database on {}", place.display());
    for (words, status) in [
        ("mount replicas mnt", status.as_str()),
        ("replicate app.db replicas/app", "replicating app"),
    ] {
        let mut program = manager.start(&world, words);
        assert_eq!(manager.hear(), format!("READY=1\nSTATUS={status}"));
        assert_eq!(program.term(), 0);
        assert_eq!(manager.hear(), "STOPPING=1\nSTATUS=ending");
    }
}

#[test]
fn a_daemon_is_ready_with_a_store_that_is_away_and_not_without_any_database() {
    let world = World::on_s3();
    world.sample();
    world.server().down();
    let manager = Manager::new(&world);
    let mut daemon = manager.start(&world, "replicate app.db replicas/app");
    assert_eq!(manager.hear(), "READY=1\nSTATUS=replicating app");
    let mut second = manager.start(&world, "replicate app.db replicas/app");
    assert_eq!(second.wait_exit(), 1);
    assert!(manager.has_heard_all());
    daemon.kill9();
}

/// Waits for a mount whose file is open to end; what was open could be read until then.
#[track_caller]
fn ends_with_an_open_file(world: &World, mount: &mut Mount, end: impl FnOnce(&mut Mount)) -> File {
    let open = File::open(world.path("mnt/app/latest.db")).unwrap();
    end(mount);
    wait_until(LONG, "the mount to go", || !mount.is_mounted());
    open.read_exact_at(&mut [0; 100], 0).unwrap();
    open
}

/// README: "SIGINT, SIGTERM and `sqlrepl umount` end a mount also while files in it are open; the
/// exit code is 0."
#[test]
fn a_mount_ends_while_files_are_open() {
    let world = replica();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut mount = world.mount();
        let open = ends_with_an_open_file(&world, &mut mount, |mount| {
            mount.program.signal(signal);
        });
        assert_eq!(mount.program.wait_exit(), 0);
        drop(open);
        assert_eq!(fs::read_dir(world.path("mnt")).unwrap().count(), 0);
    }
    let mut mount = world.mount();
    let open = ends_with_an_open_file(&world, &mut mount, |_| {
        world.sqlrepl("umount mnt").ok();
    });
    // Who unmounts waits for nobody, and who reads goes on.
    assert!(mount.program.is_running());
    drop(open);
    assert_eq!(mount.program.wait_exit(), 0);
}

/// README: "`sqlrepl umount` ends a mount of ours, also one whose process was killed, and refuses
/// anything else."
#[test]
fn umount_ends_what_is_ours_and_nothing_else() {
    let world = replica();
    let mut mount = world.mount();
    world.sqlrepl("umount mnt").ok();
    assert!(!mount.is_mounted());
    assert_eq!(mount.program.wait_exit(), 0);

    let mut killed = world.mount();
    killed.program.kill9();
    let error = fs::read_dir(world.path("mnt")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    world.sqlrepl("umount mnt").ok();
    assert!(!killed.is_mounted());

    world
        .sqlrepl("umount mnt")
        .fails(2, "no sqlrepl is mounted there");
    world
        .sqlrepl("umount nowhere")
        .fails(2, "cannot unmount nowhere: ");
    let proc = world.sqlrepl("umount /proc");
    proc.fails(
        2,
        "cannot unmount /proc: proc (proc) is mounted there, not sqlrepl; use umount",
    );
}

/// README: "A mount point in a replica or a spool is refused, as is one that is not empty and one
/// that is in use."
#[test]
fn a_mount_point_in_a_replica_or_a_spool_is_refused() {
    let world = replica();
    let config = "[[db]]\npath = \"app.db\"\n[[db.replica]]\npath = \"replicas/app\"\n";
    fs::write(world.path("sqlrepl.toml"), config).unwrap();
    for place in [
        "replicas/app/in",
        ".app.db-sqlrepl/in",
        "replicas/in",
        "full/in",
        "used",
    ] {
        fs::create_dir_all(world.path(place)).unwrap();
    }
    let refused = |words: &str, why: &str| {
        let words = format!("mount --config sqlrepl.toml {words}");
        world.sqlrepl(&words).fails(2, why);
    };
    let outside = "which is for a replica, a spool or a cache; use a directory outside";
    refused("replicas/app/in", outside);
    refused(".app.db-sqlrepl/in", outside);
    // Those of the config file, whatever is mounted.
    refused("full .app.db-sqlrepl/in", outside);
    refused("replicas replicas/in", outside);
    refused("full", "use an empty directory");
    let _first = world.mount();
    refused(
        "mnt",
        "a running sqlrepl is mounted there; unmount it first",
    );
    assert_eq!(world.sql("mnt/app/latest.db", QUERY), "100");
}

/// README: "The owner and the mode that `--uid`, `--gid` and `--umask` give to a mount hold for
/// every user whom `--allow-other` lets in, and `--allow-root` lets in root alone."
#[test]
fn owner_and_mode_decide_who_may_read() {
    let world = replica();
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let look = |id: &str| {
        let id = [format!("--reuid={id}"), format!("--regid={id}")];
        let file = world.path("mnt/app/latest.db");
        let words = [
            &id[0],
            &id[1],
            "--clear-groups",
            "wc",
            "-c",
            file.to_str().unwrap(),
        ];
        world.run("setpriv", &words).code == 0
    };
    let seen_by = |options: &str| {
        let mut mount = world.mount_at(&format!("mount {options} replicas mnt"));
        let seen = [look("65534"), look("12345"), look("0")];
        assert_eq!(mount.interrupt(), 0);
        seen
    };
    assert_eq!(seen_by(""), [false, false, true]);
    assert_eq!(seen_by("--allow-root"), [false, false, true]);
    assert_eq!(seen_by("--allow-root --uid root"), [false, false, true]);
    assert_eq!(seen_by("--allow-other"), [true, true, true]);
    assert_eq!(seen_by("--allow-other --umask 007"), [false, false, true]);
    assert_eq!(
        seen_by("--allow-other --umask 077 --uid nobody --gid 12345"),
        [true, false, true]
    );
    assert_eq!(
        seen_by("--allow-other --umask 007 --uid 0 --gid 12345"),
        [false, true, true]
    );

    let words = "mount --allow-other --umask 027 --uid 65534 --gid 12345 --refresh 1h replicas mnt";
    let _mount = world.mount_at(words);
    let file = fs::metadata(world.path("mnt/app/latest.db")).unwrap();
    let folder = fs::metadata(world.path("mnt/app")).unwrap();
    assert_eq!((file.uid(), file.gid()), (65534, 12345));
    assert_eq!(file.mode(), libc::S_IFREG | 0o440);
    assert_eq!(folder.mode(), libc::S_IFDIR | 0o550);
    // Nothing new within the hour.
    let newest = fs::read_link(world.path("mnt/app/latest.db")).unwrap();
    world.sql("app.db", "DELETE FROM t");
    assert_eq!(world.daemon().term(), 0);
    assert_eq!(
        fs::read_link(world.path("mnt/app/latest.db")).unwrap(),
        newest
    );

    let wrong = |words: &str, why: &str| {
        world
            .sqlrepl(&format!("mount {words} replicas mnt"))
            .fails(2, why);
    };
    wrong("--umask 9", "it is three octal digits, as in 027");
    wrong("--uid no-such-user", "there is no user of this name");
    wrong("--gid no-such-group", "there is no group of this name");
    wrong("--allow-root --allow-other", "cannot be used with");
    wrong(
        "--allow-root --uid 12345",
        "--allow-root lets in who mounts and root alone, and --uid gives everything to user 12345: \
         leave out --uid, or let others in with --allow-other and --umask 077",
    );
}

/// What `make install` puts into a folder of the world, from the binary of this test.
fn install(world: &World, destination: &str, prefix: &str, sbin: &str) {
    let mut make = bound("make");
    make.arg("--no-print-directory")
        .arg("install")
        .arg(format!("DESTDIR={destination}"))
        .arg(format!("PREFIX={prefix}"))
        .arg(format!("SBINDIR={sbin}"))
        // It is built already, and not for release.
        .args([
            "CARGO=true",
            concat!("PROGRAM=", env!("CARGO_BIN_EXE_sqlrepl")),
        ])
        .env_remove("MAKEFLAGS")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    run(&mut make).ok();
    // Others than its owner run it, too.
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A path of the world as text.
fn text(world: &World, name: &str) -> String {
    world.path(name).to_str().unwrap().to_owned()
}

/// Installed below the world: `usr/bin/sqlrepl`, `sbin/mount.sqlrepl`.
fn installed(world: &World) {
    install(world, "", &text(world, "usr"), &text(world, "sbin"));
}

#[test]
fn make_install_brings_the_programs_and_units_that_systemd_takes() {
    let world = World::new();
    install(&world, &text(&world, "stage"), "/usr", "/sbin");
    let units = [
        "sqlrepl.service",
        "sqlrepl@.service",
        "sqlrepl-mount@.service",
    ];
    for unit in units {
        let installed = world.path("stage/usr/lib/systemd/system").join(unit);
        let unit = fs::read_to_string(installed).unwrap();
        assert!(unit.contains("\nExecStart=/usr/bin/sqlrepl "), "{unit}");
    }
    assert!(world.path("stage/usr/bin/sqlrepl").exists());
    let other = fs::read_link(world.path("stage/sbin/mount.fuse.sqlrepl")).unwrap();
    assert_eq!(other, Path::new("mount.sqlrepl"));
    let script = world.path("stage/sbin/mount.sqlrepl");
    assert_eq!(fs::metadata(&script).unwrap().mode() & 0o777, 0o755);
    run(&mut bound(script)).fails(1, "usage: mount.sqlrepl SOURCE DIR");

    // Where the programs are that the units name.
    installed(&world);
    let folder = world.path("usr/lib/systemd/system");
    for unit in units {
        let named = unit.replace('@', "@mnt-replicas");
        if named != unit {
            fs::copy(folder.join(unit), folder.join(&named)).unwrap();
        }
        let unit = folder.join(named);
        let verified = world.run("systemd-analyze", &["verify", unit.to_str().unwrap()]);
        let stderr = &verified.stderr;
        let complains = stderr.lines().any(|line| line.contains("sqlrepl"));
        assert!(verified.code == 0 && !complains, "{verified}");
    }
}

/// Runs a script in namespaces of its own for mounts and processes, in the world's folder, which it
/// knows as `$W`. It ends at the first command that fails.
fn apart(world: &World, script: &str) -> Output {
    let mut command = world.ours("");
    let mut unshare = bound("timeout");
    unshare
        .args(["--signal", "KILL", "120", "unshare"])
        .args(["--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-euc", script])
        .current_dir(world.path(""))
        .env("W", folder(world));
    // As for our own commands.
    for (name, value) in command.stdin(std::process::Stdio::null()).get_envs() {
        match value {
            Some(value) => unshare.env(name, value),
            None => unshare.env_remove(name),
        };
    }
    run(&mut unshare)
}

/// The world's folder as text.
fn folder(world: &World) -> String {
    text(world, "").trim_end_matches('/').to_owned()
}

/// What a script printed, but for the lines that say that a mount is ready.
fn but_ready(printed: &str) -> String {
    let lines = printed.lines();
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with("mounted ")).collect();
    lines.join("\n")
}

/// Puts what is installed, and FUSE's own program, in the place of `/sbin`.
const OUR_SBIN: &str = "cp -a /sbin/mount.fuse /sbin/mount.fuse3 $W/sbin/
mount --bind $W/sbin /sbin
";

/// Shows our mounts below the world.
const SHOW: &str = "
show() { grep \" $W/.* fuse\" /proc/mounts | cut -d ' ' -f 1-4 || true; }
";

/// README: "`mount -t sqlrepl SOURCE DIR -o ...` and `mount -t fuse.sqlrepl ...` mount a replica,
/// with all options of `sqlrepl mount`; an unknown option is refused by name."
#[test]
fn mount_knows_us_by_both_types() {
    let world = replica();
    installed(&world);
    let script = "
mkdir a b c
mount -t sqlrepl $W/replicas $W/a -o noatime,page_cache=8MiB,allow_other,umask=027,uid=65534
mount -t fuse.sqlrepl -r $W/replicas $W/b
rm $W/sbin/mount.fuse.sqlrepl
mount --bind $W/usr/bin /usr/local/bin
mount -t fuse.sqlrepl -o user,nofail,x-a=b $W/replicas $W/c
show
for at in a b c; do sqlite3 $at/app/latest.db 'SELECT count(*) FROM t'; done
stat -L -c '%a %u' a/app/latest.db b/app/latest.db
cd /
umount $W/a $W/c
$W/usr/bin/sqlrepl umount $W/b
show
echo that is all
";
    let seen = apart(&world, &[SHOW, OUR_SBIN, script].concat());
    let w = folder(&world);
    let common = "ro,nosuid,nodev,noatime,user_id=0,group_id=0,default_permissions";
    let expect = [
        format!("{w}/replicas {w}/a fuse.sqlrepl {common},allow_other"),
        format!("{w}/replicas {w}/b fuse.sqlrepl {common}"),
        format!("{w}/replicas {w}/c fuse.sqlrepl {common}"),
        "100\n100\n100\n440 65534\n444 0\nthat is all".to_owned(),
    ];
    assert_eq!(but_ready(&seen.ok()), expect.join("\n"));
}

#[test]
fn what_mount_cannot_do_is_said_with_its_own_exit_codes() {
    let world = replica();
    installed(&world);
    let script = "
mkdir a
try() { code=0; mount -t sqlrepl \"$@\" || code=$?; echo \"$code\"; }
try $W/replicas $W/a -o ro,nonsense=1
try $W/replicas $W/a -o page_cache=much
try $W/replicas $W/a -o remount,ro
try $W/none $W/a
try -f $W/replicas $W/a
try -s -f $W/replicas $W/a -o nonsense
show
";
    let seen = apart(&world, &[SHOW, OUR_SBIN, script].concat());
    assert_eq!(seen.stdout, "1\n1\n1\n32\n0\n0\n", "{seen}");
    for words in [
        "sqlrepl: sqlrepl mount has no option \"nonsense\"",
        "'much' for '--page-cache <SIZE>'",
        "sqlrepl: sqlrepl cannot remount",
        "/none: no such directory, so no replica is there",
    ] {
        assert!(seen.stderr.contains(words), "\"{words}\" is not in {seen}");
    }
}

/// README: "A line of `/etc/fstab` mounts at boot or with `mount DIR`; `mount -a` mounts nothing
/// twice."
#[test]
fn a_line_of_fstab_mounts_once() {
    let world = replica();
    installed(&world);
    let config = "[[db]]\npath = \"app.db\"\n[[db.replica]]\npath = \"replicas/app\"\n";
    fs::write(world.path("sqlrepl.toml"), config).unwrap();
    let w = folder(&world);
    let lines = format!(
        "{w}/replicas {w}/with\\040blank fuse.sqlrepl _netdev,nofail,user,page_cache=8MiB 0 0
{w}/sqlrepl.toml {w}/b sqlrepl defaults,x-systemd.automount 0 0
none {w}/c sqlrepl config={w}/sqlrepl.toml,allow_other 0 0
{w}/replicas {w}/later sqlrepl noauto,nofail 0 0
"
    );
    fs::write(world.path("fstab"), lines).unwrap();
    let script = "
mkdir with\\ blank b c later
mount -T $W/fstab -a
mount -T $W/fstab -a
show
mount -T $W/fstab $W/later
for at in with\\ blank b c later; do
    sqlite3 \"$at/app/latest.db\" 'SELECT count(*) FROM t'
done
";
    let seen = apart(&world, &[SHOW, OUR_SBIN, script].concat());
    let common = "ro,nosuid,nodev,noatime,user_id=0,group_id=0,default_permissions";
    let expect = [
        format!("{w}/replicas {w}/with\\040blank fuse.sqlrepl {common}"),
        format!("{w}/sqlrepl.toml {w}/b fuse.sqlrepl {common}"),
        format!("none {w}/c fuse.sqlrepl {common},allow_other"),
        "100\n100\n100\n100".to_owned(),
    ];
    assert_eq!(but_ready(&seen.ok()), expect.join("\n"));
}

/// README: "An ordinary user mounts on a directory of theirs, and unmounts, through `fusermount3`."
#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    let world = replica();
    installed(&world);
    let script = r#"
mkdir dev mnt
chmod -R a+rX replicas
chown 65534:65534 mnt
sqlrepl=$W/usr/bin/sqlrepl
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
refused() { as_user $sqlrepl "$@" && exit 1; true; }
killed() {
    for process in /proc/[0-9]*; do
        [ "$(readlink $process/exe)" != $sqlrepl ] || kill -KILL ${process#/proc/}
    done
    while as_user ls mnt > /dev/null 2>&1; do sleep 0.01; done
}
# A device of its own: only udev makes that of the machine everybody's.
mount -t tmpfs dev dev
mknod dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
chmod 600 dev/fuse
refused mount --daemon replicas mnt
chmod 666 dev/fuse
# Whatever the machine's own file says.
echo > fuse.conf
mount --bind fuse.conf /etc/fuse.conf
refused mount --daemon --allow-other replicas mnt
echo user_allow_other > fuse.conf
as_user $sqlrepl mount --daemon --allow-other replicas mnt
ls mnt
as_user $sqlrepl umount mnt

as_user $sqlrepl mount --daemon replicas mnt
as_user sqlite3 mnt/app/latest.db 'SELECT count(*) FROM t'
as_user stat -c '%U' mnt
! ls mnt 2> /dev/null
show
as_user $sqlrepl umount mnt

as_user $sqlrepl mount --daemon replicas mnt
killed
as_user $sqlrepl mount --daemon replicas mnt
as_user sqlite3 mnt/app/latest.db 'SELECT count(*) FROM t'
killed
as_user $sqlrepl umount mnt
show

chown root mnt
refused mount --daemon replicas mnt
$sqlrepl mount --daemon --allow-other replicas mnt
refused umount mnt
show
"#;
    let seen = apart(&world, &[SHOW, script].concat());
    let line = |options: &str| {
        let common = "fuse.sqlrepl ro,nosuid,nodev,noatime";
        format!(
            "{w}/replicas {w}/mnt {common},{options}",
            w = folder(&world)
        )
    };
    let expect = [
        "app\n100\nnobody".to_owned(),
        line("user_id=65534,group_id=65534,default_permissions"),
        "100".to_owned(),
        line("user_id=0,group_id=0,default_permissions,allow_other"),
    ];
    for words in [
        "fusermount3: failed to open /dev/fuse: Permission denied; let everybody open it",
        "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
        "mnt was left by a sqlrepl that was killed; replacing it",
        "user has no write access to mountpoint",
        "; it takes root, or the user who mounted it",
    ] {
        assert!(seen.stderr.contains(words), "\"{words}\" is not in {seen}");
    }
    assert_eq!(but_ready(&seen.ok()), expect.join("\n"));
}

#[test]
fn a_mount_in_the_background_logs_to_syslog() {
    let world = replica();
    installed(&world);
    let listener = "
import glob, os, signal, socket, subprocess
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind('/dev/log')
log.settimeout(60)
program = os.environ['W'] + '/usr/bin/sqlrepl'
subprocess.run([program, 'mount', '--daemon', 'replicas', 'mnt'], check=True, timeout=60)
links = [link for link in glob.glob('/proc/[0-9]*/exe') if os.readlink(link) == program]
[pid] = [int(link.split('/')[2]) for link in links]
os.kill(pid, signal.SIGTERM)
print(log.recv(1000).decode().replace(f'[{pid}]', '[PID]'))
";
    fs::write(world.path("listener.py"), listener).unwrap();
    // Of the machine's /dev/log nothing is known.
    let script = "
mkdir dev mnt
mount -t tmpfs dev dev
mknod -m 666 dev/fuse c 10 229
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/urandom c 1 9
mount --bind dev /dev
/usr/bin/python3 listener.py
";
    let line = but_ready(&apart(&world, script).ok());
    assert!(line.starts_with("<30>sqlrepl[PID]: "), "{line}");
    assert!(line.ends_with(" INFO SIGTERM: ending"), "{line}");
}

/// README: "A directory on which `x-systemd.automount` waits is mounted when somebody looks."
#[test]
fn an_automount_that_waits_is_no_obstacle() {
    let world = replica();
    installed(&world);
    fs::create_dir(world.path("mnt")).unwrap();
    // What systemd does: it makes the trigger, hears of who walks in and waits there, runs mount in
    // its own process group, and lets them go on.
    let systemd = "
import fcntl, os, struct, subprocess, sys
at = os.environ['W'] + '/mnt'
os.setsid()
heard, hears = os.pipe()
options = f'fd={hears},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct'
subprocess.run(['mount', '-i', '-t', 'autofs', '-o', options, 'trigger', at],
               pass_fds=[hears], check=True)
trigger = os.open(at, os.O_RDONLY)
reader = subprocess.Popen(['sqlite3', at + '/app/latest.db', 'SELECT count(*) FROM t'],
                          start_new_session=True)
_, kind, token = struct.unpack('iiI', os.read(heard, 4096)[:12])
assert kind == 5  # autofs_ptype_missing_direct
subprocess.run(['usr/bin/sqlrepl', 'mount', '--daemon', 'replicas', at], check=True, timeout=60)
fcntl.ioctl(trigger, 0x9360, token)  # AUTOFS_IOC_READY
sys.exit(reader.wait(60))
";
    fs::write(world.path("systemd.py"), systemd).unwrap();
    let script = "
/usr/bin/python3 systemd.py
usr/bin/sqlrepl umount mnt
usr/bin/sqlrepl umount mnt
";
    let seen = apart(&world, script).fails(2, "no sqlrepl is mounted there");
    assert_eq!(but_ready(&seen.stdout), "100", "{seen}");
}
