//! Reads the project's files and holds the rules that no compiler holds: who knows whom, what does not happen in the worker, how long
//! a function may be, which words are written nowhere.

#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/packages.rs"]
mod packages;
#[path = "tidy/source.rs"]
mod source;

use source::{File, Source, files};

/// Most lines of a function.
const FUNCTION_LINES_MAX: usize = 60;

/// How much shorter than its entry a listed function may be before the entry has to follow.
const FUNCTION_LINES_SLACK: usize = 10;

/// Functions that are longer all the same: file, name, lines. They may become shorter, and no others may be added.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("benches/forward.rs", "main", 62),
    ("protocol/src/codec/mod.rs", "decode_line", 61),
    ("protocol/src/metrics.rs", "to_prometheus", 82),
    ("protocol/tests/decode.rs", "every_method_is_understood", 87),
    ("protocol/tests/decode.rs", "the_frame_is_strict", 67),
    ("protocol/tests/docs/examples.rs", "health", 67),
    ("protocol/tests/docs/examples.rs", "metrics", 75),
    ("protocol/tests/docs/examples.rs", "notifications", 77),
    ("protocol/tests/docs/examples.rs", "text", 64),
    (
        "protocol/tests/encode.rs",
        "numbers_that_are_none_never_reach_the_wire",
        65,
    ),
    (
        "tests/text_tokenizer.rs",
        "damaged_vocabularies_are_errors_that_name_the_damage",
        80,
    ),
    ("tests/worker/ends.rs", "a_failed_load_has_its_code", 67),
];

/// Most lines of a file in `src/`.
const FILE_LINES_MAX: usize = 600;

/// Files that are longer all the same, and what they may have, by the fifty. They may become shorter, and no others may be added.
const LONG_FILES: &[(&str, usize)] = &[];

/// Shown on a page as it stands, and explained there.
const OPENS_WITH_CODE: &str = "protocol/doc/client.py";

/// Where `unsafe` may stand, apart from tests and benches: kernels and the calls to them, and the mapped files. Descriptors and
/// signals are reached through crates that need none here.
const UNSAFE_FILES: &[&str] = &[
    "src/device/cpu/formats/blocks.rs",
    "src/device/cpu/formats/floats.rs",
    "src/device/cpu/formats/k_quants.rs",
    "src/device/cpu/formats/mod.rs",
    "src/device/cpu/formats/tables.rs",
    "src/device/cpu/integers.rs",
    "src/device/cpu/integers_x86.rs",
    "src/device/cpu/kernels.rs",
    "src/device/cpu/kv.rs",
    "src/device/cpu/lanes.rs",
    "src/device/cpu/lanes_x86.rs",
    "src/device/cpu/matmul.rs",
    "src/device/cpu/run.rs",
    "src/device/cuda/driver.rs",
    "src/device/cuda/launch.rs",
    "src/load/map.rs",
];

fn is_rust(file: &File) -> bool {
    file.path.ends_with(".rs")
}

/// Fails with all that is wrong at once.
#[track_caller]
fn assert_none(problems: Vec<String>) {
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// What `check` finds in each Rust file below `folders`.
fn in_rust(folders: &[&str], check: impl Fn(&File, &Source<'_>) -> Vec<String>) -> Vec<String> {
    let files = files();
    let ours = files
        .iter()
        .filter(|f| is_rust(f) && folders.iter().any(|folder| f.path.starts_with(folder)));
    ours.flat_map(|f| check(f, &Source::new(&f.text))).collect()
}

#[test]
fn imports_go_downwards() {
    assert_none(
        files()
            .iter()
            .filter(|f| is_rust(f))
            .flat_map(imports::problems)
            .collect(),
    );
}

#[test]
fn every_file_opens_with_its_purpose() {
    assert_none(files().iter().filter_map(opening).collect());
}

/// What is wrong with a source's first line, after the line that names its interpreter.
fn opening(file: &File) -> Option<String> {
    if file.path == OPENS_WITH_CODE {
        return None;
    }
    let mut lines = file.text.lines();
    let mut first = lines.next().unwrap_or_default();
    let script = first.starts_with("#!");
    if script {
        first = lines.next().unwrap_or_default();
    }
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let ways: &[&str] = match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "rs" => &["//! "],
        "py" => &["# ", "\"\"\""],
        "sh" => &["# "],
        "cu" | "cuh" => &["// ", "//! "],
        _ if script => &["# "],
        _ => return None,
    };
    let says = ways.iter().any(|way| {
        first
            .strip_prefix(way)
            .is_some_and(|rest| rest.trim().len() > 10)
    });
    (!says).then(|| {
        format!(
            "{}:1: the file must open with what it is for, after {:?}",
            file.path, ways[0]
        )
    })
}

#[test]
fn unsafe_code_has_its_places_and_its_reasons() {
    assert_none(in_rust(&[""], |file, source| {
        let test = ["tests/", "benches/", "harness/tests/", "protocol/tests/"]
            .iter()
            .any(|t| file.path.starts_with(t));
        let place = test || UNSAFE_FILES.contains(&file.path.as_str());
        let mut found = Vec::new();
        for (at, token) in source
            .tokens
            .iter()
            .enumerate()
            .filter(|(_, t)| t.text == "unsafe")
        {
            if !place {
                found.push(format!(
                    "{}:{}: there is no `unsafe` in this file's floor",
                    file.path, token.line
                ));
            }
            let block = matches!(source.text(at + 1), "{" | "impl" | "extern");
            if block && !has_reason(source, token.line) {
                found.push(format!(
                    "{}:{}: `unsafe` without a SAFETY sentence",
                    file.path, token.line
                ));
            }
        }
        found
    }));
    let all = files();
    let stale = UNSAFE_FILES.iter().filter(|path| {
        !all.iter()
            .any(|f| f.path == **path && f.text.contains("unsafe"))
    });
    assert_none(
        stale
            .map(|path| format!("{path} needs no `unsafe` any more: take it off the list"))
            .collect(),
    );
}

/// Whether the comment at a line or the nearest one in the few lines above it says SAFETY.
fn has_reason(source: &Source<'_>, line: usize) -> bool {
    const STATEMENT_LINES_MAX: usize = 4;
    let on = |line: usize| {
        source
            .comments
            .iter()
            .filter(move |c| c.0 == line)
            .map(|c| c.1)
    };
    let Some(nearest) = (line.saturating_sub(STATEMENT_LINES_MAX)..=line)
        .rev()
        .find(|l| on(*l).next().is_some())
    else {
        return false;
    };
    let block = (1..=nearest).rev().take_while(|l| on(*l).next().is_some());
    block.flat_map(on).any(|text| text.contains("SAFETY: "))
}

/// What does not happen in the worker and its wire: words of code, and why not.
const BANNED_CODE: &[(&[&str], &str)] = &[
    (&["thread"], "there is one thread"),
    (&["rayon"], "there is one thread"),
    (&["tokio"], "there is one thread"),
    (&["crossbeam"], "there is one thread"),
    (&["async"], "time is handed in, not awaited"),
    (&["await"], "time is handed in, not awaited"),
    (&["Mutex"], "there is nobody to lock out"),
    (&["RwLock"], "there is nobody to lock out"),
    (&["Condvar"], "there is nobody to wait for"),
    (&["mpsc"], "there is nobody to send to"),
    (&["lazy_static"], "state has an owner"),
    (&["once_cell"], "state has an owner"),
    (&["static", "mut"], "state has an owner"),
    (
        &["println", "!"],
        "stdout is only protocol, and io writes it",
    ),
    (&["print", "!"], "stdout is only protocol, and io writes it"),
    // what would start the threads of the tokenizer's crate
    (
        &["encode_batch"],
        "it runs on the pool of the tokenizer's crate",
    ),
    (
        &["decode_batch"],
        "it runs on the pool of the tokenizer's crate",
    ),
    (&["train"], "it runs on the pool of the tokenizer's crate"),
];

#[test]
fn what_does_not_happen_in_the_worker_is_not_written_there() {
    assert_none(in_rust(&["src/", "protocol/src/"], |file, source| {
        banned(file, source, BANNED_CODE)
    }));
    // the wire keeps tables that are made once; the worker has no state without an owner
    let owned: &[(&[&str], &str)] = &[
        (&["OnceLock"], "state has an owner"),
        (&["LazyLock"], "state has an owner"),
    ];
    assert_none(in_rust(&["src/"], |file, source| {
        banned(file, source, owned)
    }));
}

#[test]
fn nothing_is_left_for_later() {
    let rules: &[(&[&str], &str)] = &[
        (&["todo", "!"], "do it or leave it out"),
        (&["unimplemented", "!"], "do it or refuse it by name"),
        (&["dbg", "!"], "it was for a moment"),
    ];
    assert_none(in_rust(&[""], |file, source| banned(file, source, rules)));
}

#[test]
fn a_new_field_breaks_every_architecture() {
    let rules: &[(&[&str], &str)] = &[(
        &["Default"],
        "every field is named, so that a new one is not forgotten",
    )];
    assert_none(in_rust(
        &["src/model/arch/", "src/model/spec.rs"],
        |file, source| banned(file, source, rules),
    ));
}

fn banned(file: &File, source: &Source<'_>, rules: &[(&[&str], &str)]) -> Vec<String> {
    let here = |at: usize| {
        rules
            .iter()
            .filter(move |(words, _)| source.reads(at, words))
            .map(move |rule| (at, rule))
    };
    let all = (0..source.tokens.len()).flat_map(here);
    all.map(|(at, (words, why))| {
        format!(
            "{}:{}: `{}`: {why}",
            file.path,
            source.tokens[at].line,
            words.concat()
        )
    })
    .collect()
}

/// Words that are written nowhere, in pieces: places that exist on one machine, hosts that a package manager knows better, and talk
/// of how the project is made instead of what it is.
const BANNED_WORDS: &[&[&str]] = &[
    &["/wo", "rk/"],
    &["/ro", "ot/"],
    &["py", "pi.org"],
    &["python", "hosted.org"],
    &["crates", ".io"],
    &["hugging", "face.co"],
    &["clau", "de"],
    &["anth", "ropic"],
    &["chat", "gpt"],
    &["co", "pilot"],
    &["ai-", "generated"],
    &["sub", "agent"],
    &["work", "tree"],
    &["this se", "ssion"],
    &["previous se", "ssion"],
    &["next se", "ssion"],
    &["later is", "sue"],
    &["next is", "sue"],
    &["this is", "sue"],
];

#[test]
fn the_project_speaks_of_itself_alone() {
    let words: Vec<String> = BANNED_WORDS.iter().map(|pieces| pieces.concat()).collect();
    let mut found = Vec::new();
    // a lock file names the registry of every package
    let files = files();
    for file in files.iter().filter(|f| !f.path.ends_with("Cargo.lock")) {
        for (i, line) in file.text.lines().enumerate() {
            let line = line.to_lowercase();
            let said = words.iter().filter(|word| line.contains(*word));
            found.extend(said.map(|word| format!("{}:{}: {word:?}", file.path, i + 1)));
        }
    }
    assert_none(found);
}

/// Every function with a body: name, first line, number of lines.
fn functions<'a>(source: &Source<'a>) -> Vec<(&'a str, usize, usize)> {
    let named = |at: &usize| {
        source.text(*at) == "fn"
            && source
                .text(at + 1)
                .starts_with(|c: char| c.is_alphabetic() || c == '_')
    };
    let measured = (0..source.tokens.len()).filter(named).filter_map(|at| {
        let last = body_end(source, at)?;
        let first = source.tokens[at].line;
        Some((
            source.text(at + 1),
            first,
            source.tokens[last].line + 1 - first,
        ))
    });
    measured.collect()
}

/// The closing brace of the function whose `fn` stands at `at`; `None` if it has no body.
fn body_end(source: &Source<'_>, at: usize) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (i, token) in source.tokens.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets -= 1,
            ";" if brackets == 0 && braces == 0 => return None,
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn functions_are_short() {
    assert!(LONG_FUNCTIONS.is_sorted(), "the list is sorted");
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for file in files().iter().filter(|f| is_rust(f)) {
        for (name, line, lines) in functions(&Source::new(&file.text)) {
            let known = LONG_FUNCTIONS
                .iter()
                .find(|(path, known, _)| *path == file.path && *known == name);
            let max = known.map_or(FUNCTION_LINES_MAX, |known| known.2);
            seen.extend(known.filter(|known| known.2 < lines + FUNCTION_LINES_SLACK));
            if lines > max {
                found.push(format!(
                    "{}:{line}: `{name}` has {lines} lines; at most {max}",
                    file.path
                ));
            }
        }
    }
    let stale = LONG_FUNCTIONS
        .iter()
        .filter(|known| !seen.contains(known) || known.2 <= FUNCTION_LINES_MAX);
    found.extend(stale.map(|(path, name, _)| {
        format!("{path}: `{name}` is shorter now, or gone: shorten the list too")
    }));
    assert_none(found);
}

#[test]
fn files_are_short() {
    assert!(LONG_FILES.is_sorted(), "the list is sorted");
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for file in files()
        .iter()
        .filter(|f| is_rust(f) && f.path.starts_with("src/"))
    {
        let lines = file.text.lines().count();
        let known = LONG_FILES.iter().find(|known| known.0 == file.path);
        let max = known.map_or(FILE_LINES_MAX, |known| known.1);
        seen.extend(known.filter(|known| known.1 < lines + 50));
        if lines > max {
            found.push(format!("{}: {lines} lines; at most {max}", file.path));
        }
    }
    let stale = LONG_FILES
        .iter()
        .filter(|known| !seen.contains(known) || known.1 <= FILE_LINES_MAX);
    found.extend(
        stale.map(|(path, _)| format!("{path} is shorter now, or gone: shorten the list too")),
    );
    assert_none(found);
}

#[test]
fn packages_are_those_that_were_chosen() {
    assert_none(packages::problems());
}

#[test]
fn the_rules_see_what_they_forbid() {
    let text = "fn a() -> [u8; { 2 }] {\n b();\n}\ntrait T { fn c(); fn d() {\n\n\n} }\nlet e: fn(u8) = f;";
    assert_eq!(functions(&Source::new(text)), [("a", 1, 3), ("d", 4, 4)]);
    let reason = |text: &str| has_reason(&Source::new(text), text.lines().count());
    assert!(reason("// SAFETY: it is\n// so.\nlet x =\n unsafe { y };"));
    assert!(!reason(
        "// SAFETY: it is so.\nlet a = 1;\n// Other.\nlet x = unsafe { y };"
    ));
    assert!(!reason("let x = unsafe { y };"));
    let file = |path: &str, text: &str| File {
        path: path.into(),
        text: text.into(),
    };
    assert!(opening(&file("a.rs", "//! What the file is for.\n")).is_none());
    assert!(opening(&file("a.rs", "// What the file is for.\n")).is_some());
    assert!(
        opening(&file(
            "a.py",
            "#!/usr/bin/env python3\n\"\"\"What the file is for.\"\"\"\n"
        ))
        .is_none()
    );
    assert!(opening(&file("bin/a", "#!/bin/sh\nset -e\n")).is_some());
    let threads = file(
        "src/a.rs",
        "use std::thread;\n// thread\nfn f() { \"thread\"; thread_local!(); }",
    );
    assert_eq!(
        banned(&threads, &Source::new(&threads.text), BANNED_CODE),
        ["src/a.rs:1: `thread`: there is one thread"]
    );
}
