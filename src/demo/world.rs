//! The world of the demo: a small grammar of reviews, and what each of them is worth.
//!
//! A prompt names a thing and a place, `The soup by the harbour was`; a completion describes it,
//! ` very fresh but not hot, and we smiled.` Which adjectives fit depends on the thing, `but` stands
//! between opposites alone, and a hidden mood runs through the whole sentence: something to learn
//! for a small model. The reward is a score of the text, from -[`WORST_TO_BEST`] to
//! [`WORST_TO_BEST`]; it knows nothing of the grammar, so a policy is free to cheat, and
//! [`well_formed`] tells whether it did.

use crate::rng::Rng;

/// The largest reward; the smallest one is its negative.
pub const WORST_TO_BEST: f64 = 4.0;

const OPENERS: [&str; 4] = ["The", "Our", "That", "This"];

const PLACES: [&str; 20] = [
    "at the station",
    "at the market",
    "at the museum",
    "at the airport",
    "by the harbour",
    "by the river",
    "by the lake",
    "by the sea",
    "by the old bridge",
    "in the village",
    "in the valley",
    "in the old town",
    "in the north",
    "in the park",
    "near the castle",
    "near the church",
    "near the border",
    "near the theatre",
    "on the hill",
    "on the island",
];

/// Words with their value.
type Words = [(&'static str, f64)];

/// Things of one kind, and the adjectives that fit them.
struct Kind {
    things: &'static [&'static str],
    adjectives: &'static Words,
}

const KINDS: [Kind; 3] = [
    Kind {
        things: &["soup", "bread", "cake", "coffee", "fish", "salad", "pie", "rice", "stew", "tea"],
        adjectives: &[
            ("delicious", 1.0),
            ("excellent", 1.0),
            ("fresh", 0.5),
            ("tasty", 0.5),
            ("simple", 0.0),
            ("bland", -0.5),
            ("greasy", -0.5),
            ("stale", -1.0),
            ("inedible", -1.0),
        ],
    },
    Kind {
        things: &[
            "hotel", "room", "cabin", "garden", "house", "camp", "flat", "hostel", "lodge", "bar",
        ],
        adjectives: &[
            ("beautiful", 1.0),
            ("spotless", 1.0),
            ("bright", 0.5),
            ("quiet", 0.5),
            ("plain", 0.0),
            ("dark", -0.5),
            ("noisy", -0.5),
            ("filthy", -1.0),
            ("horrible", -1.0),
        ],
    },
    Kind {
        things: &[
            "waiter", "guide", "driver", "cook", "owner", "guard", "clerk", "porter", "host",
            "nurse",
        ],
        adjectives: &[
            ("wonderful", 1.0),
            ("brilliant", 1.0),
            ("kind", 0.5),
            ("helpful", 0.5),
            ("busy", 0.0),
            ("slow", -0.5),
            ("rude", -0.5),
            ("hostile", -1.0),
            ("useless", -1.0),
        ],
    },
];

/// What an adverb multiplies the adjective after it with.
const ADVERBS: [(&str, f64); 4] = [("", 1.0), ("very", 1.5), ("rather", 0.5), ("not", -0.5)];

const ENDINGS: [(&str, f64); 6] = [
    ("cheered", 1.0),
    ("smiled", 0.5),
    ("waited", 0.0),
    ("nodded", 0.0),
    ("sighed", -0.5),
    ("complained", -1.0),
];

/// Every prompt, in an order drawn from `rng`.
pub fn prompts(rng: &mut Rng) -> Vec<String> {
    let mut all = Vec::new();
    for opener in OPENERS {
        for thing in KINDS.iter().flat_map(|kind| kind.things) {
            all.extend(PLACES.iter().map(|place| format!("{opener} {thing} {place} was")));
        }
    }
    rng.shuffle(&mut all);
    all
}

/// A completion of a prompt, as the corpus has them: good and bad in equal shares.
pub fn completion(prompt: &str, rng: &mut Rng) -> String {
    // Good, bad, or neither: with neither every word is as likely as its opposite.
    let mood = [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0][rng.below(10) as usize];
    let adjectives = kind_of(prompt).adjectives;
    let (first, value, adjective) = phrase(adjectives, "", mood, rng);
    let mut text = format!(" {first}");
    let shape = rng.below(10);
    if shape >= 2 {
        let (second, other, _) = phrase(adjectives, adjective, mood, rng);
        text += &format!(" {} {second}", joint(value, other));
    }
    if shape != 2 {
        let values: Vec<f64> = ENDINGS.iter().map(|ending| ending.1).collect();
        text += &format!(", and we {}", ENDINGS[draw(&values, mood, rng)].0);
    }
    text + "."
}

/// What a text is worth: adjectives, each times the adverb before it, and the verb of the ending.
pub fn reward(text: &str) -> f64 {
    let (mut sum, mut factor) = (0.0, 1.0);
    for word in text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
        let value = KINDS.iter().find_map(|kind| value(kind.adjectives, word));
        sum += factor * value.unwrap_or(0.0) + self::value(&ENDINGS, word).unwrap_or(0.0);
        factor = self::value(&ADVERBS, word).unwrap_or(1.0);
    }
    f64::clamp(sum, -WORST_TO_BEST, WORST_TO_BEST)
}

/// Whether a completion is one that the grammar gives this prompt.
pub fn well_formed(prompt: &str, completion: &str) -> bool {
    let Some(text) = completion.strip_prefix(' ').and_then(|text| text.strip_suffix('.')) else {
        return false;
    };
    let adjectives = kind_of(prompt).adjectives;
    let (text, ended) = match text.split_once(", and we ") {
        Some((text, verb)) => (text, value(&ENDINGS, verb).is_some()),
        None => (text, true),
    };
    let phrases: Vec<&str> = text.split(" and ").flat_map(|part| part.split(" but ")).collect();
    let read: Vec<_> = phrases.iter().map(|phrase| read_phrase(adjectives, phrase)).collect();
    ended
        && match read[..] {
            [Some(_)] => true,
            [Some((a, first)), Some((b, second))] => {
                a != b && text == format!("{} {} {}", phrases[0], joint(first, second), phrases[1])
            }
            _ => false,
        }
}

/// An adjective with its adverb: the text, its value, the adjective.
fn phrase(
    adjectives: &'static Words,
    without: &str,
    mood: f64,
    rng: &mut Rng,
) -> (String, f64, &'static str) {
    // Half of all adjectives stand alone.
    let adverbs = [0, 0, 0, 1, 2, 3].map(|i| ADVERBS[i]);
    let all: Vec<_> = adverbs
        .iter()
        .flat_map(|adverb| adjectives.iter().map(move |adjective| (adverb, adjective)))
        .filter(|(_, adjective)| adjective.0 != without)
        .collect();
    let values: Vec<f64> = all.iter().map(|(adverb, adjective)| adverb.1 * adjective.1).collect();
    let drawn = draw(&values, mood, rng);
    let (adverb, adjective) = all[drawn];
    let text = format!("{} {}", adverb.0, adjective.0).trim_start().to_string();
    (text, values[drawn], adjective.0)
}

/// One of several values; one that has the mood's sign is four times as likely as its opposite.
fn draw(values: &[f64], mood: f64, rng: &mut Rng) -> usize {
    let weight = |value: f64| match value * mood {
        x if x > 0.0 => 4,
        x if x < 0.0 => 1,
        _ => 2,
    };
    let mut left = rng.below(values.iter().map(|&value| weight(value)).sum());
    let chosen = values.iter().position(|&value| match left.checked_sub(weight(value)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    chosen.unwrap_or(0)
}

fn joint(first: f64, second: f64) -> &'static str {
    if first * second < 0.0 { "but" } else { "and" }
}

fn read_phrase<'a>(adjectives: &Words, phrase: &'a str) -> Option<(&'a str, f64)> {
    let (factor, adjective) = match phrase.split_once(' ') {
        Some((adverb, adjective)) => (value(&ADVERBS, adverb)?, adjective),
        None => (1.0, phrase),
    };
    Some((adjective, factor * value(adjectives, adjective)?))
}

fn value(words: &Words, word: &str) -> Option<f64> {
    words.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
}

/// What a prompt is about; a text that is no prompt of this world is about food.
fn kind_of(prompt: &str) -> &'static Kind {
    let thing = prompt.split(' ').nth(1).unwrap_or_default();
    KINDS.iter().find(|kind| kind.things.contains(&thing)).unwrap_or(&KINDS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_by_hand() {
        for (text, expected) in [
            (" very fresh but not delicious, and we smiled.", 0.75 - 0.5 + 0.5),
            (" rather rude.", -0.25),
            (" plain and simple, and we waited.", 0.0),
            (" very beautiful and very spotless, and we cheered.", 4.0),
            (" very beautiful and very spotless and very bright, and we cheered.", 4.0),
            (" very stale and very inedible and bland, and we complained.", -4.0),
            (" not", 0.0),
            ("", 0.0),
            (" very, very good", 0.0),
            (" not very fresh.", 0.75),
        ] {
            assert_eq!(reward(text), expected, "{text}");
        }
    }

    #[test]
    fn the_grammar_knows_its_own_sentences_and_no_others() {
        let mut rng = Rng::new(1, 0);
        let prompts = prompts(&mut rng);
        assert_eq!(prompts.len(), 2400);
        for prompt in &prompts {
            let text = completion(prompt, &mut rng);
            assert!(well_formed(prompt, &text), "{prompt}{text}");
        }
        let prompt = "The soup by the sea was";
        for (text, expected) in [
            (" fresh.", true),
            (" very fresh but not tasty, and we cheered.", true),
            (" very fresh and not tasty, and we cheered.", false),
            (" fresh and fresh.", false),
            (" fresh and tasty and tasty.", false),
            (" kind.", false),
            (" very very fresh.", false),
            (" fresh", false),
            (" fresh, and we slept.", false),
            ("", false),
            (".", false),
        ] {
            assert_eq!(well_formed(prompt, text), expected, "{text}");
        }
    }

    #[test]
    fn the_corpus_is_as_good_as_bad_and_varied() {
        let mut rng = Rng::new(2, 0);
        let prompts = prompts(&mut rng);
        let rewards: Vec<f64> =
            (0..20_000).map(|i| reward(&completion(&prompts[i % 2400], &mut rng))).collect();
        let mean = rewards.iter().sum::<f64>() / 20_000.0;
        let deviation = (rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 2e4).sqrt();
        // Standard error 0.009.
        assert!(mean.abs() < 0.04, "{mean}");
        assert!((1.0..1.6).contains(&deviation), "{deviation}");
    }
}
