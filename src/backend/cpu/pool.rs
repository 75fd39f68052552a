//! `pool` on the CPU: tiles of scores, and a running best for every query.

use super::gemm::Mat;
use super::{Cpu, CpuFloat};
use crate::backend::ops::pool::{Pool, is_ahead};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use rayon::prelude::*;

/// Queries of one task.
const QUERIES: usize = 32;

/// Pool rows of one tile.
const ROWS: usize = 256;

impl<F: CpuFloat> Pool for Cpu<F> {
    fn pool_match(
        &self,
        width: usize,
        k: usize,
        queries: View<'_, Self, F>,
        rows: View<'_, Self, F>,
        index: ViewMut<'_, Self, u32>,
        score: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (queries, rows) = (queries.slice(), rows.slice());
        let (index, score) = (index.slice_mut(), score.slice_mut());
        self.run(|| {
            let best = index.par_chunks_mut(QUERIES * k).zip(score.par_chunks_mut(QUERIES * k));
            best.zip(queries.par_chunks(QUERIES * width)).for_each(|((index, score), queries)| {
                self.scratch(QUERIES * ROWS, |tile| {
                    nearest(self, [width, k], queries, rows, tile, index, score)
                });
            });
        });
        Ok(())
    }

    fn pool_insert(
        &self,
        width: usize,
        rows: View<'_, Self, F>,
        pool: ViewMut<'_, Self, F>,
        at: usize,
    ) -> Result<()> {
        let (rows, pool) = (rows.slice(), pool.slice_mut());
        let (tail, wrapped) = rows.split_at(rows.len().min(pool.len() - at * width));
        pool[at * width..][..tail.len()].copy_from_slice(tail);
        pool[..wrapped.len()].copy_from_slice(wrapped);
        Ok(())
    }
}

/// The `k` best rows of every query of one block, tile by tile.
fn nearest<F: CpuFloat>(
    cpu: &Cpu<F>,
    [width, k]: [usize; 2],
    queries: &[F],
    rows: &[F],
    tile: &mut [F],
    index: &mut [u32],
    score: &mut [F],
) {
    index.fill(0);
    score.fill(F::from_f64(f64::NAN));
    for (block, rows) in rows.chunks(ROWS * width).enumerate() {
        let n = rows.len() / width;
        let (q, r) = (Mat::rows(queries, width), Mat::cols(rows, width));
        cpu.gemm_here([index.len() / k, width, n], q, r, Write::Set, tile, n);
        let best = index.chunks_exact_mut(k).zip(score.chunks_exact_mut(k));
        for ((index, score), found) in best.zip(tile.chunks_exact(n)) {
            for (row, &found) in found.iter().enumerate() {
                if is_ahead(found, score[k - 1]) {
                    insert(index, score, (block * ROWS + row) as u32, found);
                }
            }
        }
    }
}

/// Takes a score that is ahead of the last one in, behind those that it is not ahead of.
fn insert<F: CpuFloat>(index: &mut [u32], score: &mut [F], row: u32, found: F) {
    let mut at = score.len() - 1;
    while at > 0 && is_ahead(found, score[at - 1]) {
        (index[at], score[at]) = (index[at - 1], score[at - 1]);
        at -= 1;
    }
    (index[at], score[at]) = (row, found);
}
