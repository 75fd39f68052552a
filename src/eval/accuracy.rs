//! Ranks → shares, with the intervals in which they would come again.

/// Half the width of a 95 % interval of the normal distribution, in standard deviations.
const Z: f64 = 1.959_963_984_540_054;

/// The `k` of top-k that are told.
pub const TOP: [usize; 4] = [1, 3, 5, 10];

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many did.
    pub hits: u64,
    /// How many could have.
    pub of: u64,
}

impl Share {
    /// Counts one more.
    pub fn add(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.of += 1;
    }

    /// 0 to 1; NaN of none.
    pub fn value(&self) -> f64 {
        self.hits as f64 / self.of as f64
    }

    /// Wilson's 95 % interval, which keeps its promise for few trials and for shares near 0 and 1,
    /// too; 0 to 1 for no trial.
    ///
    /// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    /// inference" (1927).
    pub fn wilson(&self) -> [f64; 2] {
        if self.of == 0 {
            return [0.0, 1.0];
        }
        let (n, p, z2) = (self.of as f64, self.value(), Z * Z);
        let centre = p + z2 / (2.0 * n);
        let spread = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        let [low, high] = [centre - spread, centre + spread].map(|x| x / (1.0 + z2 / n));
        // The ends are exact where all hit, or none; rounding must not move them.
        [if self.hits == 0 { 0.0 } else { low }, if self.hits == self.of { 1.0 } else { high }]
    }
}

/// How often the class of a picture was among the nearest.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Among the `k` nearest, for the `k` of [`TOP`].
    pub top: [Share; TOP.len()],
    /// Top-1 of each class.
    pub by_class: Vec<Share>,
}

impl Accuracy {
    /// Of no picture yet.
    pub fn new(classes: usize) -> Self {
        Self { top: Default::default(), by_class: vec![Share::default(); classes] }
    }

    /// Counts a picture of class `label`, before which stood `rank` others.
    pub fn add(&mut self, label: u32, rank: usize) {
        self.top.iter_mut().zip(TOP).for_each(|(share, k)| share.add(rank < k));
        self.by_class[label as usize].add(rank < 1);
    }

    /// Pictures.
    pub fn pictures(&self) -> u64 {
        self.top[0].of
    }

    /// Pictures whose class was the nearest.
    pub fn top1(&self) -> Share {
        self.top[0]
    }

    /// Mean of the top-1 shares of the classes of which there are pictures.
    pub fn mean_per_class_recall(&self) -> f64 {
        let seen: Vec<f64> =
            self.by_class.iter().filter(|class| class.of > 0).map(Share::value).collect();
        seen.iter().sum::<f64>() / seen.len() as f64
    }
}

/// Number of classes that score above `label`; equal scores count by class number, NaN as above.
pub fn rank<F: PartialOrd + Copy>(scores: &[F], label: usize) -> usize {
    let own = scores[label];
    let before = |(class, score): (usize, &F)| match score.partial_cmp(&own) {
        Some(std::cmp::Ordering::Less) => false,
        Some(std::cmp::Ordering::Equal) => class < label,
        _ => true,
    };
    scores.iter().enumerate().filter(|&entry| before(entry)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_by_hand() {
        let scores = [0.1, 0.7, 0.7, -0.2];
        assert_eq!(rank(&scores, 1), 0);
        assert_eq!(rank(&scores, 2), 1, "an equal score of a lower class comes first");
        assert_eq!(rank(&scores, 3), 3);
        assert_eq!(rank(&[f64::NAN, 0.5], 1), 1, "NaN never helps");
        assert_eq!(rank(&[f64::NAN, 0.5], 0), 2, "nor does it win");
    }

    #[test]
    fn classes_without_pictures_have_no_recall() {
        let mut accuracy = Accuracy::new(3);
        for (label, rank) in [(0, 0), (0, 2), (0, 4), (2, 0), (2, 9), (0, 10)] {
            accuracy.add(label, rank);
        }
        assert_eq!(accuracy.top.map(|share| share.hits), [2, 3, 4, 5]);
        assert_eq!(accuracy.pictures(), 6);
        // 1 of 4 and 1 of 2.
        assert_eq!(accuracy.mean_per_class_recall(), 0.375);
    }
}
