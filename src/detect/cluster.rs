//! What is there many times over: pictures that are nearly one picture, and captions that are
//! nearly one caption.
//!
//! A crawl that was poisoned by hand, or by accident, repeats itself: in CC3M one picture of a cake
//! occurs 798 times and acts as a backdoor (Huang et al., arXiv 2502.01385). Clusters are the
//! connected components of the graph of all pairs with a cosine of at least a threshold (single
//! linkage). Each is looked at from the other side, too: near-identical pictures whose captions
//! disagree, or of which one has another caption than all others; one caption on pictures that have
//! nothing in common.

use super::features::{Features, dot};
use crate::rng::{Domain, Rng};
use crate::simd::vectorised;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// How clusters are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterOptions {
    /// Least cosine of two neighbours.
    pub threshold: f32,
    /// Up to so many rows all pairs are compared; `N²D/2` multiply-adds: 10¹³ for 200,000 rows of
    /// width 512. Of more rows only those that fall on the same sides of random planes through
    /// their mean are, in [`TABLES`] trials: a link of cosine 0.98 is then overlooked with a
    /// chance of one in a thousand, where 16 planes are used.
    pub exact_up_to: usize,
    /// Chooses the planes.
    pub seed: u64,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { threshold: 0.98, exact_up_to: 200_000, seed: 0 }
    }
}

/// Rows that are nearly the same on one side.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The rows, ascending; two at least.
    pub rows: Vec<u32>,
    /// Mean cosine of two different rows on the other side: captions of a cluster of pictures,
    /// pictures of a cluster of captions.
    pub agreement: f32,
    /// Of each row: how much less it agrees with the others than these with each other, on the
    /// other side; NaN in a cluster of two.
    pub oddness: Vec<f32>,
}

/// Rows of a block that is compared with another; two fit into a core's cache.
const BLOCK: usize = 64;
/// Trials of random planes.
pub const TABLES: u64 = 16;
/// Rows that fell on the same sides of all planes are compared with so many that follow; more of a
/// kind are chained.
const WINDOW: usize = 256;

/// Clusters of `side`, the largest first, each looked at from the `other` side; rows of both have
/// length 1 and belong to the same pairs. Neither threads nor the machine change a bit.
pub fn clusters(side: &Features, other: &Features, options: &ClusterOptions) -> Vec<Cluster> {
    assert_eq!(side.len(), other.len(), "rows of the same pairs");
    let mut forest = Forest::new(side.len());
    if side.len() <= options.exact_up_to {
        link_all(side, options.threshold, &mut forest);
    } else {
        (0..TABLES).for_each(|table| link_likely(side, options, table, &mut forest));
    }
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for row in 0..side.len() as u32 {
        let root = forest.root(row);
        groups.entry(root).or_default().push(row);
    }
    let several = groups.into_values().filter(|rows| rows.len() > 1);
    let mut clusters: Vec<Cluster> = several.map(|rows| seen_from(other, rows)).collect();
    clusters.sort_by_key(|cluster| std::cmp::Reverse(cluster.rows.len()));
    clusters
}

/// A cluster, from its rows on the other side. Sums of vectors of length 1 hold all their inner
/// products: `|Σt|² = n + Σ_{i≠j} ⟨tᵢ, tⱼ⟩`.
fn seen_from(other: &Features, rows: Vec<u32>) -> Cluster {
    let mut sum = vec![0.0f64; other.width()];
    let row = |&row: &u32| other.row(row as usize).iter().map(|&x| f64::from(x));
    rows.iter().for_each(|r| sum.iter_mut().zip(row(r)).for_each(|(sum, x)| *sum += x));
    let n = rows.len() as f64;
    let squared: f64 = sum.iter().map(|x| x * x).sum();
    let products = squared - rows.iter().map(|r| row(r).map(|x| x * x).sum::<f64>()).sum::<f64>();
    let oddness = |r: &u32| {
        let with_others: f64 = row(r).zip(&sum).map(|(x, sum)| x * (sum - x)).sum();
        let of_others = (products - 2.0 * with_others) / ((n - 1.0) * (n - 2.0));
        if n > 2.0 { (of_others - with_others / (n - 1.0)) as f32 } else { f32::NAN }
    };
    let oddness = rows.iter().map(oddness).collect();
    Cluster { agreement: (products / (n * (n - 1.0))) as f32, oddness, rows }
}

/// Links all rows that are similar enough.
fn link_all(side: &Features, threshold: f32, forest: &mut Forest) {
    let blocks: Vec<usize> = (0..side.len()).step_by(BLOCK).collect();
    for &first in &blocks {
        let to_link = |&second: &usize| links(side, threshold, first, second);
        let later: Vec<_> = blocks[first / BLOCK..].par_iter().map(to_link).collect();
        later.into_iter().flatten().for_each(|(a, b)| forest.join(a, b));
    }
}

/// Links between two blocks of rows, or within one; of those that connect the same rows only the
/// first, so that a million equal pictures are no more than a line of links.
fn links(side: &Features, threshold: f32, first: usize, second: usize) -> Vec<(u32, u32)> {
    let block = |start: usize| start..(start + BLOCK).min(side.len());
    let mut local = Forest::new(2 * BLOCK);
    let (mut links, mut products) = (Vec::new(), [0.0; BLOCK]);
    for a in block(first) {
        let others = block(second.max(if first == second { a + 1 } else { second }));
        let others = others.start..others.end.min(block(second).end);
        inner_products(side.row(a), side, others.start, &mut products[..others.len()]);
        for (b, _) in others.zip(&products).filter(|(_, product)| **product >= threshold) {
            let place = |row: usize, start: usize, at: usize| (row - start + at) as u32;
            let at = if first == second { 0 } else { BLOCK };
            let (left, right) = (place(a, first, 0), place(b, second, at));
            if local.root(left) != local.root(right) {
                local.join(left, right);
                links.push((a as u32, b as u32));
            }
        }
    }
    links
}

vectorised! {
    /// Inner products of `row` with those of `side` that begin at `start`.
    fn inner_products(row: &[f32], side: &Features, start: usize, to: &mut [f32]) {
        for (to, other) in to.iter_mut().zip(start..) {
            *to = dot(row, side.row(other));
        }
    }
}

/// Links rows on the same sides of random planes, where they are similar enough.
fn link_likely(side: &Features, options: &ClusterOptions, table: u64, forest: &mut Forest) {
    let (count, width) = (side.len(), side.width());
    let mut mean = vec![0.0f64; width];
    for row in 0..count {
        mean.iter_mut().zip(side.row(row)).for_each(|(mean, &x)| *mean += f64::from(x));
    }
    let mean: Vec<f32> = mean.into_iter().map(|x| (x / count as f64) as f32).collect();
    // Some ten to twenty rows for every combination of sides.
    let bits = (count / 16).max(2).ilog2().min(16);
    let mut rng = Rng::new(options.seed, Domain::Detect, 1, table);
    let planes: Vec<f32> = (0..bits as usize * width).map(|_| rng.normal() as f32).collect();
    let at: Vec<f32> = planes.chunks_exact(width).map(|plane| dot(plane, &mean)).collect();
    let code = |row: u32| {
        let sides = planes.chunks_exact(width).zip(&at);
        let sides = sides.map(|(plane, &at)| dot(plane, side.row(row as usize)) >= at);
        (sides.fold(0u32, |code, above| code << 1 | u32::from(above)), row)
    };
    let mut codes: Vec<(u32, u32)> = (0..count as u32).into_par_iter().map(code).collect();
    codes.par_sort_unstable();
    let similar = |place: usize| -> Vec<(u32, u32)> {
        let (code, row) = codes[place];
        let next = codes[place + 1..].iter().take(WINDOW).take_while(|(c, _)| *c == code);
        let own = side.row(row as usize);
        next.filter(|(_, b)| dot(own, side.row(*b as usize)) >= options.threshold)
            .map(|&(_, b)| (row, b))
            .collect()
    };
    for start in (0..count).step_by(BLOCK * BLOCK) {
        let places = start..(start + BLOCK * BLOCK).min(count);
        let links: Vec<_> = places.into_par_iter().map(similar).collect();
        links.into_iter().flatten().for_each(|(a, b)| forest.join(a, b));
    }
}

/// Sets that only grow together; a set's root is its least row, whatever the order of joins.
struct Forest {
    parents: Vec<u32>,
}

impl Forest {
    fn new(rows: usize) -> Self {
        Self { parents: (0..rows as u32).collect() }
    }

    fn root(&mut self, mut row: u32) -> u32 {
        while self.parents[row as usize] != row {
            let above = self.parents[self.parents[row as usize] as usize];
            self.parents[row as usize] = above;
            row = above;
        }
        row
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of length 1: noise, and at each of `copies` a row that differs from row 0 by little.
    fn with_copies(rows: usize, width: usize, copies: &[usize]) -> Features {
        let mut rng = Rng::new(9, Domain::Init, 0, 0);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
        let mut values = draw(rows * width);
        for &copy in copies {
            let noise = draw(width);
            for i in 0..width {
                values[copy * width + i] = values[i] + 0.02 * noise[i];
            }
        }
        let mut features = Features::new(width, values);
        features.normalize();
        features
    }

    /// All pairs, one by one: the definition.
    fn components(side: &Features, threshold: f32) -> Vec<Vec<u32>> {
        let mut label: Vec<usize> = (0..side.len()).collect();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for a in 0..side.len() {
                for b in 0..side.len() {
                    let product = dot(side.row(a), side.row(b));
                    if product >= threshold && label[a] != label[b] {
                        (label[a], changed) = (label[a].min(label[b]), true);
                        label[b] = label[a];
                    }
                }
            }
        }
        let mut all = vec![Vec::new(); side.len()];
        label.iter().zip(0..).for_each(|(&l, row)| all[l].push(row));
        all.retain(|rows| rows.len() > 1);
        all.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
        all
    }

    #[test]
    fn exact_clusters_are_the_connected_components() {
        // In three dimensions chance makes chains of every length.
        for (rows, width, threshold) in [(1, 3, 0.9), (63, 3, 0.9), (200, 3, 0.98), (131, 33, 0.4)]
        {
            let side = with_copies(rows, width, &[]);
            let options = ClusterOptions { threshold, ..ClusterOptions::default() };
            let found = clusters(&side, &side, &options);
            let found: Vec<_> = found.into_iter().map(|cluster| cluster.rows).collect();
            assert_eq!(found, components(&side, threshold), "{rows} x {width}");
            assert!(rows < 63 || !found.is_empty());
        }
    }

    /// The natural backdoor's shape: one picture many times. Found exactly and by planes.
    #[test]
    fn one_picture_many_times_is_one_cluster() {
        let copies: Vec<usize> = (1..60).map(|n| n * 31).collect();
        let (pictures, captions) = (with_copies(2000, 64, &copies), with_copies(2000, 16, &[]));
        for exact_up_to in [2000, 1999] {
            let options = ClusterOptions { exact_up_to, ..ClusterOptions::default() };
            let found = clusters(&pictures, &captions, &options);
            assert_eq!(found.len(), 1);
            let rows: Vec<usize> = found[0].rows.iter().map(|&row| row as usize).collect();
            assert_eq!(rows, [&[0], &copies[..]].concat());
            assert!(found[0].agreement.abs() < 0.05, "captions drawn apart");
        }
    }

    /// Agreement and oddness by the definition: means over pairs.
    #[test]
    fn the_other_side_is_told_by_its_pairs() {
        let (pictures, captions) = (with_copies(9, 64, &[2, 3, 5, 8]), with_copies(9, 4, &[3, 5]));
        let found = clusters(&pictures, &captions, &ClusterOptions::default());
        let [cluster] = &found[..] else { panic!("{found:?}") };
        assert_eq!(cluster.rows, [0, 2, 3, 5, 8]);
        let mean = |of: &dyn Fn(u32, u32) -> bool| {
            let all = cluster.rows.iter().flat_map(|&a| cluster.rows.iter().map(move |&b| (a, b)));
            let chosen = all.filter(|&(a, b)| a != b && of(a, b));
            let cosine =
                |(a, b): (u32, u32)| dot(captions.row(a as usize), captions.row(b as usize));
            let cosines: Vec<f32> = chosen.map(cosine).collect();
            cosines.iter().sum::<f32>() / cosines.len() as f32
        };
        assert!((cluster.agreement - mean(&|_, _| true)).abs() < 1e-5);
        for (&row, &odd) in cluster.rows.iter().zip(&cluster.oddness) {
            let want = mean(&|a, b| a != row && b != row) - mean(&|a, _| a == row);
            assert!((odd - want).abs() < 1e-5, "{row}: {odd}, {want}");
        }
        let two = clusters(&with_copies(4, 64, &[2]), &captions_of(4), &ClusterOptions::default());
        assert!(two[0].rows == [0, 2] && two[0].oddness.iter().all(|x| x.is_nan()));
    }

    fn captions_of(rows: usize) -> Features {
        with_copies(rows, 4, &[])
    }
}
