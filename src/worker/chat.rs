//! From messages to the text of a prompt: what a request's conversation means to a chat template.

use std::time::SystemTime;

use serde_json::Value;
use worker_orcd_protocol::{
    ApplyTemplateParams, Arguments, Content, ErrorCode, ErrorObject, Message, Role,
};

use super::lifecycle::Serving;
use crate::text::{ChatTemplate, GenerationPrompt, RenderOptions, TemplateError};

/// Renders a conversation with the request's own template, or else with the model's.
pub(super) fn render(
    serving: &Serving,
    conversation: ApplyTemplateParams,
    now: SystemTime,
) -> Result<String, ErrorObject> {
    for (index, message) in conversation.messages.iter().enumerate() {
        check(index, message)?;
    }
    let own = match &conversation.chat_template {
        Some(source) => Some(
            ChatTemplate::for_tokenizer(source, &serving.tokenizer)
                .map_err(|error| template_error(&error).with_param("chat_template"))?,
        ),
        None => None,
    };
    let Some(template) = own.as_ref().or(serving.template.as_deref()) else {
        return Err(ErrorObject::new(
            ErrorCode::TemplateError,
            "the model has no chat template; send a prompt, or a chat_template, or start the worker with --chat-template",
        )
        .with_param("messages"));
    };
    let messages: Vec<Message> = conversation
        .messages
        .into_iter()
        .map(for_template)
        .collect();
    let options = RenderOptions {
        generation_prompt: match conversation.add_generation_prompt {
            true => GenerationPrompt::Add,
            false => GenerationPrompt::Omit,
        },
        tools: conversation
            .tools
            .map(|tools| tools.into_iter().map(Value::Object).collect()),
        tool_choice: conversation.tool_choice.map(json).transpose()?,
        kwargs: conversation.chat_template_kwargs,
        now,
    };
    template
        .render(&json(messages)?, &options)
        .map_err(|error| template_error(&error))
}

/// Refuses fields that belong to a message of another role, which a template would pass over in silence.
fn check(index: usize, message: &Message) -> Result<(), ErrorObject> {
    let (is_assistant, is_tool) = (message.role == Role::Assistant, message.role == Role::Tool);
    let calls = message.tool_calls.is_some();
    let rules = [
        ("tool_calls", calls && !is_assistant, "only of an assistant"),
        (
            "reasoning_content",
            message.reasoning_content.is_some() && !is_assistant,
            "only of an assistant",
        ),
        (
            "tool_call_id",
            message.tool_call_id.is_some() && !is_tool,
            "only of a tool",
        ),
        (
            "content",
            message.content == Content::Nothing && !(is_assistant && calls),
            "null only with tool_calls of an assistant",
        ),
    ];
    match rules.into_iter().find(|(_, is_broken, _)| *is_broken) {
        None => Ok(()),
        Some((name, _, rule)) => {
            let field = format!("messages[{index}].{name}");
            let message = format!("{field} is taken {rule}");
            Err(ErrorObject::invalid_param(field, rule, message))
        }
    }
}

/// A message as templates want it: most concatenate strings and fail on parts, and text parts say no more than their text; and
/// most write a call's arguments with `tojson`, which would quote what is JSON already.
fn for_template(mut message: Message) -> Message {
    message.content = message.content.joined();
    for call in message.tool_calls.iter_mut().flatten() {
        if let Arguments::Text(text) = &call.function.arguments
            && let Ok(Value::Object(arguments)) = serde_json::from_str(text)
        {
            call.function.arguments = Arguments::Object(arguments);
        }
    }
    message
}

fn json(value: impl serde::Serialize) -> Result<Value, ErrorObject> {
    serde_json::to_value(value)
        .map_err(|error| ErrorObject::new(ErrorCode::Internal, format!("to JSON: {error}")))
}

fn template_error(error: &TemplateError) -> ErrorObject {
    ErrorObject::new(ErrorCode::TemplateError, error.to_string())
}
