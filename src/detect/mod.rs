//! Who is suspected: detectors over what training wrote down and over features of the final model,
//! and one ranking of all pairs.
//!
//! ```text
//! matches/epoch_N.npy ─▶ suspicion ─┐
//! features ─▶ caption ranks, density ┼─▶ suspects ─▶ what they have in common ─▶ one ranking
//! thumbnails, captions ─▶ clusters ──┘                                            └▶ quarantine
//! ```
//!
//! Scores, by their names in all files; the higher, the more suspicious:
//!
//! | name | what it is |
//! |---|---|
//! | `clip_distance` | 1 − cosine of picture and caption, by the final model |
//! | `own_distance` | 1 − mean of that cosine over the steps of training |
//! | `margin` | mean of how much nearer the pool's caption was than its own |
//! | `replaced` | share of matched steps in which the pool's was nearer at all |
//! | `unlikeness` | 1 − mean cosine of the pool's captions and its own, by that model |
//! | `k_distance`, `slof`, `dao` | [`density`](mod@density) of its picture's surroundings |
//! | `caption_rank` | share of captions of others that are nearer to its picture |
//! | `duplicates` | log₂ of the number of pictures that are nearly its own |
//! | `conflict` | how many of these contradict its caption, see below |
//! | `odd_caption` | how far its caption is from those of nearly the same picture |
//! | `repeated_caption` | see below |
//! | `common` | how much its picture bears what suspects have in [`common`](mod@common) |
//!
//! `conflict` is `(n − 1)(1 − a)/(1 − r)` for `n` pictures that are nearly one, whose captions have
//! a mean cosine of `a`, where that of any two captions is `r`: as many as there are others if
//! captions agree no more than chance, 0 if they are all the same.
//!
//! `repeated_caption` is log₂ of the number of captions nearly its own, times 1 − mean cosine of
//! their pictures: it is high where these have nothing in common.
//!
//! Files that [`Findings::write`] leaves. Pictures are not among them, but shard, key and index
//! find them:
//!
//! - `scores.jsonl`, a line a pair in the order of the shards: `shard`, `key`, `index`, `score`
//!   (all in one, [`rank`]), `rank` (from 1, by `score`), and every score, `null` where nothing is
//!   known. `roclip-shards filter --scores` takes it.
//! - `quarantine.jsonl`, the most suspicious first: `shard`, `key`, `index`, `score`, `rank`,
//!   `reason`. `--exclude` takes it.
//! - `clusters.json`: `pictures` and `captions`, [`cluster`]s with at least two rows, the largest
//!   first, [`CLUSTERS`] at most: `size`, `agreement`, `conflict` where they are of pictures, and
//!   `rows`, [`MEMBERS`] at most, the oddest first: `shard`, `key`, `oddness`.
//! - `detection.json`: `pairs`; `epochs` and `records` of training; `records_of_others`, which are
//!   of pairs not looked at; the settings `density`, `clusters`, `by`, `evidence`; `quarantined`;
//!   `truth` (`listed` and `found`, or `null`); and `scores`: of each, and of `score`, the number
//!   `known`, `min`, `mean`, `max`, a `histogram` of all and of the poisoned ones in [`BINS`] bins
//!   from `min` to `max`, and with a truth [`metrics::Metrics`].

pub mod cluster;
pub mod common;
pub mod density;
pub mod features;
pub mod metrics;
pub mod rank;
pub mod record;
pub mod suspicion;
pub mod thumbnails;

mod findings;
mod pairs;

pub use findings::{BINS, CLUSTERS, Findings, MEMBERS};
pub use pairs::{Pair, places};

use crate::data::exclude::Exclusions;
use crate::error::{Error, Result};
use cluster::{Cluster, ClusterOptions, clusters};
use common::{CommonOptions, common};
use density::{Density, DensityOptions, density};
use features::{Features, caption_ranks, clip_scores};
use rank::{Score, combine, weigh};
use std::path::{Path, PathBuf};
use thumbnails::{THUMBNAILS, Thumbnails};

/// Scores that make suspects unless others are named: what training saw, and what its model says.
pub const BY: [&str; 3] = ["own_distance", "margin", "caption_rank"];
/// Captions of others that `caption_rank` compares with.
const CAPTIONS: usize = 2000;

/// How pairs are looked at.
#[derive(Clone, Debug)]
pub struct DetectOptions {
    /// How neighbours are found.
    pub density: DensityOptions,
    /// How clusters are found.
    pub clusters: ClusterOptions,
    /// How the mark is looked for that suspects have in common.
    pub common: CommonOptions,
    /// Names of the scores that make suspects; of which nothing is known, they are left out.
    pub by: Vec<String>,
    /// Suspects to name; `None`: those against whom there is [evidence](rank::EVIDENCE).
    pub top: Option<usize>,
    /// Threads that compare pairs.
    pub threads: usize,
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self {
            density: DensityOptions::default(),
            clusters: ClusterOptions::default(),
            common: CommonOptions::default(),
            by: BY.map(String::from).into(),
            top: None,
            threads: 1,
        }
    }
}

/// Looks at every pair that `features` holds: a folder as `roclip-model embed --both --thumbnails`
/// writes it, of features as the encoder gives them. `run` is the folder of the run that trained
/// the model; `truth` a list of poisoned pairs.
///
/// In memory are all features, `8D` bytes a pair, the thumbnails and what they are compared by,
/// 6 KiB, and some two hundred bytes beside.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] where a file cannot be read or contradicts another;
/// [`Error::Option`] where `by` names no score; [`Error::Device`] where threads cannot be started.
pub fn detect(
    run: &Path,
    features: &Path,
    truth: Option<&Path>,
    options: &DetectOptions,
) -> Result<Findings> {
    let unknown = |name: &&String| !NAMES.contains(&name.as_str());
    if let Some(name) = options.by.iter().find(unknown) {
        return Err(Error::Option {
            flag: "--by".into(),
            got: name.clone(),
            expected: format!("some of {}", NAMES.join(", ")),
        });
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let pool = pool.map_err(|e| {
        Error::Device(format!("cannot start {} threads for detection: {e}", options.threads))
    })?;
    pool.install(|| look(run, features, truth, options))
}

fn look(
    run: &Path,
    features: &Path,
    truth: Option<&Path>,
    options: &DetectOptions,
) -> Result<Findings> {
    let (pairs, mut images, mut texts, thumbnails) = read(features)?;
    let clip = clip_scores(&images, &texts);
    let density = density(&images, &options.density);
    images.normalize();
    texts.normalize();
    let likeness = |a: usize, b: usize| features::dot(texts.row(a), texts.row(b));
    let seen = suspicion::suspicion(run, &pairs::places(run, &pairs)?, likeness)?;
    let pictures = clusters(&thumbnails.compared(), &texts, &options.clusters);
    let captions = clusters(&texts, &images, &options.clusters);
    let mut scores = scores(&Evidence {
        clip: &clip,
        caption_rank: caption_ranks(&images, &texts, CAPTIONS, options.density.seed),
        likeness: features::mean_cosine(&texts),
        density,
        seen: &seen,
        pictures: &pictures,
        captions: &captions,
    });
    let mut ranks: Vec<_> = scores.iter().map(|score| rank::ranks(&score.values)).collect();
    let by =
        scores.iter().zip(&ranks).filter(|(score, _)| options.by.iter().any(|n| n == score.name));
    let by: Vec<Vec<f32>> = by.map(|(_, ranks)| ranks.clone()).collect();
    let suspicion = combine(&by);
    let values = common(&thumbnails, &suspicion, &options.common);
    if values.iter().any(|value| !value.is_nan()) {
        ranks.push(rank::ranks(&values));
        scores.push(Score { name: COMMON, values });
    }
    let combined = weigh(&scores, &suspicion);
    let truth = truth.map(|path| -> Result<_> {
        let list = Exclusions::read(path)?;
        let poisoned = pairs.iter().map(|pair| list.contains(&pair.shard, &pair.key));
        Ok((poisoned.collect(), list.len()))
    });
    Ok(Findings {
        truth: truth.transpose()?,
        options: options.clone(),
        pairs,
        seen,
        scores,
        ranks,
        combined,
        pictures,
        captions,
    })
}

/// What `roclip-model embed` left in `folder`: four files of as many pairs.
fn read(folder: &Path) -> Result<(Vec<Pair>, Features, Features, Thumbnails)> {
    let pairs = pairs::read(&folder.join("keys.jsonl"))?;
    let of_all = |path: PathBuf, rows: usize| {
        if rows == pairs.len() {
            return Ok(());
        }
        let reason = format!("{rows} rows; keys.jsonl has {} lines", pairs.len());
        Err(Error::Format { path, reason })
    };
    let features = |name: &str| {
        let array = Features::read(&folder.join(name))?;
        of_all(folder.join(name), array.len())?;
        Ok(array)
    };
    let (images, texts) = (features("images.npy")?, features("texts.npy")?);
    if images.width() != texts.width() {
        let reason = format!("width {}; images.npy has {}", texts.width(), images.width());
        return Err(Error::Format { path: folder.join("texts.npy"), reason });
    }
    let thumbnails = Thumbnails::read(&folder.join(THUMBNAILS))?;
    of_all(folder.join(THUMBNAILS), thumbnails.len())?;
    Ok((pairs, images, texts, thumbnails))
}

/// The names of all scores but the last.
const NAMES: [&str; 13] = [
    "clip_distance",
    "own_distance",
    "margin",
    "replaced",
    "unlikeness",
    "caption_rank",
    "k_distance",
    "slof",
    "dao",
    "duplicates",
    rank::CONFLICT,
    "odd_caption",
    "repeated_caption",
];
/// The last, which follows from those that make suspects.
const COMMON: &str = "common";

/// What scores are made of.
struct Evidence<'a> {
    clip: &'a [f32],
    caption_rank: Vec<f32>,
    /// Mean cosine of two captions.
    likeness: f32,
    density: Density,
    seen: &'a suspicion::Suspicion,
    pictures: &'a [Cluster],
    captions: &'a [Cluster],
}

/// All scores of which anything is known.
fn scores(of: &Evidence<'_>) -> Vec<Score> {
    let of_training =
        |f: &dyn Fn(&suspicion::Seen) -> f32| of.seen.pairs.iter().map(f).collect::<Vec<_>>();
    let of_clusters = |clusters: &[Cluster], outside: f32, f: &dyn Fn(&Cluster, usize) -> f32| {
        let mut values = vec![outside; of.clip.len()];
        for cluster in clusters {
            let rows = cluster.rows.iter().enumerate();
            rows.for_each(|(n, &row)| values[row as usize] = f(cluster, n));
        }
        values
    };
    let size = |cluster: &Cluster| cluster.rows.len() as f32;
    let contradiction = |cluster: &Cluster| (1.0 - cluster.agreement) / (1.0 - of.likeness);
    let values: [Vec<f32>; 13] = [
        of.clip.iter().map(|cosine| 1.0 - cosine).collect(),
        of_training(&|seen| 1.0 - seen.own()),
        of_training(&|seen| seen.margin()),
        of_training(&|seen| seen.replaced()),
        of_training(&|seen| 1.0 - seen.likeness()),
        of.caption_rank.clone(),
        of.density.k_distance.clone(),
        of.density.slof.clone(),
        of.density.dao.clone(),
        of_clusters(of.pictures, 0.0, &|cluster, _| size(cluster).log2()),
        of_clusters(of.pictures, 0.0, &|cluster, _| (size(cluster) - 1.0) * contradiction(cluster)),
        of_clusters(of.pictures, f32::NAN, &|cluster, n| cluster.oddness[n]),
        of_clusters(of.captions, 0.0, &|cluster, _| {
            size(cluster).log2() * (1.0 - cluster.agreement)
        }),
    ];
    let scores = NAMES.into_iter().zip(values).map(|(name, values)| Score { name, values });
    scores.filter(|score| score.values.iter().any(|value| !value.is_nan())).collect()
}

#[cfg(test)]
mod tests {
    use super::record::{Record, RecordWriter};
    use super::*;
    use crate::flow::Place;

    /// Four pairs by hand. The pictures of three are nearly one, and their captions half alike,
    /// where two captions are alike by a fifth.
    #[test]
    fn scores_are_made_of_what_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let places = [0, 1, 2, 3].map(|index| Place { shard: 0, index });
        let seen = |place: usize, own, best| Record {
            pair: places[place],
            own,
            best,
            from: if best > 0.0 { places[3] } else { Place::UNKNOWN },
        };
        let mut writer = RecordWriter::open(dir.path(), 1, 0).unwrap();
        let all = [seen(0, 0.25, 0.75), seen(1, 0.5, f32::NAN)];
        writer.append(&record::pack(all.into_iter())).unwrap();
        drop(writer);
        let seen = suspicion::suspicion(dir.path(), &places, |_, _| 0.125).unwrap();
        let cluster = |rows: &[u32], agreement, oddness: &[f32]| Cluster {
            rows: rows.into(),
            agreement,
            oddness: oddness.into(),
        };
        let of_all = |x: f32| vec![x; 4];
        let density = Density { k_distance: of_all(1.0), slof: of_all(2.0), dao: of_all(3.0) };
        let scores = scores(&Evidence {
            clip: &[0.5, 0.25, 0.0, -1.0],
            caption_rank: of_all(7.0),
            likeness: 0.2,
            density,
            seen: &seen,
            pictures: &[cluster(&[0, 1, 3], 0.5, &[0.1, 0.2, 0.3])],
            captions: &[cluster(&[2, 3], 0.25, &[f32::NAN; 2])],
        });
        let nan = f32::NAN;
        let want = [
            [0.5, 0.75, 1.0, 2.0],
            [0.75, 0.5, nan, nan],
            [0.5, nan, nan, nan],
            [1.0, nan, nan, nan],
            [0.875, nan, nan, nan],
            [7.0; 4],
            [1.0; 4],
            [2.0; 4],
            [3.0; 4],
            [3f32.log2(), 3f32.log2(), 0.0, 3f32.log2()],
            [1.25, 1.25, 0.0, 1.25],
            [0.1, 0.2, nan, 0.3],
            [0.0, 0.0, 0.75, 0.75],
        ];
        assert_eq!(scores.len(), want.len());
        for ((score, name), want) in scores.iter().zip(NAMES).zip(want) {
            assert_eq!(score.name, name);
            for (got, want) in score.values.iter().zip(want) {
                let is_it = (got - want).abs() <= 1e-6 || got.is_nan() && want.is_nan();
                assert!(is_it, "{name}: {:?}, not {want:?}", score.values);
            }
        }
    }
}
