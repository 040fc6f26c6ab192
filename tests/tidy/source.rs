//! The project's files, and Rust sources as tokens and comments: as much of a lexer as the rules need.

use std::path::{Path, PathBuf};

/// A text file of the project.
pub struct File {
    /// From the root of the project, with `/`: "src/gguf/mod.rs".
    pub path: String,
    pub text: String,
}

/// A piece of code. Literals are only marked (`""`, `''`), comments are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// From 1.
    pub line: usize,
    /// A word, a number, `::` or one other character.
    pub text: &'a str,
}

/// A Rust file, taken apart.
pub struct Source<'a> {
    pub tokens: Vec<Token<'a>>,
    /// Lines that hold a comment, or a part of one, and its text there.
    pub comments: Vec<(usize, &'a str)>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that git does not ignore, sorted by path.
pub fn files() -> Vec<File> {
    let ignored = std::fs::read_to_string(root().join(".gitignore")).expect(".gitignore");
    let ignored: Vec<&str> = (ignored.lines())
        .map(|line| line.trim_end_matches('/'))
        .collect();
    let mut files = Vec::new();
    walk(root(), &ignored, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(
        files.len() > 50,
        "only {} files in {}",
        files.len(),
        root().display()
    );
    files
}

fn walk(folder: &Path, ignored: &[&str], files: &mut Vec<File>) {
    let entries = std::fs::read_dir(folder).expect("a folder of the project");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // a line that begins with a slash is a path from the root, any other a name
        let anchored = format!("/{}", relative(&path));
        if name == ".git" || ignored.contains(&&*name) || ignored.contains(&&*anchored) {
            continue;
        }
        if path.is_dir() {
            walk(&path, ignored, files);
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            files.push(File {
                path: relative(&path),
                text,
            });
        }
    }
}

fn relative(path: &Path) -> String {
    let inside: PathBuf = path
        .strip_prefix(root())
        .expect("a path of the project")
        .into();
    inside
        .components()
        .map(|c| c.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

impl<'a> Source<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut lexer = Lexer {
            text,
            at: 0,
            line: 1,
            source: Source {
                tokens: Vec::new(),
                comments: Vec::new(),
            },
        };
        while lexer.at < text.len() {
            lexer.next();
        }
        lexer.source
    }

    /// Whether the tokens from `at` on are these.
    pub fn reads(&self, at: usize, words: &[&str]) -> bool {
        self.tokens
            .get(at..at + words.len())
            .is_some_and(|t| t.iter().map(|t| t.text).eq(words.iter().copied()))
    }

    /// The text of the token at `at`, or nothing beyond the end.
    pub fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |t| t.text)
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    source: Source<'a>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn next(&mut self) {
        let rest = self.rest();
        let first = rest.chars().next().expect("not at the end");
        if first.is_whitespace() {
            self.skip(first.len_utf8());
        } else if rest.starts_with("//") {
            self.comment(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.comment(block_comment(rest));
        } else if let Some(len) = string(rest) {
            self.token("\"\"", len);
        } else if let Some(len) = character(rest) {
            self.token("''", len);
        } else if is_word(first) {
            let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            self.token(&rest[..len], len);
        } else {
            let len = if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            self.token(&rest[..len], len);
        }
    }

    fn skip(&mut self, len: usize) {
        self.line += self.rest()[..len].matches('\n').count();
        self.at += len;
    }

    fn token(&mut self, text: &'a str, len: usize) {
        self.source.tokens.push(Token {
            line: self.line,
            text,
        });
        self.skip(len);
    }

    fn comment(&mut self, len: usize) {
        let lines = self.rest()[..len].lines().enumerate();
        self.source
            .comments
            .extend(lines.map(|(i, text)| (self.line + i, text)));
        self.skip(len);
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the block comment that `text` begins with; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Bytes of the string literal that `text` begins with, its prefix and quotes included.
fn string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|p| {
        let after = text[..].strip_prefix(p).unwrap_or("");
        after.starts_with('"')
            || (p.ends_with('r')
                && after.trim_start_matches('#').starts_with('"')
                && after.starts_with('#'))
    })?;
    let body = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let open = prefix.len() + hashes + 1;
        return Some(
            text[open..]
                .find(&end)
                .map_or(text.len(), |i| open + i + end.len()),
        );
    }
    quoted(body, '"').map(|len| prefix.len() + len)
}

/// Bytes of the character literal that `text` begins with. A lifetime is none.
fn character(text: &str) -> Option<usize> {
    let prefix = if text.starts_with("b'") { 1 } else { 0 };
    let body = text[prefix..].strip_prefix('\'')?;
    let mut chars = body.chars();
    let escaped = chars.next()? == '\\';
    if escaped || chars.next()? == '\'' {
        return quoted(&text[prefix..], '\'').map(|len| prefix + len);
    }
    None
}

/// Bytes from the opening to the closing quote, both included.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn code_is_told_from_comments_and_literals() {
        let text = r####"use a::b; // c::d
            /* e /* f */ g
            h */ let s = r#"i "j" // k"#; let t = b"l\"m" + 'n' + '\'' + b'o'; fn p<'q>(r: &'q str) {}"####;
        let source = Source::new(text);
        let words: Vec<&str> = source.tokens.iter().map(|t| t.text).collect();
        let code = "use a :: b ; let s = \"\" ; let t = \"\" + '' + '' + '' ; fn p < ' q > ( r : & ' q str ) { }";
        assert_eq!(words.join(" "), code);
        assert_eq!(
            source.comments.iter().map(|c| c.0).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(source.tokens.last().map(|t| t.line), Some(3));
    }
}
