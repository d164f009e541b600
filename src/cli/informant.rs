//! Which daemon of this machine writes a replica that is mounted here, and what it says of that.

use crate::cli::replicate::host;
use sqlrepl::config::default_meta_path;
use sqlrepl::config::location::Location;
use sqlrepl::config::settings::Settings;
use sqlrepl::daemon::control;
use sqlrepl::error::Result;
use sqlrepl::format::claim::Claim;
use sqlrepl::mount::discover::{Informants, Part, Place};
use sqlrepl::storage::changes::Mark;
use sqlrepl::storage::informed::{Informant, News};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The daemons of this machine.
#[derive(Debug)]
pub(crate) struct Daemons {
    /// Where the stores of each source lie.
    places: Vec<Vec<Location>>,
    spools: Arc<Spools>,
}

/// Where they keep their spools.
#[derive(Debug)]
struct Spools {
    host: String,
    /// By database, as far as a config file says so.
    known: HashMap<PathBuf, PathBuf>,
}

/// The daemon that may write one replica.
struct Daemon {
    replica: String,
    spools: Arc<Spools>,
}

impl Daemons {
    /// Those that may write what lies at these places: a list for each source, of its stores.
    pub(crate) fn known(places: Vec<Vec<Location>>, settings: Option<&Settings>) -> Arc<Self> {
        let databases = settings.into_iter().flat_map(|known| &known.databases);
        let captures = databases.map(|database| &database.capture);
        let known = captures.map(|it| (it.database.clone(), it.meta_path.clone()));
        Arc::new(Self {
            places,
            spools: Arc::new(Spools {
                host: host(),
                known: known.collect(),
            }),
        })
    }
}

impl Informants for Daemons {
    fn of(&self, place: &Place) -> Option<Arc<dyn Informant>> {
        let source = self.places.get(place.source)?;
        let location = match &place.part {
            Part::Whole => source.first()?.clone(),
            Part::Folder(folder) => source.first()?.below(folder),
            Part::Replica(n) => source.get(*n)?.clone(),
        };
        Some(Arc::new(Daemon {
            replica: location.identity(),
            spools: self.spools.clone(),
        }))
    }
}

impl Spools {
    /// That of the daemon that a claim names, if that runs here.
    fn of(&self, claim: &Claim) -> Option<PathBuf> {
        if claim.host != self.host {
            return None;
        }
        let database = Path::new(&claim.path);
        let known = self.known.get(database).cloned();
        let beside = || database.is_absolute().then(|| default_meta_path(database));
        known.or_else(beside)
    }
}

#[async_trait::async_trait]
impl Informant for Daemon {
    async fn news(&self, claim: &Claim, since: Option<Mark>) -> Result<Option<News>> {
        match self.spools.of(claim) {
            Some(meta_path) => control::news(&meta_path, &self.replica, since).await,
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlrepl::format::ids::{DatabaseId, GenerationId, Timestamp, WriterId};

    fn claim(host: &str, path: &str) -> Claim {
        Claim {
            generation: GenerationId {
                ordinal: 1,
                random: 2,
            },
            database_id: DatabaseId([1; 16]),
            writer_id: WriterId([2; 8]),
            parent: None,
            host: host.to_owned(),
            path: path.to_owned(),
            started: Timestamp::from_micros(1),
            reason: "first start".to_owned(),
        }
    }

    #[test]
    fn the_spool_is_where_the_config_file_says_or_beside_the_database() {
        let spools = Spools {
            host: "here".to_owned(),
            known: HashMap::from([("/data/app.db".into(), "/spools/app".into())]),
        };
        let of = |host, path| spools.of(&claim(host, path));
        assert_eq!(of("here", "/data/app.db"), Some("/spools/app".into()));
        let beside = "/data/.shop.db-sqlrepl";
        assert_eq!(of("here", "/data/shop.db"), Some(beside.into()));
        assert_eq!(of("elsewhere", "/data/app.db"), None);
        assert_eq!(of("here", "shop.db"), None);
    }
}
