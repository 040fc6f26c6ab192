//! Random texts for the tests of tokenizers.

use proptest::prelude::*;

/// Texts of the kinds that pre-tokenizers tell apart.
pub fn texts() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "[a-zA-Z]{1,12}",
        "[0-9]{1,9}",
        "[ \t\n\r\u{a0}\u{3000}]{1,6}",
        "[!-/:-@]{1,5}",
        "['][a-zA-Z]{1,3}",
        "\\PC{1,4}",
        any::<String>(),
        Just("<|endoftext|>".to_owned()),
    ];
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}
