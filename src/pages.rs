//! Who holds which page of the device's KV pool: written here, on the host, so that no device owns it.

use crate::device::{PAGE_TOKENS, PageId};

/// The pages that nobody holds.
#[derive(Debug)]
pub struct PagePool {
    /// Lowest ids last, so that they are taken first.
    free: Vec<PageId>,
    total: usize,
}

/// The pages of one sequence, in order: position `p` lies in page number `p / PAGE_TOKENS`.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<PageId>,
}

/// The pool has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} KV pages of {PAGE_TOKENS} tokens are needed, {free} of {total} are free")]
pub struct PoolExhausted {
    /// Pages asked for.
    pub wanted: usize,
    /// Pages free.
    pub free: usize,
    /// Pages in all.
    pub total: usize,
}

impl PagePool {
    /// A pool of `pages` pages, all free.
    pub fn new(pages: usize) -> Self {
        let ids = (0..u32::try_from(pages).unwrap_or(u32::MAX))
            .rev()
            .map(PageId);
        Self {
            free: ids.collect(),
            total: pages,
        }
    }

    /// Takes what `tokens` positions need.
    ///
    /// # Errors
    ///
    /// Fewer pages are free; then none is taken.
    pub fn take(&mut self, tokens: usize) -> Result<PageTable, PoolExhausted> {
        let wanted = tokens.div_ceil(PAGE_TOKENS);
        match self.free.len().checked_sub(wanted) {
            Some(rest) => Ok(PageTable {
                pages: self.free.drain(rest..).rev().collect(),
            }),
            None => Err(PoolExhausted {
                wanted,
                free: self.free.len(),
                total: self.total,
            }),
        }
    }

    /// Takes the pages of a table back.
    pub fn give_back(&mut self, table: PageTable) {
        self.free.extend(table.pages.into_iter().rev());
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}

impl PageTable {
    /// The pages in order.
    pub fn as_slice(&self) -> &[PageId] {
        &self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go() {
        let mut pool = PagePool::new(3);
        let first = pool.take(PAGE_TOKENS + 1).unwrap();
        assert_eq!(first.as_slice(), [PageId(0), PageId(1)]);
        let err = pool.take(2 * PAGE_TOKENS).unwrap_err();
        assert_eq!(
            err,
            PoolExhausted {
                wanted: 2,
                free: 1,
                total: 3
            }
        );
        assert_eq!(pool.take(1).unwrap().as_slice(), [PageId(2)]);
        pool.give_back(first);
        assert_eq!(
            pool.take(2 * PAGE_TOKENS).unwrap().as_slice(),
            [PageId(0), PageId(1)]
        );
        assert_eq!(pool.free(), 0);
    }
}
