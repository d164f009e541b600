//! The capture against real SQLite in other processes.

mod ordinary;
mod stress;
mod world;
