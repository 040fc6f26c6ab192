//! Tokenizers that work, as large as the models' own: made of letters, pairs of letters, and so on, until there are enough.

use super::gguf::Value;

/// The numbers that files give the classes of tokens.
mod class {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const BYTE: i32 = 6;
}

const BEGIN: &str = "<|endoftext|>";
const TURN: &str = "<|im_start|>";
const END: &str = "<|im_end|>";
const CONTROL: [&str; 3] = [BEGIN, TURN, END];

/// Each message between its marks, as many models have it.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Byte-level BPE with as many merges as there is room for.
pub(super) fn byte_level(n_vocab: u32, pre: &str) -> Vec<(String, Value)> {
    let alphabet = byte_alphabet();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let space = alphabet[usize::from(b' ')];
    let room = n_vocab as usize - CONTROL.len() - tokens.len();
    let mut merges = Vec::with_capacity(room);
    for (left, right) in joined(space, room) {
        tokens.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let mut classes = vec![class::NORMAL; tokens.len()];
    tokens.extend(CONTROL.map(str::to_owned));
    classes.resize(tokens.len(), class::CONTROL);
    let mut keys = usual("gpt2", pre, tokens, classes);
    keys.push(own("merges", Value::Texts(merges)));
    keys
}

/// Scored pieces with a token for each byte.
pub(super) fn sentence_piece(n_vocab: u32) -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte: u8| format!("<0x{byte:02X}>")));
    let mut classes = vec![class::BYTE; tokens.len()];
    classes[..3].copy_from_slice(&[class::UNKNOWN, class::CONTROL, class::CONTROL]);
    let mut scores = vec![0.0; tokens.len()];
    let space = '▁';
    let room = n_vocab as usize - CONTROL.len() - tokens.len();
    let letters = ('!'..='~').chain([space]).map(String::from);
    let pieces = letters.chain(joined(space, room).into_iter().map(|(a, b)| a + &b));
    for (rank, piece) in pieces.take(room).enumerate() {
        tokens.push(piece);
        classes.push(class::NORMAL);
        scores.push(-(rank as f32));
    }
    tokens.extend(CONTROL.map(str::to_owned));
    classes.resize(tokens.len(), class::CONTROL);
    scores.resize(tokens.len(), 0.0);
    let mut keys = usual("llama", "default", tokens, classes);
    keys.push(own("scores", Value::F32s(scores)));
    keys.push(own("unknown_token_id", Value::U32(0)));
    keys
}

fn usual(model: &str, pre: &str, tokens: Vec<String>, classes: Vec<i32>) -> Vec<(String, Value)> {
    let id = |text| tokens.iter().position(|token| token == text);
    let [begin, end] = [BEGIN, END].map(|text| Value::U32(id(text).unwrap_or_default() as u32));
    vec![
        own("model", Value::Text(model.to_owned())),
        own("pre", Value::Text(pre.to_owned())),
        own("tokens", Value::Texts(tokens)),
        own("token_type", Value::I32s(classes)),
        own("bos_token_id", begin),
        own("eos_token_id", end),
        // A prompt of so many ids is a prompt of so many tokens.
        own("add_bos_token", Value::Bool(false)),
        (
            "tokenizer.chat_template".to_owned(),
            Value::Text(CHAT_TEMPLATE.to_owned()),
        ),
    ]
}

fn own(key: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{key}"), value)
}

/// The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, the others from U+0100 on.
fn byte_alphabet() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            0..=b' ' | 0x7F..=0xA0 | 0xAD => others.next().unwrap_or_default(),
        }
    })
}

/// The first `room` tokens that are made of two that come before them, no two alike: pairs of letters, triples, pairs of pairs. There
/// are 551,853, more than any vocabulary has.
fn joined(space: char, room: usize) -> Vec<(String, String)> {
    let letters: Vec<String> = ('a'..='z').chain([space]).map(String::from).collect();
    let pairs: Vec<String> = product(&letters, &letters).map(|(a, b)| a + &b).collect();
    product(&letters, &letters)
        .chain(product(&pairs, &letters))
        .chain(product(&pairs, &pairs))
        .take(room)
        .collect()
}

fn product<'a>(
    left: &'a [String],
    right: &'a [String],
) -> impl Iterator<Item = (String, String)> + 'a {
    left.iter()
        .flat_map(|a| right.iter().map(|b| (a.clone(), b.clone())))
}
