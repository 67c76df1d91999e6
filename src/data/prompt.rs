//! Prompts that a file does not spell out.

/// Splits two texts that begin with the same prompt: `(prompt, rest of chosen, rest of rejected)`.
///
/// The prompt is the longest common prefix, by characters, that leaves neither rest empty. A space
/// right before the cut goes to the rests: tokenisers carry it with the word that follows. Where the
/// cut then still lies inside a token of either text, tokenisation moves the start of the completion
/// back to the last token they share.
///
/// `prompt + rest` is the text itself, always. Two equal texts are split before their last character:
/// such rows are in published files, TRL keeps them, and they do not move a model.
pub fn split<'a>(chosen: &'a str, rejected: &'a str) -> (&'a str, &'a str, &'a str) {
    let mut cut = 0;
    for ((at, c), r) in chosen.char_indices().zip(rejected.chars()) {
        let next = at + c.len_utf8();
        // Beyond `next` one of them would be empty; both have the same bytes up to there.
        if c != r || next == chosen.len() || next == rejected.len() {
            break;
        }
        cut = next;
    }
    if chosen[..cut].ends_with(' ') {
        cut -= 1;
    }
    (&chosen[..cut], &chosen[cut..], &rejected[cut..])
}

/// The prompt of an instruction and its optional input, in the layout that Alpaca published.
pub fn instruction(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_where_they_part() {
        for (chosen, rejected, expected) in [
            ("Q: a A: yes", "Q: a A: no", ("Q: a A:", " yes", " no")),
            ("Q A: Well, yes", "Q A: Well, no", ("Q A: Well,", " yes", " no")),
            // One is the beginning of the other: neither is left empty.
            ("ab", "abc", ("a", "b", "bc")),
            ("x y", "x yz", ("x", " y", " yz")),
            ("same", "same", ("sam", "e", "e")),
            ("", "", ("", "", "")),
            ("", "a", ("", "", "a")),
            ("a", "b", ("", "a", "b")),
            // Two characters that begin with the same byte.
            ("aé", "aè", ("a", "é", "è")),
            (" b", " c", ("", " b", " c")),
        ] {
            assert_eq!(split(chosen, rejected), expected);
        }
    }
}
