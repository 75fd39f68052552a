//! Counter-based random numbers: Philox4x32-10.
//!
//! Every draw is a pure function of (seed, domain, epoch, sample, position), so order, threads
//! and resumption cannot change it, and any draw can be made again on its own.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//! The same generator stands behind cuRAND's and PyTorch's CUDA streams.

/// What a stream of random numbers is used for. Streams of different domains never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Domain {
    /// Order of the shards within an epoch.
    ShardOrder = 1,
    /// Order of the samples within the shuffle buffer.
    SampleOrder = 2,
    /// Image augmentation of one sample.
    Image = 3,
    /// Caption augmentation (EDA) of one sample.
    Caption = 4,
    /// Choice among several captions of one sample.
    CaptionChoice = 5,
    /// Initial parameters.
    Init = 6,
    /// Initial rows of the caption pool (the `official` variant).
    Pool = 7,
    /// Image augmentation of a sample's second view.
    SecondImage = 16,
    /// Caption augmentation of a sample's second view.
    SecondCaption = 17,
    /// Patterns and warpings of a backdoor trigger, the same for all pictures.
    Trigger = 8,
    /// What a trigger draws for one picture: epoch 0 when poisoning, 1 when evaluating.
    Stamp = 9,
    /// Choices of an attack: pictures, classes, captions, places and keys.
    Poison = 10,
    /// Which pairs detection compares with each other.
    Detect = 11,
    /// What evaluation holds out, or looks at.
    Evaluation = 12,
}

const MUL: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// One block of Philox4x32-10: 128 bits of counter and 64 of key to 128 random bits.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MUL[0]) * u64::from(counter[0]);
        let p1 = u64::from(MUL[1]) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Rng {
    /// The stream that belongs to `(seed, domain, epoch, sample)`.
    ///
    /// `epoch` is taken modulo 2²⁴; a stream holds 2³² blocks of four words.
    pub fn new(seed: u64, domain: Domain, epoch: u64, sample: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        let tag = (u32::from(domain as u8) << 24) | (epoch as u32 & 0x00FF_FFFF);
        let counter = [0, tag, sample as u32, (sample >> 32) as u32];
        Self { key, counter, block: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..n`, without bias (Lemire's method with rejection). `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no answer");
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// `true` with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// A standard normal number (Box–Muller; the second of the pair is dropped, so that the
    /// number of words used does not depend on the caller's history).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 1.14 (`kat_vectors`, philox4x32 10 rounds).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_differ_in_every_coordinate() {
        let first = |seed, domain, epoch, sample| Rng::new(seed, domain, epoch, sample).next_u64();
        let draws = [
            first(1, Domain::Image, 1, 1),
            first(2, Domain::Image, 1, 1),
            first(1, Domain::Caption, 1, 1),
            first(1, Domain::Image, 2, 1),
            first(1, Domain::Image, 1, 2),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(!draws[..i].contains(a));
        }
    }

    /// Moments of 100 000 draws; each bound is five standard errors.
    #[test]
    fn moments() {
        let mut rng = Rng::new(7, Domain::Init, 0, 0);
        let n = 100_000;
        let (mut u, mut z, mut z2) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            u += rng.uniform();
            let x = rng.normal();
            z += x;
            z2 += x * x;
        }
        let n = f64::from(n);
        assert!((u / n - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!((z / n).abs() < 5.0 / n.sqrt());
        assert!((z2 / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    }

    #[test]
    fn below_reaches_every_value_and_no_other() {
        let mut rng = Rng::new(3, Domain::SampleOrder, 0, 0);
        let mut seen = [0u32; 7];
        for _ in 0..7_000 {
            seen[rng.below(7) as usize] += 1;
        }
        let sigma = (7000.0f64 * (1.0 / 7.0) * (6.0 / 7.0)).sqrt();
        assert!(seen.iter().all(|&n| (f64::from(n) - 1000.0).abs() < 5.0 * sigma), "{seen:?}");
    }
}
