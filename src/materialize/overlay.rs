//! The page versions of many segments, laid over a map.
