//! The capture against real SQLite in other processes.

mod downtimes;
mod many;
mod neighbours;
mod ordinary;
mod pins;
mod stress;
mod world;
