//! The shapes: numbers of published models, and the keys that their files have.

use super::gguf::Value;
use super::vocabulary;

/// A model's shape.
#[derive(Debug)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What file it stands for.
    pub about: &'static str,
    /// Layers of the model.
    pub layers: u32,
    pub(super) family: Family,
    pub(super) n_embd: u32,
    pub(super) n_ff: u32,
    pub(super) n_heads: u32,
    pub(super) n_kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) n_vocab: u32,
    context: u32,
    rope_base: f32,
    eps: f32,
    pub(super) head: Head,
    pub(super) mix: Mix,
    vocabulary: Vocabulary,
}

/// The architecture, with what it alone has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    Llama {
        /// The factor of Llama 3.1's frequency scaling.
        rope_factor: Option<f32>,
    },
    Qwen2,
    Qwen3,
    Phi3 {
        window: u32,
    },
    GptOss {
        experts: u32,
        experts_used: u32,
        window: u32,
        yarn_factor: f32,
        yarn_context: u32,
    },
}

/// Where the logits' matrix comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    Tied,
    Separate,
}

/// What the quantiser was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mix {
    Q4KM,
    Q4_1,
    Mxfp4,
}

/// The kind of tokenizer.
#[derive(Clone, Copy, Debug)]
enum Vocabulary {
    ByteLevel { pre: &'static str },
    SentencePiece,
}

/// All shapes.
pub static SHAPES: &[Shape] = &[
    Shape {
        name: "llama3-8b",
        about: "Llama 3.1 8B, Q4_K_M, 4.9 GB",
        layers: 32,
        family: Family::Llama {
            rope_factor: Some(8.0),
        },
        n_embd: 4096,
        n_ff: 14336,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        n_vocab: 128_256,
        context: 131_072,
        rope_base: 500_000.0,
        eps: 1e-5,
        head: Head::Separate,
        mix: Mix::Q4KM,
        vocabulary: Vocabulary::ByteLevel { pre: "llama-bpe" },
    },
    Shape {
        name: "llama3-1b",
        about: "Llama 3.2 1B, Q4_K_M, 0.8 GB",
        layers: 16,
        family: Family::Llama {
            rope_factor: Some(32.0),
        },
        n_embd: 2048,
        n_ff: 8192,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        n_vocab: 128_256,
        context: 131_072,
        rope_base: 500_000.0,
        eps: 1e-5,
        head: Head::Tied,
        mix: Mix::Q4KM,
        vocabulary: Vocabulary::ByteLevel { pre: "llama-bpe" },
    },
    Shape {
        name: "qwen2.5-0.5b",
        about: "Qwen2.5 0.5B, Q4_K_M (Q5_0 and Q8_0 where rows are no multiple of 256), 0.4 GB",
        layers: 24,
        family: Family::Qwen2,
        n_embd: 896,
        n_ff: 4864,
        n_heads: 14,
        n_kv_heads: 2,
        head_dim: 64,
        n_vocab: 151_936,
        context: 32_768,
        rope_base: 1_000_000.0,
        eps: 1e-6,
        head: Head::Tied,
        mix: Mix::Q4KM,
        vocabulary: Vocabulary::ByteLevel { pre: "qwen2" },
    },
    Shape {
        name: "qwen3-4b",
        about: "Qwen3 4B, Q4_K_M, 2.5 GB",
        layers: 36,
        family: Family::Qwen3,
        n_embd: 2560,
        n_ff: 9728,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        n_vocab: 151_936,
        context: 40_960,
        rope_base: 1_000_000.0,
        eps: 1e-6,
        head: Head::Tied,
        mix: Mix::Q4KM,
        vocabulary: Vocabulary::ByteLevel { pre: "qwen2" },
    },
    Shape {
        name: "phi3-mini",
        about: "Phi-3 mini 4k, Q4_K_M, 2.4 GB",
        layers: 32,
        family: Family::Phi3 { window: 2047 },
        n_embd: 3072,
        n_ff: 8192,
        n_heads: 32,
        n_kv_heads: 32,
        head_dim: 96,
        n_vocab: 32_064,
        context: 4096,
        rope_base: 10_000.0,
        eps: 1e-5,
        head: Head::Separate,
        mix: Mix::Q4KM,
        vocabulary: Vocabulary::SentencePiece,
    },
    Shape {
        name: "gpt-oss-20b",
        about: "gpt-oss 20B, MXFP4 experts, Q8_0 else, 12.1 GB",
        layers: 24,
        family: Family::GptOss {
            experts: 32,
            experts_used: 4,
            window: 128,
            yarn_factor: 32.0,
            yarn_context: 4096,
        },
        n_embd: 2880,
        n_ff: 2880,
        n_heads: 64,
        n_kv_heads: 8,
        head_dim: 64,
        n_vocab: 201_088,
        context: 131_072,
        rope_base: 150_000.0,
        eps: 1e-5,
        head: Head::Separate,
        mix: Mix::Mxfp4,
        vocabulary: Vocabulary::ByteLevel { pre: "gpt-4o" },
    },
    Shape {
        name: "smollm2-135m",
        about: "SmolLM2 135M, Q4_1, 0.1 GB: the shape of the default model",
        layers: 30,
        family: Family::Llama { rope_factor: None },
        n_embd: 576,
        n_ff: 1536,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        n_vocab: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        eps: 1e-5,
        head: Head::Tied,
        mix: Mix::Q4_1,
        vocabulary: Vocabulary::ByteLevel { pre: "smollm" },
    },
];

/// Keys and values in the making.
struct Keys {
    architecture: &'static str,
    all: Vec<(String, Value)>,
}

impl Keys {
    /// A key of the architecture's own.
    fn own(&mut self, key: &str, value: Value) {
        self.all
            .push((format!("{}.{key}", self.architecture), value));
    }

    fn general(&mut self, key: &str, value: Value) {
        self.all.push((format!("general.{key}"), value));
    }
}

impl Shape {
    /// The shape of this name.
    pub fn by_name(name: &str) -> Option<&'static Shape> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    fn architecture(&self) -> &'static str {
        match self.family {
            Family::Llama { .. } => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 { .. } => "phi3",
            Family::GptOss { .. } => "gpt-oss",
        }
    }

    /// The file's keys.
    pub(super) fn keys(&self, layers: u32) -> Vec<(String, Value)> {
        let mut keys = Keys {
            architecture: self.architecture(),
            all: Vec::new(),
        };
        let text = |text: &str| Value::Text(text.to_owned());
        keys.general("architecture", text(self.architecture()));
        keys.general("type", text("model"));
        keys.general("name", text(&format!("random weights as {}", self.name)));
        // The numbers that files give the mixes.
        let file_type = match self.mix {
            Mix::Q4_1 => 3,
            Mix::Q4KM => 15,
            Mix::Mxfp4 => 38,
        };
        keys.general("file_type", Value::U32(file_type));
        keys.general("quantization_version", Value::U32(2));
        keys.own("block_count", Value::U32(layers));
        keys.own("context_length", Value::U32(self.context));
        keys.own("embedding_length", Value::U32(self.n_embd));
        keys.own("feed_forward_length", Value::U32(self.n_ff));
        keys.own("attention.head_count", Value::U32(self.n_heads));
        keys.own("attention.head_count_kv", Value::U32(self.n_kv_heads));
        keys.own("attention.layer_norm_rms_epsilon", Value::F32(self.eps));
        keys.own("rope.freq_base", Value::F32(self.rope_base));
        self.keys_of_the_family(&mut keys);
        let tokenizer = match self.vocabulary {
            Vocabulary::ByteLevel { pre } => vocabulary::byte_level(self.n_vocab, pre),
            Vocabulary::SentencePiece => vocabulary::sentence_piece(self.n_vocab),
        };
        keys.all.extend(tokenizer);
        keys.all
    }

    fn keys_of_the_family(&self, keys: &mut Keys) {
        let widths = |keys: &mut Keys| {
            keys.own("attention.key_length", Value::U32(self.head_dim));
            keys.own("attention.value_length", Value::U32(self.head_dim));
        };
        match self.family {
            Family::Llama { .. } => {
                keys.own("vocab_size", Value::U32(self.n_vocab));
                keys.own("rope.dimension_count", Value::U32(self.head_dim));
            }
            Family::Qwen2 => {}
            Family::Qwen3 => widths(keys),
            Family::Phi3 { window } => {
                keys.own("rope.dimension_count", Value::U32(self.head_dim));
                keys.own(
                    "rope.scaling.original_context_length",
                    Value::U32(self.context),
                );
                keys.own("attention.sliding_window", Value::U32(window));
            }
            Family::GptOss {
                experts,
                experts_used,
                window,
                yarn_factor,
                yarn_context,
            } => {
                widths(keys);
                keys.own("attention.sliding_window", Value::U32(window));
                keys.own("expert_count", Value::U32(experts));
                keys.own("expert_used_count", Value::U32(experts_used));
                keys.own("expert_feed_forward_length", Value::U32(self.n_ff));
                keys.own("rope.scaling.type", Value::Text("yarn".to_owned()));
                keys.own("rope.scaling.factor", Value::F32(yarn_factor));
                keys.own(
                    "rope.scaling.original_context_length",
                    Value::U32(yarn_context),
                );
            }
        }
    }

    /// Llama 3.1's divisors of the frequencies: 1 for those that turn often in the context of old, the factor for those that turn
    /// less than once, and between them what lies between.
    pub(super) fn rope_factors(&self) -> Option<Vec<f32>> {
        const CONTEXT_OF_OLD: f32 = 8192.0;
        const TURNS: (f32, f32) = (1.0, 4.0);
        let Family::Llama {
            rope_factor: Some(factor),
        } = self.family
        else {
            return None;
        };
        let divisor = |pair: u32| {
            let frequency = self
                .rope_base
                .powf(-2.0 * pair as f32 / self.head_dim as f32);
            let turns = CONTEXT_OF_OLD * frequency / std::f32::consts::TAU;
            let share = ((turns - TURNS.0) / (TURNS.1 - TURNS.0)).clamp(0.0, 1.0);
            1.0 / (share + (1.0 - share) / factor)
        };
        Some((0..self.head_dim / 2).map(divisor).collect())
    }
}
