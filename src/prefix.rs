//! The prefix cache: pages of earlier requests, kept for the next one that begins with the same tokens.
//!
//! Whole pages that two sequences have in common are shared. The page in which they part is copied, since both go on writing behind
//! that place. A sequence that goes on from where a kept one has ended takes it over, and nothing is copied.

use crate::device::{PAGE_TOKENS, PageId};
use crate::limits;
use crate::pages::{PagePool, PageTable, PoolExhausted, pages_for};

/// Sequences whose keys and values are in the pool although nobody works on them.
#[derive(Debug, Default)]
pub struct PrefixCache {
    /// Least recently used first.
    kept: Vec<Kept>,
}

/// A sequence that the device has seen.
#[derive(Debug)]
struct Kept {
    tokens: Vec<u32>,
    pages: PageTable,
    /// Who has left it, or its beginning: names, and how many tokens are theirs; the newest last.
    labels: Vec<(String, usize)>,
}

impl Kept {
    fn name(&mut self, label: &str, tokens: usize) {
        self.labels.retain(|(name, _)| name != label);
        if self.labels.len() >= limits::PREFIX_LABELS_MAX {
            self.labels.remove(0);
        }
        self.labels.push((label.to_owned(), tokens));
    }
}

/// A sequence that is kept, or its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// The pages that hold them, and perhaps further ones.
    pub pages: &'a PageTable,
}

/// What a new sequence starts with.
#[derive(Debug, Default)]
pub struct Reused {
    /// Tokens of the prompt that the device need not see again.
    pub tokens: usize,
    /// Pages that hold them.
    pub pages: PageTable,
    /// The last of these pages is still empty: `from` has to be copied to `to` before anything else is done.
    pub copy: Option<PageCopy>,
}

/// A page to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// What is copied.
    pub from: PageId,
    /// Where to.
    pub to: PageId,
}

impl PrefixCache {
    /// Finds what is kept of a prompt. At least its last token is left to be seen, since something has to follow from it.
    pub fn begin(&mut self, pool: &mut PagePool, prompt: &[u32]) -> Reused {
        let usable = prompt.get(..prompt.len().saturating_sub(1));
        let usable = usable.unwrap_or_default();
        let common = |kept: &Kept| common_prefix(&kept.tokens, usable);
        let best = (0..self.kept.len()).max_by_key(|at| self.kept.get(*at).map(common));
        let Some(mut kept) = best.map(|at| self.kept.remove(at)) else {
            return Reused::default();
        };
        let tokens = common(&kept);
        if tokens == kept.tokens.len() {
            return Reused {
                tokens,
                pages: std::mem::take(&mut kept.pages),
                copy: None,
            };
        }
        let reused = self.branch(pool, &kept, tokens);
        let place = if reused.tokens == 0 {
            best.unwrap_or(0)
        } else {
            self.kept.len()
        };
        self.kept.insert(place, kept);
        reused
    }

    /// A sequence that shares the first `tokens` tokens with a kept one, which stays as it is.
    fn branch(&mut self, pool: &mut PagePool, kept: &Kept, tokens: usize) -> Reused {
        let whole = tokens / PAGE_TOKENS;
        let mut pages = pool.share(&kept.pages, whole);
        let begun = kept.pages.as_slice().get(whole).copied();
        let begun = begun.filter(|_| !tokens.is_multiple_of(PAGE_TOKENS));
        // The page may be worth less than another sequence's that goes for it, but that one is older. Without room for it the whole
        // pages are what is left.
        let copy = begun.filter(|_| self.extend(pool, &mut pages).is_ok());
        let copy = copy.zip(pages.as_slice().last().copied());
        Reused {
            tokens: copy.map_or(whole * PAGE_TOKENS, |_| tokens),
            copy: copy.map(|(from, to)| PageCopy { from, to }),
            pages,
        }
    }

    /// Appends a page to a table, whatever has to be forgotten for it.
    fn extend(&mut self, pool: &mut PagePool, table: &mut PageTable) -> Result<(), PoolExhausted> {
        while pool.free() == 0 && self.evict(pool) {}
        pool.extend(table)
    }

    /// Keeps a sequence of which the device has seen `tokens`. What is a part of it is kept with it, and it is not kept where it is
    /// a part of another.
    pub fn keep(&mut self, pool: &mut PagePool, tokens: &[u32], mut pages: PageTable, label: &str) {
        pool.truncate(&mut pages, pages_for(tokens.len()));
        if tokens.is_empty() {
            return pool.give_back(pages);
        }
        if let Some(at) = self.kept.iter().position(|k| k.tokens.starts_with(tokens)) {
            pool.give_back(pages);
            let mut longer = self.kept.remove(at);
            longer.name(label, tokens.len());
            return self.kept.push(longer);
        }
        let mut at = 0;
        while let Some(kept) = self.kept.get(at) {
            if tokens.starts_with(&kept.tokens) {
                pool.give_back(self.kept.remove(at).pages);
            } else {
                at += 1;
            }
        }
        if self.kept.len() >= limits::PREFIXES_MAX {
            self.evict(pool);
        }
        let labels = vec![(label.to_owned(), tokens.len())];
        let tokens = tokens.to_vec();
        self.kept.push(Kept {
            tokens,
            pages,
            labels,
        });
    }

    /// The sequence that was kept last under this label.
    pub fn find_label(&self, label: &str) -> Option<Found<'_>> {
        self.kept.iter().rev().find_map(|kept| {
            let (_, tokens) = kept.labels.iter().find(|(name, _)| name == label)?;
            Some(Found {
                tokens: kept.tokens.get(..*tokens)?,
                pages: &kept.pages,
            })
        })
    }

    /// As much as is kept of the beginning of `tokens`; `None` where that is nothing.
    pub fn find_tokens(&self, tokens: &[u32]) -> Option<Found<'_>> {
        let common = |kept: &&Kept| common_prefix(&kept.tokens, tokens);
        let kept = self.kept.iter().max_by_key(common)?;
        let tokens = kept.tokens.get(..common(&kept)).unwrap_or_default();
        (!tokens.is_empty()).then_some(Found {
            tokens,
            pages: &kept.pages,
        })
    }

    /// Makes a sequence `tokens` long, whatever has to be forgotten for it.
    ///
    /// # Errors
    ///
    /// The pool is smaller than that.
    pub fn grow(
        &mut self,
        pool: &mut PagePool,
        table: &mut PageTable,
        tokens: usize,
    ) -> Result<(), PoolExhausted> {
        while table.as_slice().len() < pages_for(tokens) {
            self.extend(pool, table)?;
        }
        Ok(())
    }

    /// Forgets the sequence that was used least recently; `false` where there is none.
    fn evict(&mut self, pool: &mut PagePool) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        pool.give_back(self.kept.remove(0).pages);
        true
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with these sequences in it, each as if the device had seen it.
    fn cache(pages: usize, sequences: &[&[u32]]) -> (PrefixCache, PagePool) {
        let (mut cache, mut pool) = (PrefixCache::default(), PagePool::new(pages));
        for tokens in sequences {
            let mut table = PageTable::default();
            cache.grow(&mut pool, &mut table, tokens.len()).unwrap();
            cache.keep(&mut pool, tokens, table, "");
        }
        (cache, pool)
    }

    fn sequence(head: u32, len: usize) -> Vec<u32> {
        let mut tokens = vec![head; len];
        tokens[len - 1] = 1;
        tokens
    }

    #[test]
    fn who_says_the_same_again_is_known_by_its_own_name() {
        let first = sequence(7, 300);
        let (mut cache, mut pool) = cache(4, &[&first]);
        for name in ["again", "once more"] {
            let reused = cache.begin(&mut pool, &first[..260]);
            cache.keep(&mut pool, &first[..260], reused.pages, name);
            let found = cache.find_label(name).map(|found| found.tokens.len());
            assert_eq!(found, Some(260), "{name}");
        }
        for n in 0..2 * limits::PREFIX_LABELS_MAX {
            let reused = cache.begin(&mut pool, &first);
            cache.keep(&mut pool, &first, reused.pages, &n.to_string());
        }
        assert!(
            cache.find_label("again").is_none(),
            "names are forgotten, too"
        );
    }

    #[test]
    fn who_goes_on_takes_the_pages_over() {
        let first = sequence(7, 300);
        let (mut cache, mut pool) = cache(4, &[&first]);
        let longer = [&first[..], &[8, 9]].concat();
        let reused = cache.begin(&mut pool, &longer);
        assert_eq!((reused.tokens, reused.copy), (300, None));
        assert_eq!(reused.pages.as_slice(), [PageId(0), PageId(1)]);
        assert_eq!(
            cache.begin(&mut pool, &longer).tokens,
            0,
            "it is gone from the cache"
        );
        cache.keep(&mut pool, &longer, reused.pages, "a");
        assert_eq!(
            cache.find_label("a").map(|found| found.tokens.len()),
            Some(302)
        );
        assert!(cache.find_label("b").is_none());
        assert_eq!(
            cache
                .find_tokens(&first[..10])
                .map(|found| found.tokens.len()),
            Some(10)
        );
        assert!(cache.find_tokens(&[8, 9]).is_none());
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn who_parts_shares_whole_pages_and_copies_the_last() {
        let first = sequence(7, 600);
        let (mut cache, mut pool) = cache(8, &[&first]);
        let mut other = first.clone();
        other[520] = 3;
        let reused = cache.begin(&mut pool, &other);
        assert_eq!(reused.tokens, 520);
        assert_eq!(reused.pages.as_slice(), [PageId(0), PageId(1), PageId(3)]);
        let copy = PageCopy {
            from: PageId(2),
            to: PageId(3),
        };
        assert_eq!(reused.copy, Some(copy));
        cache.keep(&mut pool, &other, reused.pages, "");
        for tokens in [&first, &other] {
            let reused = cache.begin(&mut pool, tokens);
            assert_eq!(
                reused.tokens, 599,
                "both are kept, and the last token is left"
            );
            pool.give_back(reused.pages);
        }
    }

    #[test]
    fn parting_at_the_end_of_a_page_copies_nothing() {
        let first = sequence(7, 600);
        let (mut cache, mut pool) = cache(8, &[&first]);
        let mut other = first.clone();
        other[512] = 3;
        let reused = cache.begin(&mut pool, &other);
        assert_eq!((reused.tokens, reused.copy), (512, None));
        assert_eq!(pool.free(), 5);
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let (a, b, c) = (sequence(2, 200), sequence(3, 200), sequence(4, 600));
        let (mut cache, mut pool) = cache(4, &[&a, &b]);
        let reused = cache.begin(&mut pool, &a);
        assert_eq!(reused.tokens, 199);
        pool.give_back(reused.pages);
        let mut table = PageTable::default();
        cache.grow(&mut pool, &mut table, c.len()).unwrap();
        assert_eq!(cache.begin(&mut pool, &b).tokens, 0, "b was older than a");
        let reused = cache.begin(&mut pool, &a);
        assert_eq!(
            reused.tokens, 0,
            "there was no room for the copy of its page, and then it went too"
        );
        assert!(cache.grow(&mut pool, &mut table, 5 * PAGE_TOKENS).is_err());
    }

    #[test]
    fn a_part_of_another_is_not_kept_twice() {
        let long = sequence(7, 600);
        let (mut cache, mut pool) = cache(8, &[&long[..100], &long, &long[..300]]);
        assert_eq!(pool.free(), 5);
        let reused = cache.begin(&mut pool, &long[..301]);
        assert_eq!(reused.tokens, 300);
        pool.give_back(reused.pages);
        assert_eq!(pool.free(), 5);
    }
}
