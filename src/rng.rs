//! Random numbers by counter: the same on every machine, resumable at any point.

/// Philox4x32 with ten rounds: 128 bits that are a pure function of a counter and a key.
///
/// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let x = u64::from(a) * 0xD251_1F53;
        let y = u64::from(c) * 0xCD9E_8D57;
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k0, y as u32, (x >> 32) as u32 ^ d ^ k1, x as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [a, b, c, d]
}

/// A stream of random numbers: a seed, the number of the stream, and how many words were drawn.
///
/// Streams of one seed do not overlap. [`Rng::drawn`] and [`Rng::at`] save and restore a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
    stream: u64,
    drawn: u64,
    block: [u32; 4],
}

impl Rng {
    /// The start of stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self::at(seed, stream, 0)
    }

    /// The stream after `drawn` words: where another one was when its [`Rng::drawn`] said so.
    pub fn at(seed: u64, stream: u64, drawn: u64) -> Self {
        let mut rng = Rng { seed, stream, drawn, block: [0; 4] };
        if !drawn.is_multiple_of(4) {
            rng.refill();
        }
        rng
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The number of the stream.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// How many 32-bit words were drawn.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    fn refill(&mut self) {
        let block = self.drawn / 4;
        let counter =
            [block as u32, (block >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        self.block = philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32]);
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.drawn.is_multiple_of(4) {
            self.refill();
        }
        let word = self.block[(self.drawn % 4) as usize];
        self.drawn = self.drawn.wrapping_add(1);
        word
    }

    /// 64 random bits, of two words, the low one first.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// An integer in `0..n`, each with the same probability; 0 where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // Lemire's multiplication, with its rejection of the few values that would bias it.
        let threshold = if n == 0 { 0 } else { n.wrapping_neg() % n };
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// A number in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Puts `items` into a random order, each with the same probability (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The vectors that the authors publish with their Random123 library.
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn the_stream_is_the_blocks_in_order_and_resumes_anywhere() {
        let mut rng = Rng::new(0x299f31d0_a4093822, 7);
        let words: Vec<u32> = (0..41).map(|_| rng.next_u32()).collect();
        assert_eq!(words[4..8], philox4x32([1, 0, 7, 0], [0xa4093822, 0x299f31d0]));
        for (drawn, &word) in words.iter().enumerate() {
            let mut resumed = Rng::at(rng.seed(), rng.stream(), drawn as u64);
            assert_eq!(resumed.next_u32(), word);
        }
        assert_eq!(rng, Rng::at(rng.seed(), rng.stream(), rng.drawn()));
    }

    #[test]
    fn below_is_even() {
        let mut rng = Rng::new(1, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        // Standard deviation 91.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(rng.below(1), 0);
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.uniform())));
    }
}
