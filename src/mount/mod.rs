//! Replicas as a read-only file system.
