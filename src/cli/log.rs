//! The log: which lines, how they look, where they go.

use crate::cli::{background, syslog};
use sqlrepl::config::settings::{LogFormat, LogSettings, LogTarget};
use sqlrepl::error::{Error, Result};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// A log that was started.
pub(crate) struct Log {
    format: LogFormat,
    target: LogTarget,
}

impl Log {
    /// Starts the log of this process. `SQLREPL_LOG` says which lines before the settings do. Only
    /// a daemon writes anywhere else than to the standard error: what other commands say of
    /// themselves is for who started them, and their standard output holds what was asked for.
    ///
    /// # Errors
    /// `Disk` if the log file cannot be opened.
    pub(crate) fn start(settings: &LogSettings, is_daemon: bool) -> Result<Self> {
        let target = match &settings.target {
            // It ends with the shell that it is of.
            LogTarget::Stdout if background::is_this() => LogTarget::Stderr,
            target if is_daemon => target.clone(),
            _ => LogTarget::Stderr,
        };
        // fuser logs each reply to a reader that was killed as an error, and the S3 client warns of
        // each place that has no credentials.
        let ours = match settings.level.parse::<LevelFilter>() {
            Ok(level) => format!("error,fuser=off,sqlrepl={level}"),
            Err(_) => format!("fuser=off,{}", settings.level),
        };
        let filter =
            EnvFilter::try_from_env("SQLREPL_LOG").unwrap_or_else(|_| EnvFilter::new(ours));
        let (writer, is_terminal) = writer(&target)?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer)
            .with_ansi(is_terminal)
            .with_target(false)
            // It would say so on the standard error, and panic where that is a closed terminal.
            .log_internal_errors(false);
        match settings.format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(Self {
            format: settings.format,
            target,
        })
    }

    /// Says why the program failed: on the standard error, as that looks, and in a log elsewhere.
    pub(crate) fn last_words(&self, error: &Error) {
        let is_json = self.format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR);
        let is_stderr = self.target == LogTarget::Stderr && !syslog::has_taken_over();
        if is_json || !is_stderr {
            tracing::error!("{error}");
        }
        if !(is_json && is_stderr) {
            // A terminal that is closed has nobody who would miss them.
            writeln!(io::stderr(), "sqlrepl: {error}").ok();
        }
    }
}

/// Writes to the target, and whether that is a terminal.
fn writer(target: &LogTarget) -> Result<(BoxMakeWriter, bool)> {
    match target {
        LogTarget::Stderr if background::is_this() => {
            Ok((BoxMakeWriter::new(syslog::Lines::new()), false))
        }
        LogTarget::Stderr => Ok((BoxMakeWriter::new(io::stderr), io::stderr().is_terminal())),
        LogTarget::Stdout => Ok((BoxMakeWriter::new(io::stdout), io::stdout().is_terminal())),
        LogTarget::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file =
                file.map_err(|e| Error::disk(format!("open log file {}", path.display()), e))?;
            Ok((BoxMakeWriter::new(Mutex::new(file)), false))
        }
    }
}
