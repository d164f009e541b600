//! How the allocator gives memory back.

/// Has memory go back to the system soon after it is freed, for as long as the process lives.
///
/// Of itself glibc takes a large allocation that is freed for a sign that more of this size, up to
/// 32 MiB, will come, and from then on each of 8 heaps a core keeps as much: a daemon that had
/// 39 MB in use at most came to 105 MB.
pub(super) fn give_back_what_is_free() {
    #[cfg(target_env = "gnu")]
    {
        /// From this size on, bytes, allocations are mapped by themselves, and heaps give back what
        /// is free at their end. Smaller ones come too often: to ask the system each time costs.
        const LARGE: libc::c_int = 256 << 10;
        /// Threads are many, and mostly wait.
        const HEAPS: libc::c_int = 2;
        // SAFETY: they set numbers in the allocator, and no other thread runs yet. Should one
        // fail, the process takes more memory.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        }
    }
}
