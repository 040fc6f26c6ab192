//! Stop strings: text flows through and is held back only while it may still turn out to begin one.

/// Finds the first of several stop strings in a text that arrives in pieces of any size.
///
/// Of all occurrences the one that ends first counts, and of those that end together the longest: the only rule that a
/// reader of a stream and a reader of the whole text can both apply. What comes before it has been given out, nothing of
/// it or after it ever is.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may begin a stop string: the longest suffix of all text so far that is a proper prefix of one.
    held: String,
}

impl StopMatcher {
    /// A matcher for `stops`; empty ones never match.
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece of text and appends to `out` what can no longer be part of a stop string. `Some(i)` says that
    /// stop string number `i` is complete; the text ends there, and nothing more is to be pushed.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        self.held.push_str(text);
        if let Some((start, index)) = self.first_match() {
            out.push_str(self.held.get(..start).unwrap_or_default());
            self.held.clear();
            return Some(index);
        }
        let keep_from = self.keep_from();
        out.extend(self.held.drain(..keep_from));
        None
    }

    /// What is held back, for a generation that ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the match that counts begins, and which stop string it is.
    fn first_match(&self) -> Option<(usize, usize)> {
        let matches = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty());
        let matches = matches.filter_map(|(i, stop)| {
            self.held
                .find(stop)
                .map(|start| (start + stop.len(), start, i))
        });
        matches.min().map(|(_, start, i)| (start, i))
    }

    /// Where the longest suffix begins that is a proper prefix of a stop string; the length of `held` where there is none.
    fn keep_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let begins_a_stop = |suffix: &str| self.stops.iter().any(|stop| stop.starts_with(suffix));
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .skip_while(|at| self.held.len() - at >= longest)
            .find(|&at| begins_a_stop(self.held.get(at..).unwrap_or_default()))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each push's output, the match and the rest.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>, String) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut given = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let found = matcher.push(piece, &mut out);
            given.push(out);
            if found.is_some() {
                return (given, found, matcher.finish());
            }
        }
        (given, None, matcher.finish())
    }

    #[test]
    fn a_stop_string_across_three_pieces() {
        let (given, found, rest) = run(&["<end>"], &["one <", "en", "d> two"]);
        assert_eq!(
            (given.join("|").as_str(), found, rest.as_str()),
            ("one ||", Some(0), "")
        );
    }

    #[test]
    fn text_that_only_began_like_one_comes_out_later() {
        let (given, found, rest) = run(&["<end>"], &["a <", "en", "t <e"]);
        assert_eq!(
            (given.join("|").as_str(), found, rest.as_str()),
            ("a ||<ent ", None, "<e")
        );
    }

    #[test]
    fn the_first_to_be_complete_counts() {
        assert_eq!(run(&["abc", "ab"], &["xabc"]).1, Some(1));
        assert_eq!(
            run(&["bcd", "c"], &["abcd"]),
            (vec!["ab".into()], Some(1), String::new())
        );
        assert_eq!(
            run(&["c", "bc"], &["abcd"]),
            (vec!["a".into()], Some(1), String::new())
        );
    }

    #[test]
    fn a_false_start_may_hide_the_real_one() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0.concat(), "a");
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        assert_eq!(
            run(&[], &["ab", "é"]),
            (vec!["ab".into(), "é".into()], None, String::new())
        );
        assert_eq!(
            run(&[""], &["ab"]),
            (vec!["ab".into()], None, String::new())
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            text in "[abé<]{0,40}",
            stops in proptest::collection::vec("[abé<]{1,5}", 0..4),
            cuts in proptest::collection::vec(0usize..40, 0..10),
        ) {
            let mut whole = StopMatcher::new(stops.clone());
            let mut want = String::new();
            let want_found = whole.push(&text, &mut want);
            want.push_str(&whole.finish());

            let mut split = StopMatcher::new(stops.clone());
            let mut got = String::new();
            let mut got_found = None;
            let mut bounds: Vec<usize> = cuts.into_iter().filter(|c| text.is_char_boundary(*c) && *c <= text.len()).collect();
            bounds.push(text.len());
            bounds.sort_unstable();
            let mut from = 0;
            for to in bounds {
                got_found = split.push(&text[from..to], &mut got);
                from = to;
                if got_found.is_some() {
                    break;
                }
            }
            got.push_str(&split.finish());
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(got_found, want_found);
            for stop in &stops {
                prop_assert!(!got.contains(stop.as_str()));
            }
            prop_assert!(text.starts_with(&got));
            if want_found.is_none() {
                prop_assert_eq!(got, text);
            }
        }
    }
}
