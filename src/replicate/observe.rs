//! What the wal-index, the files and our own pins look like.
