//! Which config file is in force, and `sqlrepl config`.

use crate::cli::args;
use crate::cli::say;
use sqlrepl::config::file::load;
use sqlrepl::config::location::Location;
use sqlrepl::config::print::{as_json, as_toml};
use sqlrepl::config::settings::{LogSettings, Settings};
use sqlrepl::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The config file when no other is named.
const DEFAULT_FILE: &str = "/etc/sqlrepl.toml";

/// The config file and what came of it.
pub(crate) struct Config {
    file: PathBuf,
    found: Found,
    complained: Once,
}

enum Found {
    Settings(Settings),
    /// There is no default file.
    Nothing,
    /// The default file is wrong, or not ours to read. A command that does not need it goes on:
    /// nothing should stand between a user and the restore of a replica.
    Unusable(String),
}

impl Config {
    /// The file of the option, else of `SQLREPL_CONFIG`, else the default one.
    ///
    /// # Errors
    /// `Invalid` if the file was named and is wrong, or not there.
    pub(crate) fn find(option: Option<&Path>) -> Result<Self> {
        let variable = std::env::var_os("SQLREPL_CONFIG").filter(|name| !name.is_empty());
        match option.map(Path::to_owned).or(variable.map(PathBuf::from)) {
            Some(file) => {
                let found = Found::Settings(load(&file, &environment)?);
                Ok(Self::new(file, found))
            }
            None => Ok(Self::unnamed(Path::new(DEFAULT_FILE))),
        }
    }

    /// No file at all.
    pub(crate) fn none() -> Self {
        Self::new(DEFAULT_FILE.into(), Found::Nothing)
    }

    /// A file that nobody asked for.
    fn unnamed(file: &Path) -> Self {
        let found = match (file.try_exists(), load(file, &environment)) {
            (Ok(false), _) => Found::Nothing,
            (_, Ok(settings)) => Found::Settings(settings),
            (_, Err(e)) => Found::Unusable(e.to_string()),
        };
        Self::new(file.to_owned(), found)
    }

    fn new(file: PathBuf, found: Found) -> Self {
        Self {
            file,
            found,
            complained: Once::new(),
        }
    }

    /// What the file says, for a command that cannot do without.
    ///
    /// # Errors
    /// `Invalid`, with what to do.
    pub(crate) fn settings(&self) -> Result<&Settings> {
        match &self.found {
            Found::Settings(settings) => Ok(settings),
            Found::Unusable(why) => Err(Error::invalid(why)),
            Found::Nothing => Err(Error::invalid(format!(
                "there is no config file: write {}, or name one with --config or SQLREPL_CONFIG",
                self.file.display()
            ))),
        }
    }

    /// What the file says, for a command that can do without.
    pub(crate) fn known(&self) -> Option<&Settings> {
        match &self.found {
            Found::Settings(settings) => Some(settings),
            Found::Nothing => None,
            Found::Unusable(why) => {
                self.complained
                    .call_once(|| tracing::warn!("going on without the config file: {why}"));
                None
            }
        }
    }

    /// How to log.
    pub(crate) fn log(&self) -> LogSettings {
        match &self.found {
            Found::Settings(settings) => settings.log.clone(),
            Found::Nothing | Found::Unusable(_) => LogSettings::default(),
        }
    }

    /// A place of the command line. The file's access key is for buckets named here, too, and the
    /// environment's endpoint.
    ///
    /// # Errors
    /// As [`Location::parse`].
    pub(crate) fn location(&self, place: &str) -> Result<Location> {
        let mut location = Location::parse(place)?;
        if let Location::S3(bucket) = &mut location {
            bucket.take_endpoint(&environment)?;
            bucket.credentials = self.known().and_then(|known| known.credentials.clone());
        }
        Ok(location)
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(crate) fn run(args: &args::Config, config: &Config) -> Result<()> {
    let defaults = Settings::default();
    let (settings, heading) = match &config.found {
        Found::Nothing if !args.check => (
            &defaults,
            format!("no config file: {}", config.file.display()),
        ),
        _ => (config.settings()?, config.file.display().to_string()),
    };
    if args.json {
        return say(&json(settings).to_string());
    }
    let mut text = format!("# {heading}\n");
    if settings.max_spool_size.is_none() {
        text.push_str("# max-spool-size: a tenth of the free space, at most 10GiB\n");
    }
    text.push_str(&as_toml(settings));
    say(text.trim_end())
}

fn json(settings: &Settings) -> serde_json::Value {
    let mut shown = as_json(settings);
    shown["file"] = settings
        .file
        .as_ref()
        .map_or(serde_json::Value::Null, |file| {
            file.display().to_string().into()
        });
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_default_file_that_is_not_there_is_missed_only_by_who_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sqlrepl.toml");
        let config = Config::unnamed(&file);
        assert!(config.known().is_none());
        assert_eq!(config.log(), LogSettings::default());
        assert_eq!(
            config.settings().unwrap_err().to_string(),
            format!(
                "there is no config file: write {}, or name one with --config or SQLREPL_CONFIG",
                file.display()
            )
        );
    }

    #[test]
    fn a_default_file_that_is_wrong_stops_only_who_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sqlrepl.toml");
        fs::write(&file, "[log]\nlevel = \"debug\"\n").unwrap();
        let config = Config::unnamed(&file);
        assert!(config.settings().is_ok());
        assert_eq!(config.log().level, "debug");
        fs::write(&file, "x = 1").unwrap();
        let config = Config::unnamed(&file);
        assert!(config.known().is_none());
        let said = config.settings().unwrap_err().to_string();
        assert!(said.contains("sqlrepl.toml:1: "), "{said}");
        assert!(config.location("s3://bucket/a").is_ok());
    }

    #[test]
    fn a_bucket_on_the_command_line_is_opened_with_the_access_key_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sqlrepl.toml");
        fs::write(&file, "access-key-id = \"a\"\nsecret-access-key = \"b\"\n").unwrap();
        let location = Config::unnamed(&file).location("s3://bucket/a").unwrap();
        let Location::S3(bucket) = location else {
            panic!("{location:?}");
        };
        assert_eq!(bucket.credentials.unwrap().access_key_id, "a");
    }
}
