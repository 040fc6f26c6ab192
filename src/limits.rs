//! Every maximum of the worker, by name. Those of the wire stand in `worker_orcd_protocol::limits`.

use std::time::Duration;

/// Input read between two pieces of work, in bytes.
pub const READ_BYTES_MAX: usize = 64 * 1024;

/// Lines taken between two pieces of work: 64 KiB may hold thousands of them.
pub const LINES_PER_TURN_MAX: usize = 128;

/// How long a piece of work may keep the loop from its descriptors.
pub const SLICE: Duration = Duration::from_millis(5);

/// Bytes written to a pipe at once: PIPE_BUF on Linux, which a pipe that polls writable takes without blocking.
pub const PIPE_WRITE_BYTES_MAX: usize = 4096;

/// Bytes written to anything else at once.
pub const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Writes to one descriptor between two pieces of work.
pub const WRITES_PER_TURN_MAX: usize = 256;

/// `generate` requests that may wait, unless `--queue` says otherwise.
pub const QUEUE_DEFAULT: usize = 64;

/// Largest `--queue`.
pub const QUEUE_MAX: usize = 1024;

/// `tokenize`, `detokenize`, `apply_template` and `shutdown` requests that may wait.
pub const SIDE_QUEUE_MAX: usize = 64;

/// Bytes of request lines that wait, in all; a single request may always wait alone.
pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Tokens that `detokenize` and `with_pieces` turn into text in one piece of work.
pub const DETOKENIZE_PIECE_TOKENS: usize = 8192;

/// Entries of `logit_bias` that are looked at in one piece of work: each may be a text that is to be cut into tokens.
pub const LOGIT_BIAS_PIECE_ENTRIES: usize = 64;

/// Tokens whose texts are searched for what breaks a sequence in one piece of work.
pub const BREAKERS_PIECE_TOKENS: u32 = 8192;

/// Tokens whose bytes are copied in one piece of work when the first grammar comes.
pub const VOCABULARY_PIECE_TOKENS: usize = 16_384;

/// Symbols in the productions of a grammar, as it is compiled.
pub const GRAMMAR_SYMBOLS_MAX: usize = 100_000;

/// States of a grammar's lexer: each takes a kilobyte or two.
pub const LEXER_STATES_MAX: usize = 50_000;

/// Tokens that a grammar forces which are put into the output in one piece of work.
pub const FORCED_PIECE_TOKENS: usize = 64;

/// Characters of what an error says of a grammar.
pub const GRAMMAR_REASON_CHARS_MAX: usize = 300;

/// Bytes of a line of `prompt_logprobs` around its entries: its frame, and an id of which every byte is escaped.
pub const PROMPT_LOGPROBS_FRAME_BYTES: usize = 2048;

/// Bytes of a prompt that are hashed for the log in one piece of work.
pub const HASH_PIECE_BYTES: usize = 1024 * 1024;

/// Sequences that the prefix cache keeps, whatever their length.
pub const PREFIXES_MAX: usize = 256;

/// Requests by whose names a kept sequence, or its beginning, is known.
pub const PREFIX_LABELS_MAX: usize = 16;

/// Bytes of a saved state that are read or written in one piece of work.
pub const STATE_PIECE_BYTES: usize = 1024 * 1024;

/// Longest header of a saved state, in bytes.
pub const STATE_HEADER_BYTES_MAX: usize = 64 * 1024;

/// Longest context unless `--ctx` says otherwise, in tokens.
pub const CONTEXT_DEFAULT: usize = 8192;

/// Largest `--ctx` in tokens.
pub const CONTEXT_MAX: usize = 16 * 1024 * 1024;

/// Largest `--tokenizer` or `--chat-template` file, in bytes.
pub const SIDE_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// `--drain-ms` unless it is given.
pub const DRAIN_MS_DEFAULT: u64 = 30_000;

/// Largest `--drain-ms`: a day.
pub const DRAIN_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// How long an exit that does not wait for its reader tries to write what is left; and any exit, what is left of the log.
pub const EXIT_FLUSH: Duration = Duration::from_secs(1);

/// Between two looks at whether the model still lies in its device's own memory.
pub const RESIDENCY_INTERVAL: Duration = Duration::from_secs(60);

/// How long a second SIGTERM tries to write what is left.
pub const KILLED_FLUSH: Duration = Duration::from_millis(50);

/// Between two `progress` notifications of a load, apart from those at the quarters.
pub const LOAD_PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Log records held back until the end of a job, in bytes.
pub const LOG_HELD_BYTES_MAX: usize = 64 * 1024;

/// Log records that wait for a slow reader of stderr, in bytes; beyond it lines are dropped and counted.
pub const LOG_UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// Longest `--worker-id` in bytes.
pub const WORKER_ID_BYTES_MAX: usize = 256;

/// Stack of the process, in bytes: twice what the deepest chat template takes. It is address space until it is used.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;
