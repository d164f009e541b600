//! Where maintenance makes its objects: the replica, a local directory, and who writes.

use crate::config::Environment;
use crate::error::{Error, Result};
use crate::format::ids::{ObjectHash, ObjectId, WriterId};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::kept::Kept;
use crate::storage::put::{self, Stored};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempPath;

/// What the making of an object needs.
#[derive(Clone)]
pub struct Workshop {
    /// The replica.
    pub store: Arc<dyn Store>,
    /// Where objects lie until they are stored; what it holds may go at any start.
    pub directory: PathBuf,
    /// Randomness.
    pub environment: Environment,
    /// Who writes.
    pub writer: WriterId,
    /// Where what was made stays for a while, to be read again.
    pub kept: Option<Arc<Kept>>,
}

/// The file of an object that is being made. It goes when it is stored, or given up.
pub(super) struct Draft {
    pub(super) id: ObjectId,
    pub(super) file: TempPath,
}

/// Where an object is written.
pub(super) type Out = BufWriter<File>;

impl Workshop {
    /// Begins an object.
    ///
    /// # Errors
    /// `Disk`; `Unavailable` if there is no randomness.
    pub(super) fn draft(&self) -> Result<(Draft, Out)> {
        let failed = |path: &Path, e| Error::disk(format!("create {}", path.display()), e);
        fs::create_dir_all(&self.directory).map_err(|e| failed(&self.directory, e))?;
        let id = ObjectId(self.environment.draw()?);
        let path = self.directory.join(format!("{id}.new"));
        let out = File::create(&path).map_err(|e| failed(&path, e))?;
        let file = TempPath::try_from_path(path.clone()).map_err(|e| failed(&path, e))?;
        let out = BufWriter::with_capacity(256 << 10, out);
        Ok((Draft { id, file }, out))
    }

    /// Stores an object that is written; its file, which goes when it is dropped.
    ///
    /// # Errors
    /// `Disk`, `Unavailable`; `Conflict` if another object has the key.
    pub(super) async fn store(
        &self,
        draft: Draft,
        out: Out,
        key: &str,
        hash: &ObjectHash,
    ) -> Result<TempPath> {
        let file = close(draft, out).await?;
        self.put(&file, key, hash).await?;
        Ok(file)
    }

    /// Stores the object in a file.
    ///
    /// # Errors
    /// As [`Workshop::store`].
    pub(super) async fn put(&self, file: &Path, key: &str, hash: &ObjectHash) -> Result<()> {
        match put::put_object(&*self.store, key, file, hash).await? {
            Stored::Now(_) | Stored::Before => Ok(()),
            Stored::Taken => Err(put::taken(&*self.store, key)),
        }
    }

    /// Keeps what was stored, to be read again. To lose it costs requests, and nothing else.
    pub(super) async fn keep(&self, key: String, file: TempPath) {
        let Some(kept) = self.kept.clone() else {
            return;
        };
        let keeping = blocking(move || kept.keep(&key, &file)).await;
        if let Err(e) = keeping {
            tracing::debug!("{e}");
        }
    }
}

/// The file of an object that is written, fsynced.
///
/// # Errors
/// `Disk`.
pub(super) async fn close(draft: Draft, out: Out) -> Result<TempPath> {
    let file = draft.file;
    blocking(move || sync(out, &file).map(|()| file)).await
}

fn sync(out: Out, path: &Path) -> Result<()> {
    let synced = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    synced
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::disk(format!("write {}", path.display()), e))
}
