//! Programs that a test runs: to their end, or beside it. None outlives its test: each runs in a
//! process group of its own, is killed when its guard is dropped, and dies with the thread that
//! started it, however that ends. What a program printed is shown when the test fails.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Longer than what a test waits for takes, on a slow and busy machine too.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// Longer than any program runs to its end.
const HANGS: Duration = Duration::from_secs(600);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none in time; `what` says what was waited for.
#[track_caller]
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        // Between two questions only: no test counts on how long this takes.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub(crate) fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(limit, what, || holds().then_some(()));
}

/// What a program that ended has left: its exit code (128 + the signal that killed it) and words.
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
}

impl Output {
    /// What it printed.
    ///
    /// # Panics
    /// Unless it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }

    /// Checks that it failed with this exit code and with these words among its messages.
    ///
    /// # Panics
    /// Unless it did.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &str) -> Self {
        assert!(self.code == code, "expected exit code {code}: {self}");
        assert!(self.stderr.contains(words), "expected \"{words}\": {self}");
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
            shown,
        } = self;
        write!(f, "`{shown}` ended with {code}\n{stdout}\n{stderr}")
    }
}

/// What starts a program so that it dies with the thread that asked for it. Done between fork and
/// exec instead, each start would copy the page tables of all that the tests hold in memory.
const BOUND: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// A command that is bound to its test; all that run are.
pub(crate) fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(BOUND[0]);
    command.args(&BOUND[1..]).arg(program);
    command
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started, or does not end in time.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(command, folder.path());
    let code = running.wait_exit();
    Output {
        code,
        stdout: running.stdout(),
        stderr: running.stderr(),
        shown: running.shown.clone(),
    }
}

/// A program that runs beside the test.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<i32>,
}

impl Running {
    /// Starts a program; what it prints goes to new files in `logs`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, logs: &Path) -> Self {
        let bound: Vec<&OsStr> = command.get_args().take(BOUND.len() - 1).collect();
        assert!(command.get_program() == BOUND[0] && bound == BOUND[1..]);
        let shown = shown(command);
        let name = name(command);
        let (stdout, stderr) = free_logs(logs, &name);
        command
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .process_group(0);
        if command.get_envs().all(|(key, _)| key != "RUST_BACKTRACE") {
            command.env("RUST_BACKTRACE", "1");
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `{shown}`: {error}"));
        Self {
            child,
            shown,
            stdout,
            stderr,
            ended: None,
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end of the pipe, if the command asked for one.
    pub(crate) fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// What it printed so far.
    pub(crate) fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it said so far: log and errors.
    pub(crate) fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// True until it ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.exit_code().is_none()
    }

    /// Its exit code, or 128 plus the signal that killed it, once it ended.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap().map(code);
        }
        self.ended
    }

    /// Sends it a signal; nothing if it ended already.
    pub(crate) fn signal(&mut self, signal: i32) {
        if self.is_running() {
            // SAFETY: kill takes two numbers. The process was not waited for, so its id is its own.
            assert_eq!(unsafe { libc::kill(self.pid().cast_signed(), signal) }, 0);
        }
    }

    /// Waits for its end; the exit code.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> i32 {
        let shown = format!("the end of `{}`", self.shown);
        wait_for(HANGS, &shown, || self.exit_code())
    }

    /// Asks it to end (SIGTERM) and waits; the exit code.
    #[track_caller]
    pub(crate) fn term(&mut self) -> i32 {
        self.signal(libc::SIGTERM);
        self.wait_exit()
    }

    /// Kills it (SIGKILL) and waits.
    #[track_caller]
    pub(crate) fn kill9(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait_exit();
    }

    /// Waits until it has said these words.
    ///
    /// # Panics
    /// If it does not in time, or ends before.
    #[track_caller]
    pub(crate) fn wait_says(&mut self, words: &str) {
        let what = format!("`{}` to say \"{words}\"", self.shown);
        wait_until(LONG, &what, || {
            let alive = self.is_running();
            let says = self.stdout().contains(words) || self.stderr().contains(words);
            assert!(alive || says, "{what}: it ended with {:?}", self.ended);
            says
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // SAFETY: kill takes two numbers; the group is the child's own and not yet waited for.
            unsafe { libc::kill(-self.pid().cast_signed(), libc::SIGKILL) };
            // It may have ended by itself; all that matters is that it is gone.
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            let mut message = format!("--- `{}` printed (its last 60 lines):\n", self.shown);
            for text in [self.stdout(), self.stderr()] {
                let lines: Vec<&str> = text.lines().collect();
                for line in &lines[lines.len().saturating_sub(60)..] {
                    writeln!(message, "{line}").unwrap();
                }
            }
            println!("{message}");
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    }
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let mut shown = name(command);
    for argument in command.get_args().skip(BOUND.len()) {
        write!(shown, " {}", argument.to_string_lossy()).unwrap();
    }
    shown
}

/// What the program is called.
fn name(command: &Command) -> String {
    let program = command.get_args().nth(BOUND.len() - 1);
    let name = program.and_then(|program| Path::new(program).file_name());
    name.unwrap().to_string_lossy().into_owned()
}

fn free_logs(folder: &Path, program: &str) -> (PathBuf, PathBuf) {
    (1..)
        .map(|n| {
            let name = |kind| folder.join(format!("{program}.{n}.{kind}"));
            (name("stdout"), name("stderr"))
        })
        .find(|(stdout, _)| !stdout.exists())
        .expect("there is always a greater number")
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
