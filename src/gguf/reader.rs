//! A cursor over the header's bytes that cannot leave them.

use super::error::{GgufError, Place};
use super::{HEADER_BYTES_MAX, check_limit};

/// Reads little-endian numbers and strings one after another; every read says what it is for, so that its error can.
pub(super) struct Reader<'a> {
    /// The bytes that may be header: the file, or its first [`HEADER_BYTES_MAX`].
    bytes: &'a [u8],
    /// Length of the whole file.
    file_bytes: u64,
    /// Bytes read so far; never more than there are.
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `file`.
    pub(super) fn new(file: &'a [u8]) -> Self {
        let header_max = usize::try_from(HEADER_BYTES_MAX).unwrap_or(usize::MAX);
        Self {
            bytes: file.get(..header_max).unwrap_or(file),
            file_bytes: file.len() as u64,
            at: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at as u64
    }

    /// The next `count` items of `item_bytes` each.
    pub(super) fn take(
        &mut self,
        count: u64,
        item_bytes: u64,
        place: Place<'_>,
    ) -> Result<&'a [u8], GgufError> {
        let wanted = count.checked_mul(item_bytes);
        let end = wanted
            .and_then(|n| usize::try_from(n).ok())
            .and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| Some((self.bytes.get(self.at..end)?, end))) {
            Some((taken, end)) => {
                self.at = end;
                Ok(taken)
            }
            None => Err(self.short(wanted.unwrap_or(u64::MAX), place)),
        }
    }

    /// An error unless `count` items of at least `item_bytes_min` each can still follow: to be asked before reserving room for them.
    pub(super) fn expect(
        &self,
        count: u64,
        item_bytes_min: u64,
        place: Place<'_>,
    ) -> Result<(), GgufError> {
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(item_bytes_min) {
            Some(wanted) if wanted <= left => Ok(()),
            wanted => Err(self.short(wanted.unwrap_or(u64::MAX), place)),
        }
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self, place: Place<'_>) -> Result<[u8; N], GgufError> {
        let taken = self.take(N as u64, 1, place)?;
        taken.try_into().map_err(|_| self.short(N as u64, place))
    }

    /// The next four bytes as a number.
    pub(super) fn u32(&mut self, place: Place<'_>) -> Result<u32, GgufError> {
        self.bytes(place).map(u32::from_le_bytes)
    }

    /// The next eight bytes as a number.
    pub(super) fn u64(&mut self, place: Place<'_>) -> Result<u64, GgufError> {
        self.bytes(place).map(u64::from_le_bytes)
    }

    /// The next string: its length in eight bytes, then as many bytes of UTF-8.
    pub(super) fn string(
        &mut self,
        limit: u64,
        limit_name: &'static str,
        place: Place<'_>,
    ) -> Result<&'a str, GgufError> {
        let len = self.u64(place)?;
        check_limit(
            || format!("{place}: the length in bytes"),
            len,
            limit,
            limit_name,
        )?;
        let taken = self.take(len, 1, place)?;
        std::str::from_utf8(taken).map_err(|e| GgufError::NotUtf8 {
            place: place.to_string(),
            valid_up_to: e.valid_up_to(),
        })
    }

    /// The error for bytes that are not there: the file's end is reached, or the header's limit.
    fn short(&self, wanted: u64, place: Place<'_>) -> GgufError {
        let (at, end) = (self.at(), self.at().saturating_add(wanted));
        if end > self.file_bytes {
            let left = self.file_bytes - at;
            return GgufError::Truncated {
                place: place.to_string(),
                at,
                wanted,
                left,
            };
        }
        let what = format!("{place}: the size of the header in bytes");
        GgufError::OverLimit {
            what,
            value: end,
            limit: HEADER_BYTES_MAX,
            name: "HEADER_BYTES_MAX",
        }
    }
}
