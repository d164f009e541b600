//! The capture against real SQLite in other processes.

mod neighbours;
mod ordinary;
mod pins;
mod stress;
mod world;
