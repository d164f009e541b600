//! The capture against real SQLite in other processes.

mod downtimes;
mod neighbours;
mod ordinary;
mod pins;
mod stress;
mod world;
