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

/// Where this engine answers otherwise than Jinja2, on purpose or because it cannot do better: template, conversation, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

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
            let is_exception = EXCEPTIONS.iter().any(|(template, conversation, _)| {
                *template == name && *conversation == case.conversation
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
