//! The `sqlrepl` program.

fn main() {}
