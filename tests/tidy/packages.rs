//! What the manifests and the lock file say of the packages that the project stands on.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::root;

/// Packages that bring threads or an async runtime.
const BANNED: &[&str] = &[
    "rayon",
    "rayon-core",
    "rayon-cond",
    "tokio",
    "async-std",
    "smol",
    "crossbeam",
];

/// Edges of the tree that cannot be cut: the tokenizer's crate has no feature to go without. It starts threads only for batches and
/// for training, which no source of ours names (see the words that are banned in `src/`).
const KNOWN: &[(&str, &str)] = &[("tokenizers", "rayon"), ("tokenizers", "rayon-cond")];

/// The packages of the workspace and where their manifests are.
const MEMBERS: &[(&str, &str)] = &[
    ("worker-orcd", "Cargo.toml"),
    ("worker-orcd-harness", "harness/Cargo.toml"),
    ("worker-orcd-protocol", "protocol/Cargo.toml"),
];

/// Packages of ours that a member's manifest may name.
const OURS: &[(&str, &[&str])] = &[
    ("worker-orcd", &["worker-orcd-protocol"]),
    ("worker-orcd-harness", &["worker-orcd-protocol"]),
    ("worker-orcd-protocol", &[]),
];

/// Where the fuzz targets, a package of their own, have their lock file.
const FUZZ_LOCK: &str = "tests/fuzz/Cargo.lock";

/// What the fuzz targets need and nothing else does.
const FUZZ_ONLY: &[&str] = &[
    "arbitrary",
    "cc",
    "find-msvc-tools",
    "jobserver",
    "libfuzzer-sys",
    "shlex",
    "worker-orcd-fuzz",
];

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub fn problems() -> Vec<String> {
    let mut found = fuzzed_versions();
    let lock = Lock::read();
    for (member, path) in MEMBERS {
        let manifest = read(path);
        let direct = dependencies(&manifest, "dependencies");
        let of_tests = dependencies(&manifest, "dev-dependencies");
        let ours = OURS
            .iter()
            .find(|(name, _)| name == member)
            .map_or(&[][..], |(_, ours)| ours);
        for name in direct
            .iter()
            .chain(&of_tests)
            .filter(|name| MEMBERS.iter().any(|m| m.0 == **name))
        {
            if !ours.contains(&name.as_str()) {
                found.push(format!("{path}: {member} must not depend on {name}"));
            }
        }
        for (name, by) in lock.reached_from(&direct) {
            if BANNED.contains(&name.as_str()) || name.starts_with("crossbeam-") {
                found.push(format!(
                    "Cargo.lock: {member} stands on {name}, which {by} brings"
                ));
            }
        }
    }
    let tokenizers = read("Cargo.toml")
        .lines()
        .find(|l| l.starts_with("tokenizers ="))
        .unwrap_or_default()
        .to_owned();
    if !tokenizers.contains("version = \"=") || !tokenizers.contains("default-features = false") {
        found.push("Cargo.toml: `tokenizers` must be pinned to one version and go without its default features".into());
    }
    found
}

/// What is fuzzed is what is shipped: every package in the version of the workspace's lock file.
fn fuzzed_versions() -> Vec<String> {
    let shipped = versions(&read("Cargo.lock"));
    let fuzzed = versions(&read(FUZZ_LOCK));
    let strange = fuzzed
        .difference(&shipped)
        .filter(|(name, _)| !FUZZ_ONLY.contains(&name.as_str()));
    strange
        .map(|(name, version)| {
            format!("{FUZZ_LOCK}: {name} {version} is not the version of Cargo.lock: copy that file there and run cargo fuzz build")
        })
        .collect()
}

/// Every package of a lock file with its version.
fn versions(lock: &str) -> BTreeSet<(String, String)> {
    let quoted = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
    let named = lock.lines().zip(lock.lines().skip(1));
    named
        .filter_map(|(name, version)| {
            Some((quoted(name, "name = ")?, quoted(version, "version = ")?))
        })
        .collect()
}

/// Names under `[section]` and `[target.….section]` of a manifest.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if let Some(title) = line.strip_prefix('[') {
            let title = title.trim_end_matches(']');
            inside = title == section
                || (title.starts_with("target.") && title.ends_with(&format!(".{section}")));
            names.extend(
                title
                    .strip_prefix(&format!("{section}."))
                    .map(str::to_owned),
            );
        } else if inside && line.starts_with(|c: char| c.is_alphabetic()) {
            names.extend(line.split([' ', '=', '.']).next().map(str::to_owned));
        }
    }
    names
}

/// Which package needs which, by name; versions of one package are taken together.
struct Lock {
    needs: BTreeMap<String, BTreeSet<String>>,
}

impl Lock {
    fn read() -> Self {
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut name = String::new();
        for line in read("Cargo.lock").lines() {
            if let Some(quoted) = line.strip_prefix("name = ") {
                name = quoted.trim_matches('"').to_owned();
            } else if let Some(needed) = line.strip_prefix(" \"") {
                let needed = needed.split(['"', ' ']).next().unwrap_or_default();
                needs
                    .entry(name.clone())
                    .or_default()
                    .insert(needed.to_owned());
            }
        }
        // a member's entry counts its tests' packages too; its manifest tells them apart
        for (member, path) in MEMBERS {
            needs.insert(
                (*member).to_owned(),
                dependencies(&read(path), "dependencies")
                    .into_iter()
                    .collect(),
            );
        }
        Self { needs }
    }

    /// Every package below `names`, and who brings it; edges that are known to be there are not followed.
    fn reached_from(&self, names: &[String]) -> BTreeMap<String, String> {
        let mut reached: BTreeMap<String, String> = names
            .iter()
            .map(|n| (n.clone(), "the manifest".to_owned()))
            .collect();
        let mut open = names.to_vec();
        while let Some(by) = open.pop() {
            for name in self.needs.get(&by).into_iter().flatten() {
                if !KNOWN.contains(&(by.as_str(), name.as_str())) && !reached.contains_key(name) {
                    reached.insert(name.clone(), by.clone());
                    open.push(name.clone());
                }
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_really_compared() {
        let shipped = versions("name = \"a\"\nversion = \"1\"\n\nname = \"b\"\nversion = \"2\"");
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(shipped, [pair("a", "1"), pair("b", "2")].into());
        assert!(versions(&read(FUZZ_LOCK)).len() > 50);
    }

    #[test]
    fn the_tree_is_really_walked() {
        let lock = Lock::read();
        let reached = lock.reached_from(&dependencies(&read("Cargo.toml"), "dependencies"));
        for name in ["serde", "tokenizers", "memmap2", "itoa"] {
            assert!(
                reached.contains_key(name),
                "{name} is not found below the worker"
            );
        }
        assert!(
            !reached.contains_key("proptest"),
            "packages of tests are not the worker's"
        );
        assert!(
            KNOWN
                .iter()
                .all(|(by, name)| lock.needs[*by].contains(*name)),
            "an edge is gone: take it off the list"
        );
    }
}
