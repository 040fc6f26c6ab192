//! Who may know whom: the floors of the house, and the paths by which a file names another floor.

use crate::source::{File, Source};

/// A module of the worker and what it may name of the others; what is not said is forbidden.
struct Floor {
    of: &'static str,
    may: &'static [&'static str],
    /// Exceptions from `may`.
    never: &'static [&'static str],
}

const fn floor(of: &'static str, may: &'static [&'static str]) -> Floor {
    Floor {
        of,
        may,
        never: &[],
    }
}

/// What the wire's crate is called here.
const PROTOCOL: &str = "protocol";

/// From the ground up. Where a line is not what one would guess, it says why.
const FLOORS: &[Floor] = &[
    floor("gguf", &[]),
    floor("quant", &[]),
    floor("limits", &[]),
    floor("sampling", &[]),
    floor("log", &["limits"]),
    floor("model", &["gguf", "quant"]),
    // A device draws the token where the logits are, on a card too: the types of a draw are sampling's.
    Floor {
        of: "device",
        may: &["sampling"],
        never: BACKENDS,
    },
    // The operations carry the spec's enums (norm, rope, activation), so a backend sees the spec, but never a file's metadata.
    Floor {
        of: "device::cpu",
        may: BACKEND,
        never: &["device::cuda"],
    },
    Floor {
        of: "device::cuda",
        may: BACKEND,
        never: &["device::cpu"],
    },
    floor("device::fake", &["device", "sampling"]),
    // Tables of pages are kept on the host; what a page is called and how much it holds is the device's word.
    floor("pages", &["device::PageId", "device::PAGE_TOKENS"]),
    floor(
        "prefix",
        &["device::PageId", "device::PAGE_TOKENS", "limits", "pages"],
    ),
    // It moves pages between a device and a file.
    floor("state", &["device", "limits", "pages"]),
    floor("text", &["gguf", "limits"]),
    // It says what tokens may come, and how much a grammar may have on the wire.
    floor("grammar", &["limits", "protocol::limits", "text"]),
    // A generation turns bytes into text as they come.
    floor("session", &["text"]),
    // The one place that picks a backend.
    floor("load", &["device", "gguf", "limits", "model", "text"]),
    Floor {
        of: "worker",
        may: &[
            PROTOCOL, "device", "grammar", "limits", "load", "log", "pages", "prefix", "sampling",
            "session", "state", "text",
        ],
        never: BACKENDS,
    },
    // It asks any device what its operations give, and writes that down.
    floor("trace", &["device"]),
    // It reads and writes bytes for whoever asks; of the worker it knows the names of the signals that it hands over.
    floor("io", &["limits", "worker::Signal"]),
    floor("main", EVERYTHING),
    floor("flags", EVERYTHING),
    floor("process", EVERYTHING),
    // It times what a device does, without a worker.
    floor(
        "bench",
        &[
            PROTOCOL,
            "device",
            "io",
            "limits",
            "load",
            "model::reads",
            "sampling",
            "flags",
            "inspect",
        ],
    ),
    // It asks for a trace of a text, which has to become tokens first.
    floor(
        "inspect",
        &[
            PROTOCOL, "io", "limits", "load", "worker", "flags", "text", "trace",
        ],
    ),
];

const BACKENDS: &[&str] = &["device::cpu", "device::cuda", "device::fake"];
const BACKEND: &[&str] = &[
    "device",
    "model::plan",
    "model::spec",
    "model::weights",
    "quant",
    "sampling",
];
const EVERYTHING: &[&str] = &[
    PROTOCOL, "device", "io", "limits", "load", "log", "worker", "flags", "process", "inspect",
    "bench",
];

/// What is wrong with the paths of a file.
pub fn problems(file: &File) -> Vec<String> {
    let source = Source::new(&file.text);
    let mut found = foreign_crates(file, &source);
    let Some(inside) = file.path.strip_prefix("src/") else {
        return found;
    };
    let module = module_of(inside);
    if module.is_empty() {
        return found; // lib.rs only names its floors
    }
    let Some(floor) = FLOORS
        .iter()
        .filter(|f| is_in(&module, f.of))
        .max_by_key(|f| f.of.len())
    else {
        found.push(format!(
            "{}:1: this module has no line in the table of tests/tidy/imports.rs",
            file.path
        ));
        return found;
    };
    for (line, path) in paths(&source, &module) {
        let allowed = |list: &[&str]| list.iter().any(|place| is_in(&path, place));
        let own = is_in(&path, floor.of) && !allowed(floor.never);
        if !own && (!allowed(floor.may) || allowed(floor.never)) {
            found.push(format!(
                "{}:{line}: {} must not know {}",
                file.path,
                floor.of,
                path.join("::")
            ));
        }
    }
    found
}

/// The crates know each other in one direction: the worker and the harness know the wire, and nothing else of ours.
fn foreign_crates(file: &File, source: &Source<'_>) -> Vec<String> {
    let (whose, forbidden): (_, &[&str]) = match file.path.split('/').next() {
        Some("protocol") => ("protocol", &["worker_orcd", "worker_orcd_harness"]),
        Some("harness") => ("harness", &["worker_orcd"]),
        Some("src" | "cuda") => ("the worker", &["worker_orcd_harness"]),
        _ => return Vec::new(),
    };
    let named = source.tokens.iter().filter(|t| forbidden.contains(&t.text));
    named
        .map(|t| format!("{}:{}: {whose} must not know {}", file.path, t.line, t.text))
        .collect()
}

/// "device/cpu/mod.rs" is device::cpu.
fn module_of(inside: &str) -> Vec<String> {
    let path = inside.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/')
        .filter(|name| *name != "lib")
        .map(str::to_owned)
        .collect()
}

fn is_in(path: &[String], place: &str) -> bool {
    let place: Vec<&str> = place.split("::").collect();
    path.len() >= place.len() && path.iter().zip(&place).all(|(a, b)| a == b)
}

/// Every path in a file that begins at the crate or at a parent, or in the wire's crate, with its line: from the root, all branches of
/// a `use` apart. Paths through a name that a `use` has brought in whole are followed too.
fn paths(source: &Source<'_>, module: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found: Vec<(usize, Vec<String>)> = Vec::new();
    let mut here = module.to_vec();
    let mut depth = 0;
    let mut opened = Vec::new();
    for at in 0..source.tokens.len() {
        let text = source.text(at);
        match text {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if opened.last() == Some(&depth) {
                    opened.pop();
                    here.pop();
                }
            }
            "mod" => {
                let name = if source.text(at + 1) == "$" {
                    at + 2
                } else {
                    at + 1
                };
                if source.text(name + 1) == "{" {
                    opened.push(depth);
                    here.push(source.text(name).to_owned());
                }
            }
            _ => {}
        }
        let begins = source.text(at + 1) == "::" && (at == 0 || source.text(at - 1) != "::");
        let base = match text {
            "worker_orcd_protocol" => vec![PROTOCOL.to_owned()],
            _ if !begins => continue,
            "crate" | "worker_orcd" => Vec::new(),
            "self" => here.clone(),
            "super" => here[..here.len().saturating_sub(1)].to_vec(),
            name => match found
                .iter()
                .find(|(_, path)| path.len() == 1 && path[0] == name)
            {
                Some((_, path)) => path.clone(),
                None => continue,
            },
        };
        let ends = branches(source, at + 1, base);
        found.extend(ends.into_iter().map(|path| (source.tokens[at].line, path)));
    }
    found
}

/// The full paths of what follows a path's first word.
fn branches(source: &Source<'_>, at: usize, base: Vec<String>) -> Vec<Vec<String>> {
    tree(source, at, base).0
}

/// Reads `::a::{b, c::d}` at `at`: the full paths, and the place after it.
fn tree(source: &Source<'_>, mut at: usize, mut base: Vec<String>) -> (Vec<Vec<String>>, usize) {
    while source.text(at) == "::" {
        at += 1;
        match source.text(at) {
            "{" => {
                let mut all = Vec::new();
                at += 1;
                while !matches!(source.text(at), "}" | "") {
                    let (paths, end) = tree_from_word(source, at, base.clone());
                    all.extend(paths);
                    at = if source.text(end) == "," {
                        end + 1
                    } else {
                        end.max(at + 1)
                    };
                }
                return (all, at + 1);
            }
            "<" => break, // generic arguments
            "self" => {}
            "super" => {
                base.pop();
            }
            name => base.push(name.to_owned()),
        }
        at += 1;
    }
    while source.text(at) == "as" {
        at += 2;
    }
    (vec![base], at)
}

/// A branch of a group: a word, then the rest.
fn tree_from_word(
    source: &Source<'_>,
    at: usize,
    mut base: Vec<String>,
) -> (Vec<Vec<String>>, usize) {
    if source.text(at) != "self" {
        base.push(source.text(at).to_owned());
    }
    tree(source, at + 1, base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(path: &str, text: &str) -> usize {
        problems(&File {
            path: path.to_owned(),
            text: text.to_owned(),
        })
        .len()
    }

    #[test]
    fn a_path_is_followed_wherever_it_begins() {
        let of = |text: &str| {
            let source = Source::new(text);
            let here = ["device", "cpu"].map(str::to_owned);
            paths(&source, &here)
                .into_iter()
                .map(|(_, path)| path.join("::"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of("use crate::a::{b, c::{self, d as e}, f::*};"),
            ["a::b", "a::c", "a::c::d", "a::f::*"]
        );
        assert_eq!(
            of("use super::super::text::X; use self::isa::Isa;"),
            ["text::X", "device::cpu::isa::Isa"]
        );
        assert_eq!(
            of("let x = crate::quant::f::<u8>(super::Step::new());"),
            ["quant::f", "device::Step::new"]
        );
        assert_eq!(
            of("mod tests { use super::*; } use super::Y;"),
            ["device::cpu::*", "device::Y"]
        );
        assert_eq!(
            of("use crate::text; text::encode(); other::text::no();"),
            ["text", "text::encode"]
        );
        assert_eq!(
            of("pub(crate) fn f(&self) { self.x }"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_floor_that_looks_up_is_seen() {
        assert_eq!(
            problems_of("src/gguf/a.rs", "use super::types::X; use crate::gguf::Y;"),
            0
        );
        assert_eq!(problems_of("src/gguf/a.rs", "use crate::quant::X;"), 1);
        assert_eq!(
            problems_of(
                "src/gguf/a.rs",
                "fn f() { let x = super::super::model::X; }"
            ),
            1
        );
        assert_eq!(
            problems_of("src/device/cpu/a.rs", "use super::super::{Step, cuda::X};"),
            1
        );
        assert_eq!(problems_of("src/device/mod.rs", "use self::cpu::X;"), 1);
        assert_eq!(
            problems_of("src/pages.rs", "use crate::device::{PAGE_TOKENS, PageId};"),
            0
        );
        assert_eq!(problems_of("src/pages.rs", "use crate::device::Device;"), 1);
        assert_eq!(
            problems_of(
                "src/worker/a.rs",
                "use crate::device; fn f(x: device::cpu::CpuDevice) {}"
            ),
            1
        );
        assert_eq!(
            problems_of("src/session.rs", "use worker_orcd_protocol::Id;"),
            1
        );
        assert_eq!(problems_of("src/attic.rs", ""), 1);
        assert_eq!(
            problems_of("harness/src/a.rs", "use worker_orcd_protocol::Id;"),
            0
        );
        assert_eq!(
            problems_of("harness/tests/a.rs", "use worker_orcd::worker::Worker;"),
            1
        );
    }
}
