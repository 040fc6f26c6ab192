//! Bytes in, text out: UTF-8 decoding of a stream that is cut anywhere.
//!
//! A token may end in the middle of a character, so its bytes can't be turned into text alone. The
//! decoder keeps the unfinished tail (three bytes at most) until the bytes that complete it arrive.

/// Decodes a byte stream into text, whatever the cuts.
///
/// All texts that [`push`](Self::push) and [`finish`](Self::finish) return, joined, equal
/// `String::from_utf8_lossy` of all bytes, joined: bytes that can't be UTF-8 become U+FFFD.
#[derive(Debug, Default, Clone)]
pub struct TextDecoder {
    /// The beginning of a character whose other bytes have not arrived: 0 to 3 bytes.
    pending: Vec<u8>,
}

impl TextDecoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream and returns the text that is now certain. It is empty
    /// while a character is unfinished.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(bytes);
        let mut text = String::with_capacity(joined.len());
        for chunk in joined.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if is_unfinished(invalid, &joined) {
                self.pending = invalid.to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// Ends the stream: U+FFFD if it ended within a character, else the empty string. The decoder
    /// stands at the beginning of a new stream afterwards.
    pub fn finish(&mut self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        self.pending.clear();
        char::REPLACEMENT_CHARACTER.to_string()
    }

    /// Whether bytes wait for the rest of their character.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Whether `invalid`, an invalid chunk of `joined`, is its tail and could still become a character.
fn is_unfinished(invalid: &[u8], joined: &[u8]) -> bool {
    let is_tail = std::ptr::eq(invalid.as_ptr_range().end, joined.as_ptr_range().end);
    is_tail && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_two_halves_comes_out_whole() {
        let mut decoder = TextDecoder::new();
        let smile = "😊".as_bytes();
        assert_eq!(decoder.push(&smile[..3]), "");
        assert!(decoder.is_pending());
        assert_eq!(decoder.push(&smile[3..]), "😊");
        assert!(!decoder.is_pending());
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn what_never_completes_is_one_replacement_character() {
        let mut decoder = TextDecoder::new();
        assert_eq!(decoder.push(b"a\xf0\x9f\x98"), "a");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
        assert_eq!(decoder.push(b"\xe6\x97"), "");
        assert_eq!(decoder.push(b"b"), "\u{fffd}b");
    }

    #[test]
    fn bytes_that_are_never_utf8_do_not_wait() {
        let mut decoder = TextDecoder::new();
        assert_eq!(decoder.push(b"\xff\xc0x\x80"), "\u{fffd}\u{fffd}x\u{fffd}");
        assert!(!decoder.is_pending());
    }
}
