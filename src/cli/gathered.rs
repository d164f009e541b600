//! Output that is gathered into few writes, but not for long: whoever reads it sees what is there
//! while the next part of it takes its time.

use sqlrepl::error::{Error, Result};
use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes gathered at most.
const BYTES: usize = 64 << 10;
/// How long something waits for more, about.
const WAIT: Duration = Duration::from_millis(200);

type Shared<W> = Arc<Mutex<BufWriter<W>>>;

/// Writes to `W`, which nobody else writes to.
pub(crate) struct Gathered<W: Write + Send + 'static> {
    out: Shared<W>,
    /// Gone when nothing more comes.
    _more: Sender<Infallible>,
}

impl<W: Write + Send + 'static> Gathered<W> {
    /// # Errors
    /// `Disk` if there can be no thread that sees to it.
    pub(crate) fn new(out: W) -> Result<Self> {
        let out = Arc::new(Mutex::new(BufWriter::with_capacity(BYTES, out)));
        let (more, end) = mpsc::channel::<Infallible>();
        let gathered = Arc::clone(&out);
        let flush = move || {
            while end.recv_timeout(WAIT) == Err(RecvTimeoutError::Timeout) {
                // What fails here is still there, and fails whoever writes next.
                lock(&gathered).flush().ok();
            }
        };
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(flush)
            .map_err(|e| Error::disk("start a thread for the output", e))?;
        Ok(Self { out, _more: more })
    }
}

impl<W: Write + Send + 'static> Write for Gathered<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.out).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.out).flush()
    }
}

/// What is gathered. A writer that panicked has said so itself.
fn lock<W: Write>(out: &Mutex<BufWriter<W>>) -> MutexGuard<'_, BufWriter<W>> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// What was written so far, and how often.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.0.lock().unwrap();
            written.0.extend_from_slice(bytes);
            written.1 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_written_comes_through_without_a_flush_and_in_few_writes() {
        let written = Written::default();
        let mut out = Gathered::new(written.clone()).unwrap();
        let lines: Vec<u8> = (0..100_000)
            .flat_map(|n: u32| format!("{n}\n").into_bytes())
            .collect();
        for line in lines.chunks(7) {
            out.write_all(line).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while written.0.lock().unwrap().0.len() < lines.len() {
            assert!(Instant::now() < deadline, "the last lines stay behind");
            thread::yield_now();
        }
        let written = written.0.lock().unwrap();
        assert!(written.0 == lines);
        assert!(written.1 < 1000, "{} writes", written.1);
    }
}
