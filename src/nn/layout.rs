use crate::ops::attention::{Segment, Segments};
use crate::{Error, Result};

/// Where every token of a batch stands: there is no padding, so there is nothing to mask.
///
/// A *sequence* is a run of scored tokens (a completion); sequences are numbered in the order in
/// which they were pushed. The last token of a sequence predicts nothing and is no input, unless the
/// layout is a [whole](LayoutBuilder::whole) one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Input token of each of the T rows.
    pub tokens: Vec<i32>,
    /// Position of each row in its sequence.
    pub positions: Vec<i32>,
    /// Attention: which rows see which. They cover the T rows in order, without gaps.
    pub segments: Segments,
    /// `[N]` the hidden row that predicts each scored token; in a whole layout, the token's own.
    pub rows: Vec<i32>,
    /// `[N]` the scored tokens.
    pub targets: Vec<i32>,
    /// `[S + 1]` where each sequence's scored tokens start and end in `targets`.
    pub cu_scored: Vec<i32>,
    /// `[N]` what each scored token's log-prob counts in its sequence's sum; empty: 1 each.
    pub weights: Vec<f32>,
}

impl Layout {
    /// S, the number of scored sequences.
    pub fn sequences(&self) -> usize {
        self.cu_scored.len().saturating_sub(1)
    }

    /// N, the number of scored tokens.
    pub fn scored(&self) -> usize {
        self.targets.len()
    }

    /// Scored tokens of sequence `s`.
    pub fn scored_of(&self, s: usize) -> std::ops::Range<usize> {
        self.cu_scored[s] as usize..self.cu_scored[s + 1] as usize
    }

    /// [`Layout::weights`] of the scored tokens of some sequences.
    pub fn weights_of(&self, sequences: &std::ops::Range<usize>) -> Option<&[f32]> {
        let cu = &self.cu_scored[sequences.start..=sequences.end];
        let (first, last) = (cu[0] as usize, cu[cu.len() - 1] as usize);
        (!self.weights.is_empty()).then(|| &self.weights[first..last])
    }

    /// The hidden row of the last scored token of each sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] where a sequence has no scored token.
    pub fn last_rows(&self) -> Result<Vec<i32>> {
        (0..self.sequences())
            .map(|s| {
                let last = self.rows[self.scored_of(s)].last().copied();
                let expected = || Error::shape("layout", "a token in every completion", "none");
                last.ok_or_else(expected)
            })
            .collect()
    }

    /// Checks that every token is a row of a vocabulary of `vocab`.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        for (row, &id) in self.tokens.iter().chain(&self.targets).enumerate() {
            if id < 0 || id as usize >= vocab {
                return Err(Error::TokenId { op: "layout", row, id, vocab });
            }
        }
        Ok(())
    }
}

/// Builds a [`Layout`] sequence by sequence.
#[derive(Clone, Debug)]
pub struct LayoutBuilder {
    layout: Layout,
    whole: bool,
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayoutBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        let layout = Layout { cu_scored: vec![0], ..Layout::default() };
        LayoutBuilder { layout, whole: false }
    }

    /// An empty batch of whole sequences, for heads that judge a token once it is there: the last
    /// token is an input too, and the row of a scored token is its own.
    pub fn whole() -> Self {
        LayoutBuilder { whole: true, ..Self::new() }
    }

    /// One sequence on its own copy of its prompt. Without a prompt the first token of the
    /// completion is not scored: nothing predicts it (in a whole layout it is).
    pub fn push(&mut self, prompt: &[i32], completion: &[i32]) {
        self.push_where(prompt, completion, |_| true);
    }

    /// [`LayoutBuilder::push`] of a completion of which only some tokens are scored: `scored` says which.
    ///
    /// # Errors
    /// [`Error::Shape`] where that has another length than the completion.
    pub fn push_in_part(
        &mut self,
        prompt: &[i32],
        completion: &[i32],
        scored: &[bool],
    ) -> Result<()> {
        if scored.len() != completion.len() {
            let expected = format!("a mark for each of {} tokens", completion.len());
            return Err(Error::shape("layout", expected, scored.len().to_string()));
        }
        self.push_where(prompt, completion, |i| scored[i]);
        Ok(())
    }

    fn push_where(&mut self, prompt: &[i32], completion: &[i32], scored: impl Fn(usize) -> bool) {
        let start = self.layout.tokens.len();
        let tokens = prompt.iter().chain(completion);
        let back = usize::from(!self.whole);
        let len = (prompt.len() + completion.len()).saturating_sub(back);
        self.inputs(tokens.take(len).copied(), 0, start, 0);
        let first_scored = prompt.len().max(back);
        let skipped = first_scored - prompt.len();
        for (i, &target) in completion.iter().enumerate().skip(skipped).filter(|(i, _)| scored(*i))
        {
            self.score((start + prompt.len() + i - back) as i32, target);
        }
        self.end_sequence();
    }

    /// Several completions on one copy of their prompt: exact, and cheaper than copies. The prompt
    /// must not be empty unless there is nothing to share.
    pub fn push_shared(&mut self, prompt: &[i32], completions: &[&[i32]]) {
        if prompt.is_empty() {
            completions.iter().for_each(|completion| self.push(prompt, completion));
            return;
        }
        let prefix = self.layout.tokens.len();
        self.inputs(prompt.iter().copied(), 0, 0, 0);
        for completion in completions {
            let start = self.layout.tokens.len();
            let back = usize::from(!self.whole);
            let len = completion.len().saturating_sub(back);
            self.inputs(completion[..len].iter().copied(), prompt.len(), prefix, prompt.len());
            for (i, &target) in completion.iter().enumerate() {
                let row = if i < back { prefix + prompt.len() - 1 } else { start + i - back };
                self.score(row as i32, target);
            }
            self.end_sequence();
        }
    }

    /// The batch.
    pub fn finish(self) -> Result<Layout> {
        if self.layout.tokens.len() > i32::MAX as usize {
            return Err(Error::shape("layout", "fewer than 2^31 tokens", "more"));
        }
        Ok(self.layout)
    }

    fn inputs(
        &mut self,
        tokens: impl Iterator<Item = i32>,
        position: usize,
        prefix_start: usize,
        prefix_len: usize,
    ) {
        let layout = &mut self.layout;
        let start = layout.tokens.len();
        layout.tokens.extend(tokens);
        let len = layout.tokens.len() - start;
        if len == 0 {
            return;
        }
        layout.positions.extend((0..len).map(|i| (position + i) as i32));
        layout.segments.push(Segment {
            q_start: start as i32,
            q_len: len as i32,
            kv_start: start as i32,
            prefix_start: if prefix_len == 0 { 0 } else { prefix_start as i32 },
            prefix_len: prefix_len as i32,
        });
    }

    fn score(&mut self, row: i32, target: i32) {
        self.layout.rows.push(row);
        self.layout.targets.push(target);
    }

    fn end_sequence(&mut self) {
        self.layout.cu_scored.push(self.layout.targets.len() as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prompt_scores_both_first_tokens_from_its_last_row() {
        let mut builder = LayoutBuilder::new();
        builder.push_shared(&[1, 5, 6], &[&[7, 8, 2], &[9]]);
        let layout = builder.finish().unwrap();
        assert_eq!(layout.tokens, [1, 5, 6, 7, 8]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 4]);
        assert_eq!(layout.rows, [2, 3, 4, 2]);
        assert_eq!(layout.targets, [7, 8, 2, 9]);
        assert_eq!(layout.cu_scored, [0, 3, 4]);
        assert_eq!(layout.segments.len(), 2);
        assert_eq!(layout.segments[1].prefix_len, 3);
    }

    #[test]
    fn a_text_does_not_score_its_first_token() {
        let mut builder = LayoutBuilder::new();
        builder.push(&[], &[1, 5, 2]);
        builder.push(&[1, 3], &[4, 2]);
        let layout = builder.finish().unwrap();
        assert_eq!(layout.tokens, [1, 5, 1, 3, 4]);
        assert_eq!(layout.targets, [5, 2, 4, 2]);
        assert_eq!(layout.rows, [0, 1, 3, 4]);
        assert_eq!(layout.cu_scored, [0, 2, 4]);
    }

    #[test]
    fn only_some_tokens_of_a_completion_can_be_scored() {
        let mut builder = LayoutBuilder::new();
        builder.push_in_part(&[1, 3], &[4, 5, 6, 2], &[true, false, false, true]).unwrap();
        builder.push_in_part(&[], &[7, 8, 9], &[true, true, false]).unwrap();
        assert!(builder.push_in_part(&[1], &[4], &[]).is_err());
        let layout = builder.finish().unwrap();
        assert_eq!(layout.tokens, [1, 3, 4, 5, 6, 7, 8]);
        assert_eq!(layout.targets, [4, 2, 8]);
        assert_eq!(layout.rows, [1, 4, 5]);
        assert_eq!(layout.cu_scored, [0, 2, 3]);
    }

    #[test]
    fn whole_sequences_have_their_last_token_and_own_rows() {
        let mut builder = LayoutBuilder::whole();
        builder.push_shared(&[1, 5], &[&[7, 8, 2], &[9]]);
        builder.push(&[], &[3, 4]);
        let layout = builder.finish().unwrap();
        assert_eq!(layout.tokens, [1, 5, 7, 8, 2, 9, 3, 4]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 4, 2, 0, 1]);
        assert_eq!(layout.rows, [2, 3, 4, 5, 6, 7]);
        assert_eq!(layout.cu_scored, [0, 3, 4, 6]);
        assert_eq!(layout.last_rows().unwrap(), [4, 5, 7]);
        let mut builder = LayoutBuilder::whole();
        builder.push(&[1], &[]);
        assert!(builder.finish().unwrap().last_rows().is_err());
    }
}
