//! Real chat templates over conversations: every prompt is the one that Jinja2 renders, and what it refuses is refused.
//!
//! `harness/reference/chat_templates.py` made what is expected here; `tests/data/templates/SOURCES.md` says where the templates are from.

mod text_support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value as Json};
use text_support::data;
use worker_orcd::text::{ChatTemplate, GenerationPrompt, RenderOptions, TemplateError};

/// 31 December 2024, 23:59:59 UTC.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_735_689_599)
}

#[derive(Deserialize)]
struct Conversation {
    conversation: String,
    messages: Json,
    tools: Option<Json>,
    add_generation_prompt: bool,
    kwargs: Map<String, Json>,
}

#[derive(Debug, Deserialize)]
struct Case {
    template: String,
    conversation: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What came of a case.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// The prompt.
    Text(String),
    /// The template's words of refusal.
    Raised(String),
    /// It came to an error; which one Python calls it is for people.
    Failed(String),
}

/// Where this engine answers otherwise than Jinja2 and cannot do better: a template, its conversations, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("command-r-plus-tools", WITHOUT_TOOLS, NONE_IS_EMPTY),
    ("command-r-plus-tools", "parts", NONE_IS_EMPTY),
    ("hermes-2-pro-tools", WITHOUT_TOOLS, NONE_IS_EMPTY),
    ("llama-4", "one-call", NONE_IS_EMPTY),
    (
        "functionary-3.1",
        "tools union-tool one-call two-calls text-call",
        "Python escapes what is added to a string marked safe, for HTML, and so puts &#34; into the prompt; the engine's + knows no \
         marks",
    ),
    (
        "functionary-3.2",
        "tools",
        "a float below 1e-4 that ~ joins to a string is written without exponent (0.00001); alone and in JSON it is as Python's",
    ),
];

/// These templates are for conversations with tools; Python refuses others with a TypeError.
const WITHOUT_TOOLS: &str = "user closed system system-only talk answered reasoned not-thinking signs spaces empty dated user-twice \
                             assistant-first";

const NONE_IS_EMPTY: &str = "a loop over none does nothing here, where Python refuses it; the engine cannot tell the two apart";

fn expected() -> (BTreeMap<String, Conversation>, Vec<Case>) {
    let (mut conversations, mut cases) = (BTreeMap::new(), Vec::new());
    for line in data("../templates/expected.jsonl").lines() {
        match serde_json::from_str::<Case>(line) {
            Ok(case) => cases.push(case),
            Err(_) => {
                let conversation: Conversation = serde_json::from_str(line).unwrap();
                conversations.insert(conversation.conversation.clone(), conversation);
            }
        }
    }
    (conversations, cases)
}

fn outcome(template: &ChatTemplate, conversation: &Conversation) -> Outcome {
    let mut kwargs = conversation.kwargs.clone();
    let tool_choice = kwargs.remove("tool_choice");
    let options = RenderOptions {
        generation_prompt: match conversation.add_generation_prompt {
            true => GenerationPrompt::Add,
            false => GenerationPrompt::Omit,
        },
        tools: conversation.tools.clone(),
        tool_choice,
        kwargs,
        now: now(),
    };
    match template.render(&conversation.messages, &options) {
        Ok(text) => Outcome::Text(text),
        Err(TemplateError::Raised { message }) => Outcome::Raised(message),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Small templates, each on what Python does in its own way.
#[derive(Debug, Deserialize)]
struct Snippet {
    snippet: String,
    #[serde(flatten)]
    outcome: Outcome,
}

fn agree(wanted: &Outcome, got: &Outcome) -> bool {
    match (wanted, got) {
        (Outcome::Failed(_), Outcome::Failed(_)) => true,
        (wanted, got) => wanted == got,
    }
}

#[test]
fn prompts_are_those_of_jinja2() {
    let (conversations, cases) = expected();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.template.as_str()).collect();
    assert!(names.len() > 60 && cases.len() == names.len() * conversations.len());
    let mut different = Vec::new();
    for name in names {
        let source = data(&format!("../templates/{name}.jinja"));
        let template = ChatTemplate::new(&source, Some("<s>"), Some("</s>"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for case in cases.iter().filter(|case| case.template == name) {
            let got = outcome(&template, &conversations[&case.conversation]);
            let is_exception = EXCEPTIONS.iter().any(|(template, conversations, _)| {
                let mut conversations = conversations.split_whitespace();
                *template == name && conversations.any(|one| one == case.conversation)
            });
            // An exception that is none any more has to go.
            if agree(&case.outcome, &got) == is_exception {
                different.push(format!(
                    "{name}, {}:\n  wanted {:?}\n  got    {got:?}",
                    case.conversation, case.outcome
                ));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{} cases\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn small_templates_are_rendered_as_by_python() {
    let conversation = &expected().0["user"];
    let mut different = Vec::new();
    for line in data("../templates/expected-snippets.jsonl").lines() {
        let Snippet {
            snippet,
            outcome: wanted,
        } = serde_json::from_str(line).unwrap();
        let got = match ChatTemplate::new(&snippet, Some("<s>"), Some("</s>")) {
            Ok(template) => outcome(&template, conversation),
            Err(error) => Outcome::Failed(error.to_string()),
        };
        if !agree(&wanted, &got) {
            different.push(format!("{snippet}:\n  wanted {wanted:?}\n  got    {got:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn every_kind_of_line_end_is_one_to_a_template() {
    let (conversations, _) = expected();
    let render = |source: &str| {
        let template = ChatTemplate::new(source, None, None).unwrap();
        outcome(&template, &conversations["user"])
    };
    let wanted = Outcome::Text("a\nHi\nb".to_owned());
    let source = "a\n{% for m in messages %}\n{{ m.content }}\n{% endfor %}\nb";
    for end in ["\n", "\r\n", "\r"] {
        // The line end after the tag that closes the loop goes, as after any tag.
        assert_eq!(render(&source.replace('\n', end)), wanted, "{end:?}");
    }
}
