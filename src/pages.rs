//! Who holds which page of the device's KV pool: written here, on the host, so that no device owns it.
//!
//! A page may be held by several tables at once, as long as none of them writes to it any more.

use crate::device::{PAGE_TOKENS, PageId};

/// Which pages are free, and how many tables hold each of the others.
#[derive(Debug)]
pub struct PagePool {
    /// Lowest ids last, so that they are taken first.
    free: Vec<PageId>,
    /// Tables that hold each page.
    holders: Vec<u32>,
}

/// The pages of one sequence, in order: position `p` lies in page number `p / PAGE_TOKENS`. It has to go back to its pool.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<PageId>,
}

/// The pool has no free page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all KV pages are held")]
pub struct PoolExhausted;

/// Pages that so many tokens need.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

impl PagePool {
    /// A pool of `pages` pages, all free.
    pub fn new(pages: usize) -> Self {
        let ids = (0..u32::try_from(pages).unwrap_or(u32::MAX))
            .rev()
            .map(PageId);
        Self {
            free: ids.collect(),
            holders: vec![0; pages],
        }
    }

    /// Appends a free page to a table.
    ///
    /// # Errors
    ///
    /// No page is free.
    pub fn extend(&mut self, table: &mut PageTable) -> Result<(), PoolExhausted> {
        let page = self.free.pop().ok_or(PoolExhausted)?;
        if let Some(holders) = self.holders.get_mut(page.0 as usize) {
            *holders = 1;
        }
        table.pages.push(page);
        Ok(())
    }

    /// A second table that holds the first `pages` pages of another one.
    pub fn share(&mut self, table: &PageTable, pages: usize) -> PageTable {
        let shared: Vec<PageId> = table.pages.iter().take(pages).copied().collect();
        for page in &shared {
            if let Some(holders) = self.holders.get_mut(page.0 as usize) {
                *holders += 1;
            }
        }
        PageTable { pages: shared }
    }

    /// Takes back all pages of a table behind the first `pages`.
    pub fn truncate(&mut self, table: &mut PageTable, pages: usize) {
        while table.pages.len() > pages {
            let Some(page) = table.pages.pop() else { break };
            if let Some(holders) = self.holders.get_mut(page.0 as usize) {
                *holders -= 1;
                if *holders == 0 {
                    self.free.push(page);
                }
            }
        }
    }

    /// Takes the pages of a table back.
    pub fn give_back(&mut self, mut table: PageTable) {
        self.truncate(&mut table, 0);
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.holders.len()
    }
}

impl PageTable {
    /// The pages in order.
    pub fn as_slice(&self) -> &[PageId] {
        &self.pages
    }

    /// Makes room for so many pages, so that no step has to.
    pub fn reserve(&mut self, pages: usize) {
        self.pages.reserve(pages.saturating_sub(self.pages.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pool: &mut PagePool, pages: usize) -> PageTable {
        let mut table = PageTable::default();
        for _ in 0..pages {
            pool.extend(&mut table).unwrap();
        }
        table
    }

    #[test]
    fn pages_come_and_go() {
        let mut pool = PagePool::new(3);
        let first = table(&mut pool, 2);
        assert_eq!(first.as_slice(), [PageId(0), PageId(1)]);
        let mut second = table(&mut pool, 1);
        assert_eq!(second.as_slice(), [PageId(2)]);
        assert_eq!(pool.extend(&mut second), Err(PoolExhausted));
        pool.give_back(first);
        assert_eq!(table(&mut pool, 2).as_slice(), [PageId(0), PageId(1)]);
        assert_eq!((pool.free(), pool.total()), (0, 3));
    }

    #[test]
    fn a_shared_page_is_free_when_its_last_holder_lets_go() {
        let mut pool = PagePool::new(3);
        let mut first = table(&mut pool, 3);
        let shared = pool.share(&first, 2);
        assert_eq!(shared.as_slice(), &first.as_slice()[..2]);
        pool.truncate(&mut first, 1);
        assert_eq!(pool.free(), 1, "the second page is held by the other");
        pool.give_back(first);
        assert_eq!(pool.free(), 1);
        pool.give_back(shared);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn tokens_need_whole_pages() {
        for (tokens, pages) in [(0, 0), (1, 1), (PAGE_TOKENS, 1), (PAGE_TOKENS + 1, 2)] {
            assert_eq!(pages_for(tokens), pages);
        }
    }
}
