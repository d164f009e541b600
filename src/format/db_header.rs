//! The fields of SQLite's database header that we need (fileformat2, "The Database Header").
