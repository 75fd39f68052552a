//! Which pairs SafeCLIP trusts: those whose picture and caption are alike.

use super::mixture::Mixture;
use super::objective::SafeClip;
use crate::error::Result;
use crate::flow::{Place, State};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Names in a checkpoint.
const PLACES: &str = "safe.places";
const FIRST: &str = "safe.first";

/// A pair and the cosine of its picture and its caption.
pub type Scored = (Place, f32);

/// The safe pairs of an epoch; all others are risky.
#[derive(Clone, Debug, PartialEq)]
pub struct SafeSet {
    /// By [`Place::stream`].
    pairs: Arc<HashSet<u64>>,
    /// Safe pairs of the first epoch that has any, and how many there were in all: so many that
    /// the share is the same number on every machine.
    first: [usize; 2],
}

impl SafeSet {
    /// The safe pairs of the first epoch: the mixture tells from which similarity on pairs are
    /// safe, and those at least as similar are, up to the largest share that there may be.
    ///
    /// The posterior of the more similar group need not grow with the similarity: the wider group
    /// has both tails. So the border is where it first exceeds the threshold above the mean of the
    /// less similar group; what lies below cannot be safe, what lies above cannot be risky.
    pub fn begin(options: SafeClip, scores: Vec<Scored>) -> (Self, Option<Mixture>) {
        let ranking = Ranking::of(scores);
        let values = ranking.known();
        let mixture = Mixture::fit(&values);
        let count = mixture.map_or(0, |mixture| {
            let above = |x: f64| x > mixture.low.mean && mixture.posterior(x) > options.threshold;
            values.len() - values.iter().position(|&x| above(x)).unwrap_or(values.len())
        });
        let first = [count, ranking.0.len()];
        (Self { first, pairs: ranking.top(options.share(first, 0)) }, mixture)
    }

    /// The safe pairs `epochs` after the first epoch that had any: a larger share, of those that
    /// are most similar now.
    pub fn grown(&self, options: SafeClip, scores: Vec<Scored>, epochs: u64) -> Self {
        let share = options.share(self.first, epochs);
        Self { pairs: Ranking::of(scores).top(share), first: self.first }
    }

    /// By [`Place::stream`].
    pub fn pairs(&self) -> &Arc<HashSet<u64>> {
        &self.pairs
    }

    /// Adds them to `state`: places `safe.places`, in their order, and field `safe.first`.
    pub fn save(&self, state: &mut State) {
        let place = |&n: &u64| Place { shard: (n >> 32) as u32, index: n as u32 };
        let mut places: Vec<Place> = self.pairs.iter().map(place).collect();
        places.sort_unstable();
        state.put_places(PLACES, &places);
        let first = vec![self.first[0], self.first[1], places.len()];
        state.values.insert(FIRST.into(), first.into());
    }

    /// What [`SafeSet::save`] saw; `None` where there was none yet. `path` names the file in
    /// errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where a part is missing.
    pub fn load(state: &State, path: &Path) -> Result<Option<Self>> {
        if !state.values.contains_key(FIRST) {
            return Ok(None);
        }
        let [safe, of, now]: [usize; 3] = state.value(path, FIRST)?;
        let places = state.places(path, PLACES, now)?;
        let pairs = places.into_iter().map(Place::stream).collect();
        Ok(Some(Self { pairs: Arc::new(pairs), first: [safe, of] }))
    }
}

impl SafeClip {
    /// The share of all pairs that is safe `epochs` after the first of such epochs, in which
    /// `safe` pairs of `of` were.
    fn share(self, [safe, of]: [usize; 2], epochs: u64) -> f64 {
        let first = safe as f64 / of.max(1) as f64;
        (first + self.growth * epochs as f64).min(self.most)
    }
}

/// Pairs from the most to the least similar; of equal ones the earlier place comes first, and what
/// has no similarity comes last.
struct Ranking(Vec<Scored>);

impl Ranking {
    fn of(mut scores: Vec<Scored>) -> Self {
        let key = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score };
        scores.sort_unstable_by(|(a, x), (b, y)| key(*y).total_cmp(&key(*x)).then(a.cmp(b)));
        Self(scores)
    }

    /// The similarities that are numbers, in ascending order.
    fn known(&self) -> Vec<f64> {
        let scores = self.0.iter().rev().map(|(_, score)| f64::from(*score));
        scores.filter(|score| score.is_finite()).collect()
    }

    /// The most similar pairs, so many that they are this share; only such as have a similarity.
    fn top(&self, share: f64) -> Arc<HashSet<u64>> {
        let count = (share * self.0.len() as f64).round() as usize;
        let known = self.0.iter().filter(|(_, score)| score.is_finite());
        Arc::new(known.take(count).map(|(place, _)| place.stream()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(n: u32) -> Place {
        Place { shard: n % 3, index: 70_000 + n }
    }

    /// 90 pairs alike and 10 that are not, in an order that has nothing to do with it.
    fn scores() -> Vec<Scored> {
        let score = |n: u32| match n % 10 {
            7 => 0.1 + (n % 7) as f32 / 100.0,
            _ => 0.5 + (n % 13) as f32 / 100.0,
        };
        (0..100).map(|n| (place((n * 37) % 100), score((n * 37) % 100))).collect()
    }

    const OPTIONS: SafeClip = SafeClip { most: 1.0, ..SafeClip::AUTHORS };

    fn numbers(set: &SafeSet) -> Vec<u32> {
        let mut numbers: Vec<u32> =
            (0..100).filter(|&n| set.pairs().contains(&place(n).stream())).collect();
        numbers.sort_unstable();
        assert_eq!(numbers.len(), set.pairs().len());
        numbers
    }

    #[test]
    fn pairs_that_are_alike_are_safe_up_to_the_largest_share() {
        let (set, mixture) = SafeSet::begin(OPTIONS, scores());
        assert!((mixture.unwrap().low.weight - 0.1).abs() < 1e-6);
        let alike: Vec<u32> = (0..100).filter(|n| n % 10 != 7).collect();
        assert_eq!(numbers(&set), alike);
        let most = SafeClip { most: 0.85, ..OPTIONS };
        let (fewer, _) = SafeSet::begin(most, scores());
        assert_eq!(fewer.pairs().len(), 85);
        assert!(fewer.pairs().is_subset(set.pairs()));
    }

    /// With scores of equal rank, too: those whose place comes first.
    #[test]
    fn the_set_grows_by_a_share_of_all_and_follows_the_scores() {
        let options = SafeClip { growth: 0.02, ..OPTIONS };
        let (set, _) = SafeSet::begin(options, scores());
        for (epochs, count) in [(0, 90), (1, 92), (2, 94), (9, 100)] {
            let grown = set.grown(options, scores(), epochs);
            assert_eq!(grown.pairs().len(), count);
            assert!(set.pairs().is_subset(grown.pairs()));
            let mut reversed = scores();
            reversed.reverse();
            assert_eq!(set.grown(options, reversed, epochs), grown, "whatever the order");
        }
        let equal: Vec<Scored> = (0..100).map(|n| (place(n), 0.25)).collect();
        let grown = set.grown(options, equal, 1);
        let mut places: Vec<Place> = (0..100).map(place).collect();
        places.sort_unstable();
        let first: HashSet<u64> = places[..92].iter().map(|place| place.stream()).collect();
        assert_eq!(**grown.pairs(), first);
        let turned = scores().into_iter().map(|(place, score)| (place, -score)).collect();
        let turned = set.grown(options, turned, 0);
        assert!((0..100).filter(|n| n % 10 == 7).all(|n| numbers(&turned).contains(&n)));
    }

    /// The group of the less similar is the wider one: it has the upper tail, too, and the more
    /// similar are safe all the same; or the narrower one: then nothing below it is.
    #[test]
    fn the_border_is_one_similarity() {
        let even = |n: u32, of: u32| f64::from(n) / f64::from(of - 1) * 2.0 - 1.0;
        for (low, high) in [(0.5, 0.02), (0.01, 0.44)] {
            let wide = (0..100).map(|n| 0.1 + low * even(n, 100).powi(3));
            let all: Vec<f64> = wide.chain((0..100).map(|n| 0.45 + high * even(n, 100))).collect();
            let scores: Vec<Scored> =
                all.iter().enumerate().map(|(n, &x)| (place(n as u32), x as f32)).collect();
            let (set, mixture) = SafeSet::begin(OPTIONS, scores.clone());
            let safe = |(place, _): &&Scored| set.pairs().contains(&place.stream());
            let least = scores.iter().filter(safe).map(|s| s.1).fold(f32::INFINITY, f32::min);
            let most =
                scores.iter().filter(|s| !safe(s)).map(|s| s.1).fold(f32::NEG_INFINITY, f32::max);
            assert!(least > most && f64::from(most) > mixture.unwrap().low.mean, "{least} {most}");
            assert!(!set.pairs().is_empty());
        }
    }

    #[test]
    fn what_has_no_similarity_is_never_safe() {
        let mut scores = scores();
        scores[3].1 = f32::NAN;
        let (set, _) = SafeSet::begin(SafeClip { threshold: 0.0, ..OPTIONS }, scores.clone());
        let all = set.grown(SafeClip { growth: 1.0, ..OPTIONS }, scores.clone(), 1);
        assert_eq!(all.pairs().len(), 99);
        assert!(!all.pairs().contains(&scores[3].0.stream()));
        let (none, mixture) = SafeSet::begin(OPTIONS, vec![(place(1), f32::NAN); 2]);
        assert!(none.pairs().is_empty() && mixture.is_none());
    }

    #[test]
    fn a_checkpoint_keeps_it() {
        let path = Path::new("x.safetensors");
        assert_eq!(SafeSet::load(&State::default(), path).unwrap(), None);
        let (set, _) = SafeSet::begin(OPTIONS, scores());
        let (empty, _) = SafeSet::begin(OPTIONS, Vec::new());
        for set in [set, empty] {
            let mut state = State::default();
            set.save(&mut state);
            assert_eq!(SafeSet::load(&state, path).unwrap(), Some(set));
            state.tensors.clear();
            let error = SafeSet::load(&state, path).unwrap_err().to_string();
            assert!(error.contains("safe.places"), "{error}");
        }
    }
}
