//! Which objects a moment needs. Pure.
