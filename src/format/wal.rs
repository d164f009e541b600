//! SQLite's WAL: header, frames and the running checksum (fileformat2, "The Write-Ahead Log").
