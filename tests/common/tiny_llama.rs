//! Random llamas of a few thousand weights, as GGUF files: any shape, any tensor type, known to the test that asks for them.
#![allow(dead_code, reason = "each test file uses its own part")]

use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use worker_orcd::gguf::GgmlType;
use worker_orcd::quant::TensorType;

use super::gguf_writer::{GgufWriter, tensor_type};

/// Where the logits' matrix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Tied,
    Separate,
}

/// How positions are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    Linear(f32),
    /// A tensor `rope_freqs.weight` with divisors from 1 to 4.
    Factors,
}

/// A llama's shape. Matrices take the types of `matrices` in turn, F16 where their rows are no whole blocks of it.
#[derive(Clone, Copy, Debug)]
pub struct TinyLlama {
    pub matrices: &'static [TensorType],
    pub n_embd: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub rope_dims: usize,
    pub rope_base: f32,
    pub scaling: Scaling,
    pub n_ff: usize,
    pub n_vocab: usize,
    pub n_layers: usize,
    pub head: Head,
    pub seed: u64,
}

/// Added to the mean square by the norms of every tiny llama.
pub const EPS: f32 = 1e-5;

impl TinyLlama {
    /// Three query heads over one; heads of 20, of which 12 are rotated; no width but the quantised rows' a multiple of 16.
    pub fn new(kind: TensorType) -> Self {
        static ALL: [TensorType; TensorType::ALL.len()] = TensorType::ALL;
        let place = ALL.iter().position(|k| *k == kind).expect("a known type");
        Self {
            matrices: &ALL[place..=place],
            n_embd: kind.block_len().max(64),
            n_heads: 3,
            n_kv_heads: 1,
            head_dim: 20,
            rope_dims: 12,
            rope_base: 10_000.0,
            scaling: Scaling::None,
            n_ff: 96usize.next_multiple_of(kind.block_len()),
            n_vocab: 77,
            n_layers: 2,
            head: Head::Separate,
            seed: 7,
        }
    }

    /// The file's bytes.
    pub fn file(&self) -> Vec<u8> {
        self.writer().finish()
    }

    /// The file in the making.
    pub fn writer(&self) -> GgufWriter {
        let (q, kv) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let mut w = Weights {
            rng: ChaCha8Rng::seed_from_u64(self.seed),
            kinds: self.matrices.iter().cycle(),
            writer: self.header(),
        };
        w.matrix("token_embd.weight", self.n_vocab, self.n_embd);
        for layer in 0..self.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            w.vector(&name("attn_norm"), self.n_embd, 0.5, 1.5);
            w.matrix(&name("attn_q"), q, self.n_embd);
            w.matrix(&name("attn_k"), kv, self.n_embd);
            w.matrix(&name("attn_v"), kv, self.n_embd);
            w.matrix(&name("attn_output"), self.n_embd, q);
            w.vector(&name("ffn_norm"), self.n_embd, 0.5, 1.5);
            w.matrix(&name("ffn_gate"), self.n_ff, self.n_embd);
            w.matrix(&name("ffn_up"), self.n_ff, self.n_embd);
            w.matrix(&name("ffn_down"), self.n_embd, self.n_ff);
        }
        w.vector("output_norm.weight", self.n_embd, 0.5, 1.5);
        if self.head == Head::Separate {
            w.matrix("output.weight", self.n_vocab, self.n_embd);
        }
        if self.scaling == Scaling::Factors {
            w.vector("rope_freqs.weight", self.rope_dims / 2, 1.0, 4.0);
        }
        w.writer
    }

    fn header(&self) -> GgufWriter {
        let writer = GgufWriter::new()
            .key("general.architecture", "llama")
            .key("llama.block_count", self.n_layers as u32)
            .key("llama.context_length", 4096u32)
            .key("llama.embedding_length", self.n_embd as u32)
            .key("llama.feed_forward_length", self.n_ff as u32)
            .key("llama.attention.head_count", self.n_heads as u32)
            .key("llama.attention.head_count_kv", self.n_kv_heads as u32)
            .key("llama.attention.key_length", self.head_dim as u32)
            .key("llama.attention.value_length", self.head_dim as u32)
            .key("llama.attention.layer_norm_rms_epsilon", EPS)
            .key("llama.rope.dimension_count", self.rope_dims as u32)
            .key("llama.rope.freq_base", self.rope_base);
        match self.scaling {
            Scaling::None | Scaling::Factors => writer,
            Scaling::Linear(factor) => writer
                .key("llama.rope.scaling.type", "linear")
                .key("llama.rope.scaling.factor", factor),
        }
    }
}

/// Tensors in the making. Matrices are scaled so that activations stay near 1 and attention is neither flat nor all on one position.
struct Weights {
    rng: ChaCha8Rng,
    kinds: std::iter::Cycle<std::slice::Iter<'static, TensorType>>,
    writer: GgufWriter,
}

impl Weights {
    /// A number from `from` up to `to`.
    fn number(&mut self, from: f32, to: f32) -> f32 {
        let unit = (self.rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
        from + unit * (to - from)
    }

    fn vector(&mut self, name: &str, len: usize, from: f32, to: f32) {
        let bytes: Vec<u8> = (0..len)
            .flat_map(|_| self.number(from, to).to_le_bytes())
            .collect();
        self.put(name, &[len as u64], tensor_type::F32, bytes);
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let wanted = *self.kinds.next().expect("a type at least");
        let kind = if cols.is_multiple_of(wanted.block_len()) {
            wanted
        } else {
            TensorType::F16
        };
        let deviation = 1.0 / (cols as f32).sqrt();
        let blocks = rows * cols / kind.block_len();
        let bytes: Vec<u8> = (0..blocks)
            .flat_map(|_| self.block(kind, deviation))
            .collect();
        let type_id = GgmlType::from_name(kind.name()).expect("in files").id();
        self.put(name, &[cols as u64, rows as u64], type_id, bytes);
    }

    /// One block whose weights deviate from 0 by about `deviation`. Quants are random, and so are the scales in a superblock; minima are
    /// such that the mean is 0. The divisors are what the deviation would be under a scale of 1.
    fn block(&mut self, kind: TensorType, deviation: f32) -> Vec<u8> {
        let uniform = 3f32.sqrt() * deviation;
        let d = self.number(0.7, 1.3) * deviation;
        match kind {
            TensorType::F32 => self.number(-uniform, uniform).to_le_bytes().to_vec(),
            TensorType::F16 => halves(&[self.number(-uniform, uniform)]),
            TensorType::BF16 => self.number(-uniform, uniform).to_le_bytes()[2..].to_vec(),
            TensorType::Q4_0 => [halves(&[d / 4.6]), self.bytes(16)].concat(),
            TensorType::Q4_1 => [halves(&[d / 4.6, -7.5 * d / 4.6]), self.bytes(16)].concat(),
            TensorType::Q5_0 => [halves(&[d / 9.2]), self.bytes(20)].concat(),
            TensorType::Q5_1 => [halves(&[d / 9.2, -15.5 * d / 9.2]), self.bytes(20)].concat(),
            TensorType::Q8_0 => [halves(&[d / 74.0]), self.bytes(32)].concat(),
            TensorType::Q2_K => [self.bytes(80), halves(&[d / 14.0, 1.5 * d / 14.0])].concat(),
            TensorType::Q3_K => [self.bytes(108), halves(&[d / 42.0])].concat(),
            TensorType::Q4_K => [halves(&[d / 258.0, 7.5 * d / 258.0]), self.bytes(140)].concat(),
            TensorType::Q5_K => [halves(&[d / 527.0, 15.5 * d / 527.0]), self.bytes(172)].concat(),
            TensorType::Q6_K => [self.bytes(208), halves(&[d / 1366.0])].concat(),
            TensorType::Q8_K => [(d / 74.0).to_le_bytes().to_vec(), self.bytes(288)].concat(),
            TensorType::IQ4_NL => [halves(&[d / 69.0]), self.bytes(16)].concat(),
            TensorType::IQ4_XS => [halves(&[d / 1270.0]), self.bytes(134)].concat(),
            TensorType::MXFP4 => {
                let exponent = (d / 5.9).log2().round() as i32 + 128;
                [vec![exponent as u8], self.bytes(16)].concat()
            }
        }
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn put(&mut self, name: &str, dims: &[u64], type_id: u32, bytes: Vec<u8>) {
        let writer = std::mem::take(&mut self.writer);
        self.writer = writer.tensor(name, dims, type_id, bytes);
    }
}

/// Halves as they are stored.
fn halves(values: &[f32]) -> Vec<u8> {
    let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
    halves.collect()
}
