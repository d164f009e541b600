//! The log of a process that has left its shell: until then the standard error, then the system's
//! log, which is a datagram socket (syslog(3); systemd's journal listens there, too).

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where the system's log listens.
const SOCKET: &str = "/dev/log";

/// The facility `daemon`, as the priority of a line has it.
const FACILITY: u8 = 3 << 3;

static HAS_LEFT: AtomicBool = AtomicBool::new(false);

/// From now on lines go to the system's log.
pub(crate) fn take_over() {
    // ORDERING: a line more or less on the standard error does not matter.
    HAS_LEFT.store(true, Ordering::Relaxed);
}

/// True since [`take_over`].
pub(crate) fn has_taken_over() -> bool {
    HAS_LEFT.load(Ordering::Relaxed)
}

/// Writes lines to the standard error, and after [`take_over`] to the system's log.
pub(crate) struct Lines {
    socket: PathBuf,
}

impl Lines {
    /// Lines of this process.
    pub(crate) fn new() -> Self {
        Self {
            socket: SOCKET.into(),
        }
    }

    fn line(&self, level: Level) -> Line<'_> {
        Line {
            lines: self,
            severity: match level {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                Level::DEBUG | Level::TRACE => 7,
            },
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        self.line(Level::INFO)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        self.line(*meta.level())
    }
}

/// Writes one line.
pub(crate) struct Line<'a> {
    lines: &'a Lines,
    severity: u8,
}

impl Line<'_> {
    /// Sends a line without waiting. A socket for each, since who listens may have been restarted.
    fn send(&self, line: &[u8]) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let priority = FACILITY | self.severity;
        let mut message = format!("<{priority}>sqlrepl[{}]: ", std::process::id()).into_bytes();
        message.extend(line.trim_ascii_end());
        socket.send_to(&message, &self.lines.socket)?;
        Ok(())
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !has_taken_over() {
            return io::stderr().write(line);
        }
        // Without a log in the system there is no place left to say so.
        self.send(line).ok();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_with_its_priority_and_our_name() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("log");
        let system = UnixDatagram::bind(&socket).unwrap();
        let lines = Lines { socket };
        for (level, priority) in [(Level::ERROR, 27), (Level::INFO, 30), (Level::TRACE, 31)] {
            lines.line(level).send(b"what happened\n").unwrap();
            let mut bytes = [0; 100];
            let length = system.recv(&mut bytes).unwrap();
            let expect = format!("<{priority}>sqlrepl[{}]: what happened", std::process::id());
            assert_eq!(bytes[..length], *expect.as_bytes());
        }
    }
}
