//! Text to token ids and back, as the model's own tokenizer does it.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::added::{Added, add};
use super::expansion::Expansion;
use super::special::read_bounded;
use crate::models::base_of_adapters;
use crate::{Error, Result, not_a_file};

pub use super::bpe::train_bpe;
pub use super::special::Special;
pub use super::stream::Stream;

/// The largest one in use is 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// What makes up a tokenizer in a model folder: a trained model is saved with copies of them.
pub const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
];

/// A model's tokenizer with its special tokens.
///
/// Ids are those that `tokenizer.json` gives, with its padding and truncation switched off: its
/// post-processor decides whether a token begins a text, and `add_bos_token` has no say, as in
/// `transformers` 5. That one rebuilds the tokenizers it knows as Llama's, and then leaves out the
/// first of the spaces that begin a text; the file, and so this, does not.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    bos: Option<i32>,
    eos: Option<(i32, String)>,
    filler: Option<(i32, String)>,
    stop_ids: Vec<i32>,
    vocab: usize,
    adds_bos: bool,
    verbatim: bool,
    expansion: Option<Expansion>,
    /// Whether it joins no words, once that was asked.
    parts_words: Arc<OnceLock<bool>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab", &self.vocab)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("stop_ids", &self.stop_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder: `tokenizer.json`, and what [`Special::read`] finds.
    ///
    /// # Errors
    /// [`Error::File`] when `tokenizer.json` is absent or malformed, or when the model's special
    /// tokens are no tokens.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let mut folder = folder.as_ref();
        not_a_file::check_there(folder, not_a_file::Hub::Model)?;
        let base = base_of_adapters(folder)?;
        let own = folder.join("tokenizer.json").exists();
        if let (Some(base), false) = (&base, own) {
            folder = base;
        }
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES)?
            .ok_or_else(|| Error::file(&path, "expected a tokenizer, got no such file"))?;
        let json = String::from_utf8(bytes).map_err(|_| Error::file(&path, "expected UTF-8"))?;
        // What config.json says of tokens is the base's.
        let special = Special::read_in(folder, base.as_deref().unwrap_or(folder))?;
        Self::build(path, &json, special)
    }

    /// Makes a tokenizer of the text of a `tokenizer.json`, such as [`train_bpe`]'s.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_json(json: &str, special: &Special) -> Result<Self> {
        Self::build(PathBuf::from("tokenizer.json"), json, special.clone())
    }

    fn build(path: PathBuf, json: &str, mut special: Special) -> Result<Self> {
        let bad = |message: String| Error::file(&path, message);
        let mut inner = guarded(|| {
            let mut inner: tokenizers::Tokenizer = json.parse()?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        })
        .map_err(|e| bad(format!("not a tokenizer: {e}")))?;
        if inner.get_vocab_size(true) == 0 {
            return Err(bad("not a tokenizer: it holds no token".into()));
        }
        let (with_ids, named): (Vec<_>, Vec<_>) =
            std::mem::take(&mut special.added).into_iter().partition(|added| added.id.is_some());
        add(&mut inner, with_ids.into_iter()).map_err(bad)?;
        special.resolve(|id| inner.id_to_token(id));
        let id = |name: &str| inner.token_to_id(name).and_then(|id| i32::try_from(id).ok());
        let bos = special.bos.as_deref().and_then(id);
        let eos = match special.eos {
            None => None,
            Some(name) => match id(&name) {
                Some(id) => Some((id, name)),
                None => return Err(bad(format!("the model's eos token {name:?} is no token"))),
            },
        };
        // A name in a text is read as its token only if it was added; transformers adds it too.
        let names =
            [special.bos.clone().filter(|_| bos.is_some()), eos.as_ref().map(|e| e.1.clone())];
        let known = inner.get_added_tokens_decoder();
        let missing: Vec<_> = names
            .into_iter()
            .flatten()
            .filter(|name| !known.values().any(|token| token.content == *name))
            .map(|name| tokenizers::AddedToken::from(name, true))
            .collect();
        let missing = missing.into_iter().map(|token| Added { token, id: None });
        add(&mut inner, missing.chain(named)).map_err(bad)?;
        let mut stop_ids = special.stop_ids;
        if let Some((id, _)) = eos {
            stop_ids.push(id);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let vocab = special.vocab_size.unwrap_or_else(|| inner.get_vocab_size(true));
        let filler =
            [special.pad, special.unk, special.bos].into_iter().flatten().find_map(|name| {
                let id = inner.token_to_id(&name).filter(|&id| (id as usize) < vocab);
                let id = id.and_then(|id| i32::try_from(id).ok())?;
                (!stop_ids.contains(&id)).then_some((id, name))
            });
        let mut tokenizer = Tokenizer {
            inner: Arc::new(inner),
            path,
            bos,
            eos,
            filler,
            stop_ids,
            vocab,
            adds_bos: false,
            verbatim: false,
            expansion: None,
            parts_words: Arc::default(),
        };
        tokenizer.check_end()?;
        let empty = tokenizer.raw("", true)?;
        tokenizer.adds_bos = bos.is_some_and(|id| empty.first() == Some(&id));
        if let Ok(json) = serde_json::from_str(json) {
            let known = |text: &str| tokenizer.inner.token_to_id(text).is_some();
            tokenizer.expansion = Expansion::of(&json, &known, empty.len());
        }
        Ok(tokenizer)
    }

    /// The end is written behind a completion as text, and must be read as its token.
    fn check_end(&self) -> Result<()> {
        let Some((id, name)) = &self.eos else { return Ok(()) };
        if self.raw(&format!("a{name}"), false)?.last() == Some(id) {
            return Ok(());
        }
        let message = format!(
            "the end token {name:?} is not found behind a text, which would be learnt without an end: \
             is it `\"normalized\": true` among the added_tokens? expected false"
        );
        Err(Error::file(&self.path, message))
    }

    /// This tokenizer for texts in which every special token is spelt out, as in those of a chat template:
    /// none is added, at their beginning or at their end.
    pub fn verbatim(&self) -> Tokenizer {
        Tokenizer { verbatim: true, adds_bos: false, ..self.clone() }
    }

    /// Whether it adds no token to a text.
    pub fn is_verbatim(&self) -> bool {
        self.verbatim
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<i32> {
        self.bos
    }

    /// Whether every text is begun with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The token that ends a completion, if the model has one.
    pub fn eos(&self) -> Option<i32> {
        self.eos.as_ref().map(|eos| eos.0)
    }

    /// The text of [`Tokenizer::eos`].
    pub fn eos_text(&self) -> Option<&str> {
        self.eos.as_ref().map(|eos| eos.1.as_str())
    }

    /// A token that can fill a batch up, and its name: it ends no text, so that the last token of a
    /// filled text can be told by it. The tokenizer's own pad token, else that of what is unknown,
    /// else the one that begins texts.
    pub fn filler(&self) -> Option<(i32, &str)> {
        self.filler.as_ref().map(|(id, name)| (*id, name.as_str()))
    }

    /// Every id that ends a generation, ascending.
    pub fn stop_ids(&self) -> &[i32] {
        &self.stop_ids
    }

    /// Rows of the model's embedding, or the tokenizer's own size where no `config.json` says.
    /// Every id that this tokenizer returns is below.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The id of a token by its exact name.
    pub fn id_of(&self, name: &str) -> Option<i32> {
        self.inner.token_to_id(name).and_then(|id| i32::try_from(id).ok())
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn name_of(&self, id: i32) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    fn raw(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, special))
            .map_err(|e| Error::file(&self.path, format!("tokenising failed: {e}")))?;
        self.checked(encoding.get_ids())
    }

    fn checked(&self, ids: &[u32]) -> Result<Vec<i32>> {
        let ids = ids.iter().enumerate().map(|(row, &id)| {
            if (id as usize) < self.vocab && id <= i32::MAX as u32 {
                return Ok(id as i32);
            }
            let id = i32::try_from(id).unwrap_or(i32::MAX);
            Err(Error::TokenId { op: "tokenise", row, id, vocab: self.vocab })
        });
        ids.collect()
    }

    /// A text with the special tokens that the tokenizer adds. Special tokens that are spelt out in
    /// the text are those tokens; one that repeats the added BOS is left out. A
    /// [verbatim](Tokenizer::verbatim) one adds none.
    ///
    /// # Errors
    /// [`Error::TokenId`] when the tokenizer knows more tokens than the model's embedding;
    /// [`Error::File`] when it fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let mut ids = self.raw(text, !self.verbatim)?;
        // Where one token is both, the second one may be the end of an empty text.
        let twice = ids.len() > 1 && ids[0] == ids[1] && Some(ids[0]) == self.bos;
        if self.adds_bos && twice && self.bos != self.eos() {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// A text without the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i32>> {
        self.raw(text, false)
    }

    /// A text's tokens, with the characters of the text that each of them is of. As `transformers` says it:
    /// a token may be without the spaces that it begins with.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(i32, Range<usize>)>> {
        let encoding = guarded(|| self.inner.encode_char_offsets(text, !self.verbatim))
            .map_err(|e| Error::file(&self.path, format!("tokenising failed: {e}")))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(self.checked(encoding.get_ids())?.into_iter().zip(offsets).collect())
    }

    /// A completion with EOS at its end, which it may have already.
    pub fn ended<'a>(&self, completion: &'a str) -> Cow<'a, str> {
        match &self.eos {
            Some((_, eos)) if !self.verbatim && !completion.ends_with(eos.as_str()) => {
                Cow::Owned(format!("{completion}{eos}"))
            }
            _ => Cow::Borrowed(completion),
        }
    }

    /// Tokenises a prompt and several completions of it, each ended by EOS.
    ///
    /// The prompt alone and the prompt with each completion are tokenised. The prompt ends where
    /// any of these part: tokens may merge across the boundary, and then the completion begins with
    /// the merged one. `prompt ++ completions[i]` is the tokenisation of the whole text `i`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn completions<const N: usize>(
        &self,
        prompt: &str,
        completions: [&str; N],
    ) -> Result<(Vec<i32>, [Vec<i32>; N])> {
        let (prompt, mut all) = self.many(prompt, &completions)?;
        Ok((prompt, std::array::from_fn(|i| std::mem::take(&mut all[i]))))
    }

    /// [`Tokenizer::completions`] of as many as there are.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn many(
        &self,
        prompt: &str,
        completions: &[impl AsRef<str>],
    ) -> Result<(Vec<i32>, Vec<Vec<i32>>)> {
        let mut prompt_ids = self.encode(prompt)?;
        let mut tails = Vec::with_capacity(completions.len());
        for completion in completions {
            let tail = self.encode(&format!("{prompt}{}", self.ended(completion.as_ref())))?;
            let common = prompt_ids.iter().zip(&tail).take_while(|(a, b)| a == b).count();
            prompt_ids.truncate(common);
            tails.push(tail);
        }
        for tail in &mut tails {
            tail.drain(..prompt_ids.len());
        }
        Ok((prompt_ids, tails))
    }

    /// The text of some ids, without special tokens.
    ///
    /// # Errors
    /// [`Error::TokenId`] for a negative id, [`Error::File`] when the tokenizer fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        self.text_of(ids, true)
    }

    /// The text of a completion as it follows its prompt, without special tokens. Alone some tokenizers
    /// would drop its first space.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_after(&self, prompt: &[i32], completion: &[i32]) -> Result<String> {
        let before = self.decode(prompt)?;
        let mut whole = self.decode(&[prompt, completion].concat())?;
        Ok(if whole.starts_with(&before) { whole.split_off(before.len()) } else { whole })
    }

    /// The text of some ids, with special tokens spelt out.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_with_special(&self, ids: &[i32]) -> Result<String> {
        self.text_of(ids, false)
    }

    fn text_of(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .enumerate()
            .map(|(row, &id)| {
                let vocab = self.vocab;
                u32::try_from(id).map_err(|_| Error::TokenId { op: "decode", row, id, vocab })
            })
            .collect::<Result<_>>()?;
        guarded(|| self.inner.decode(&ids, skip_special))
            .map_err(|e| Error::file(&self.path, format!("decoding failed: {e}")))
    }

    /// Decodes a generation token by token; `context` is what it continues.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stream(&self, context: &[i32]) -> Result<Stream<'_>> {
        Stream::new(self, context)
    }

    /// Whether the tokens on both sides of the end of a word and the space behind it are those of the two parts
    /// alone: no token reaches over it.
    pub(super) fn parts_words(&self) -> bool {
        use tokenizers::models::ModelWrapper;
        *self.parts_words.get_or_init(|| {
            let joins =
                matches!(self.inner.get_model(), ModelWrapper::BPE(_) | ModelWrapper::Unigram(_));
            joins
                && self.expansion.is_some()
                && super::head::parts_words(self.inner.get_vocab(true).keys().map(String::as_str))
        })
    }

    /// No more tokens than this come from [`Tokenizer::encode`]ing the text, found without doing
    /// it; none where the tokenizer's kind allows no such statement.
    pub fn at_most(&self, text: &str) -> Option<usize> {
        self.expansion.map(|expansion| expansion.bound(text))
    }
}

/// Runs a call into the `tokenizers` crate, some of whose parts panic on hostile files.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        // On one line, whatever the crate's message is.
        Ok(Err(e)) => Err(e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(_) => Err("the tokenizer panicked".into()),
    }
}
