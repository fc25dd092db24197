//! How much memory one instance may hold.

use wasmtime::ResourceLimiter;

/// Sums the bytes of every memory and table of a store. wasmtime's own limits count each memory by itself, so a
/// component with two memories would get twice the limit.
pub(crate) struct Limiter {
    limit: usize,
    used: usize,
    last_growth: usize,
    refused: Option<usize>,
}

impl Limiter {
    pub(crate) fn new(limit: usize) -> Limiter {
        Limiter { limit, used: 0, last_growth: 0, refused: None }
    }

    /// What the guest would have held after a growth that was refused since the last [`Limiter::begin`].
    pub(crate) fn refused(&self) -> Option<usize> {
        self.refused
    }

    pub(crate) fn begin(&mut self) {
        self.refused = None;
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let wanted = self.used.saturating_add(bytes);
        if wanted > self.limit {
            self.refused = Some(wanted);
            return false;
        }
        self.used = wanted;
        self.last_growth = bytes;
        true
    }

    fn undo(&mut self) {
        self.used -= self.last_growth;
        self.last_growth = 0;
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(size_of::<usize>())))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_and_tables_count_together() {
        let mut limiter = Limiter::new(1000);
        assert!(limiter.memory_growing(0, 600, None).expect("no error"));
        assert!(limiter.table_growing(0, 10, None).expect("no error"));
        assert!(!limiter.memory_growing(0, 400, None).expect("no error"));
        assert_eq!(limiter.refused(), Some(600 + 10 * size_of::<usize>() + 400));
        assert!(limiter.memory_growing(600, 900, None).expect("no error"));
    }

    #[test]
    fn a_growth_that_failed_is_given_back() {
        let mut limiter = Limiter::new(1000);
        assert!(limiter.memory_growing(0, 900, None).expect("no error"));
        limiter.memory_grow_failed(wasmtime::Error::msg("no memory")).expect("no error");
        assert!(limiter.memory_growing(0, 1000, None).expect("no error"));
        assert_eq!(limiter.refused(), None);
    }
}
