//! Files of preferences and texts: reading, tokenising, sampling.
//!
//! | step | module |
//! |---|---|
//! | a file's rows as bytes, with line numbers and bounds | [`source`] |
//! | several files, their shares and their order | [`input`] |
//! | conversations as texts, by the model's template | [`chat`] |
//! | rows as records: [`Table`] | [`table`], [`formats`], [`prompt`] |
//! | texts as ids and back | [`tokenizer`] |
//! | records as tokenised, truncated examples | [`examples`], [`preferences`] |
//! | a file's examples, made on demand: [`Dataset`] | [`dataset`] |
//! | what a training sees of a row, and of a whole file | [`inspect`] |
//!
//! There is no padding and so no mask for it: an example is a prompt and its completions, and what is
//! scored follows from their lengths, but for conversations of which only some turns are learnt.
//!
//! ```
//! use std::sync::Arc;
//! use collimate::data::tokenizer::{Special, train_bpe};
//! use collimate::data::{Dataset, Options, Pair, Tokenizer};
//!
//! # fn main() -> collimate::Result<()> {
//! # let dir = std::env::temp_dir().join(format!("collimate-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap();
//! # let path = dir.join("pairs.jsonl");
//! # std::fs::write(&path, r#"{"prompt": "Well?", "chosen": " Yes.", "rejected": " No."}"#).unwrap();
//! let json = train_bpe(["Well? Yes. No."].iter(), 300)?;
//! let tokenizer = Arc::new(Tokenizer::from_json(&json, &Special::sentence())?);
//! let data = Dataset::<Pair>::open(&path, tokenizer, &Options::default())?;
//! for pair in data.batch(&[0])? {
//!     println!("{:?} {:?}", pair.chosen_side(), pair.rejected_side());
//! }
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok(())
//! # }
//! ```

mod added;
mod bpe;
mod candidates;
mod cells;
pub mod chat;
mod conversations;
pub mod dataset;
pub mod examples;
mod expansion;
mod fields;
pub mod formats;
mod head;
pub mod input;
pub mod inspect;
mod items;
pub mod preferences;
pub mod prompt;
pub mod source;
mod special;
mod stream;
pub mod table;
pub mod tokenizer;

pub use candidates::{Candidates, CandidatesText};
pub use chat::{Chat, ChatTemplate};
pub use dataset::{Dataset, Item, Lines, Options};
pub use examples::{Example, Limits, Pair, Prompt, Side, Truncation, Unpaired};
pub use formats::{Format, Record};
pub use input::Input;
pub use preferences::{Preference, Ranked, Response};
pub use table::{ReadOptions, Row, Skipped, Table, TestSize};
pub use tokenizer::Tokenizer;
